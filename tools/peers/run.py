"""Other methods' choice of attention beside ours, on tiny-wan in diffusers, at equal density: PSNR to the dense run of the same seed.

    python -m tools.peers.run -o out/peers [--prompts 32] [--densities 0.5,0.35,0.25] [--rules "SVG2;STA"] [--device cuda] [--seconds 500]

Knobs are tuned to the density, and windows and budgets measured, on prompts for calibration. --ours: plans of calibatt's that run on the same prompts,
through the package. Writes peers.json after every rule and density; `python -m tools.peers.plot` makes a table and a plot.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

import torch

from .layout import Layout
from .plans import applied
from .rules import RULES, Call

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/tiny-wan"
CALIBRATION = 5  # prompts that measured rules record


class Harness:
    """WanPipeline whose self-attention a rule masks. `density`: of the last run, by pairs of tokens, mean over its calls."""

    def __init__(self, device, steps, frames, size):
        import diffusers.models.transformers.transformer_wan as wan
        from diffusers import WanPipeline

        self.device, self.steps, self.frames, self.size = device, steps, frames, size
        self.pipe = WanPipeline.from_pretrained(MODEL, dtype=torch.bfloat16 if device == "cuda" else torch.float32).to(device)
        self.pipe.vae.to(torch.float32)
        self.pipe.set_progress_bar_config(disable=True)
        self.layout = Layout(((frames - 1) // 4 + 1, size // 16, size // 16), device)
        self.rule = self.recorder = None
        self.layers = len(self.pipe.transformer.blocks)
        self._original = wan.dispatch_attention_fn
        wan.dispatch_attention_fn = self._attend
        self.calls = 0

    def _attend(self, q, k, v, *args, **kwargs):
        if q.shape[1] != self.layout.tokens or k.shape[1] != self.layout.tokens or not (self.rule or self.recorder):
            return self._original(q, k, v, *args, **kwargs)
        forward, layer = divmod(self.calls, self.layers)
        call = Call(forward // 2, layer, forward % 2, self.layout)
        self.calls += 1
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if self.recorder:
            self.recorder.record(call, q, k, v)
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            mask = self.rule.mask(call, q, k, v) if self.rule.mask.__code__.co_argcount == 5 else self.rule.mask(call, q, k)
            self._kept.append(mask.float().mean())
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return out.transpose(1, 2)

    @torch.no_grad()
    def videos(self, prompts, seeds, rule=None, recorder=None, decode=True):
        """→ 8-bit frames [prompts, frames, height, width, 3] on the CPU (None without decode)."""
        self.rule, self.recorder, self.calls, self._kept = rule, recorder, 0, []
        if rule:
            rule.reset()
        out = self.pipe(list(prompts), negative_prompt="", height=self.size, width=self.size, num_frames=self.frames, num_inference_steps=self.steps,
                        guidance_scale=4.0, generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                        output_type="pt" if decode else "latent").frames  # fmt: skip
        self.density = float(torch.stack(self._kept).mean()) if self._kept else 1.0
        return (out * 255).round().to(torch.uint8).cpu() if decode else None


def psnr(a, b):
    """dB of each video: [prompts]."""
    return (10 * torch.log10(255**2 / (a.float() - b.float()).square().flatten(1).mean(1).clamp(min=1e-9))).tolist()


def tune(harness, rule, density, prompts, seeds):
    """Sets rule.knob so that the density is the wanted one, within 1 % of it where that can be, on `prompts`."""
    low, high = rule.knob_range
    for _ in range(7):
        rule.knob = (low + high) / 2
        harness.videos(prompts, seeds, rule, decode=False)
        if abs(harness.density / density - 1) < 0.01:
            return
        low, high = (rule.knob, high) if harness.density < density else (low, rule.knob)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=ROOT / "out/peers")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--densities", default="0.5,0.35,0.25")
    parser.add_argument("--rules", default=";".join(RULES), help="separated by semicolons; may be empty")
    parser.add_argument("--ours", type=pathlib.Path, nargs="*", default=[], help="plans without reused steps")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begins nothing new after that")
    return parser.parse_args()


class Rows:
    """Runs rules on the held-out prompts and keeps what came out."""

    def __init__(self, args, harness):
        self.args, self.harness = args, harness
        held = (MODEL / "prompts/heldout.txt").read_text().splitlines()[: args.prompts]
        seeds = [args.seed + i for i in range(len(held))]
        self.batches = [(held[i : i + args.batch], seeds[i : i + args.batch]) for i in range(0, len(held), args.batch)]
        self.dense = [harness.videos(*batch) for batch in self.batches]
        device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        self.result = {"model": MODEL.name, "device": device, "torch": torch.__version__, "seed": args.seed, "steps": args.steps, "rows": []}

    def add(self, name, rule, wanted, density_of_run):
        start, values, densities = time.time(), [], []
        for batch, reference in zip(self.batches, self.dense):
            values += psnr(reference, self.harness.videos(*batch, rule))
            densities.append(density_of_run())
        quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        row = {"rule": name, "target_density": wanted, "density": statistics.mean(densities), "knob": rule and rule.knob, "prompts": len(values),
               "psnr_db": quartiles[1], "quartiles_db": [quartiles[0], quartiles[2]], "psnr_db_worst": min(values), "each_db": values,
               "seconds": time.time() - start}  # fmt: skip
        self.result["rows"].append(row)
        print(f"{name} at {row['density']:.3f}: {row['psnr_db']:.1f} dB (worst {row['psnr_db_worst']:.1f}), {row['seconds']:.0f} s", flush=True)
        (self.args.output / "peers.json").write_text(json.dumps(self.result, indent=1) + "\n")


def main():
    args = arguments()
    deadline = time.time() + args.seconds
    args.output.mkdir(parents=True, exist_ok=True)
    harness = Harness(args.device, args.steps, args.frames, args.size)
    known = (MODEL / "prompts/calibration_prompts.txt").read_text().splitlines()[:CALIBRATION]
    known_seeds = [10 + i for i in range(len(known))]
    rows = Rows(args, harness)
    for path in args.ours:
        with applied(harness.pipe, path) as density_of_run:
            rows.add("ours", None, None, density_of_run)
    for name in filter(None, args.rules.split(";")):
        rule = RULES[name](harness.layout)
        if rule.measured:
            harness.videos(known, known_seeds, recorder=rule, decode=False)
        for density in (float(text) for text in args.densities.split(",")):
            if time.time() > deadline:
                return
            if hasattr(rule, "finish"):
                rule.finish(density)
            if rule.tuned:
                tune(harness, rule, density, known[:2], known_seeds[:2])
            rows.add(name, rule, density, lambda: harness.density)


if __name__ == "__main__":
    main()
