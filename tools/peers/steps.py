"""Other methods' choice of the steps that run no forward, on tiny-wan in diffusers: PSNR to the dense run of the same seed, at equal cost.

    python -m tools.reuse_tradeoff --only plans --calibration-prompts 16 --mask-densities .86,.81,.73,.65,.62 …   # our plans, and masks alone
    python -m tools.peers.steps -o out/peers_steps --masks none out/reuse_tradeoff/masks/*.safetensors --ours out/reuse_tradeoff/plans/both_*.safetensors

Rules: TeaCache, MagCache, EasyCache and really fewer steps (`caches.py`), each alone and with our masks; and our plans of masks and reuse. What a rule
measures is measured on prompts for calibration, and its knob is set there so that a run costs one over the speedup: forwards times what one costs at the
density of its masks, attention's share of a dense one being --share. Of --masks those are used with which a rule of whole steps comes within 2 % of
the cost. Steps are diffusers' own, UniPC. Several prompts run at once.

Writes steps.json after every row. PSNR is of 8-bit frames. `python -m tools.reuse_tradeoff --only summary --peers steps.json` puts it beside our curves.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

import torch

from tools.reuse_tradeoff import forward_cost

from .caches import RULES, Ours
from .plans import applied, density_of

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/tiny-wan"
GUIDANCE = 4.0


class Cached(torch.nn.Module):
    """Stands for all blocks in a forward that is not computed: adds what they added at the last that was."""

    def __init__(self, residual):
        super().__init__()
        self.residual = residual

    def forward(self, hidden_states, *_):
        return hidden_states + self.residual


class Model:
    """The transformer of a WanPipeline with guidance, for a batch of prompts: all of it, or its ends with the blocks' last residual."""

    def __init__(self, device, dtype, steps, frames, size, batch):
        from diffusers import WanPipeline

        self.device, self.dense_steps, self.batch = device, steps, batch
        self.pipe = WanPipeline.from_pretrained(MODEL, dtype=dtype).to(device)
        self.pipe.vae.to(torch.float32)
        self.transformer, self.dtype = self.pipe.transformer, dtype
        self.blocks = self.transformer.blocks
        self.shape = (self.transformer.config.in_channels, (frames - 1) // 4 + 1, size // 8, size // 8)
        self.blocks[0].register_forward_pre_hook(lambda _, inputs: setattr(self, "_before", inputs[0]))
        self.blocks[-1].register_forward_hook(self._after_blocks)
        self.transformer.condition_embedder.register_forward_hook(lambda _, inputs, output: setattr(self, "embedding", output[1]))
        self.pipe._guidance_scale, self.pipe._guidance_scale_2 = GUIDANCE, None

    def _after_blocks(self, _, inputs, output):
        self._residual = output - self._before
        self.forwards += len(output)

    def _begin(self, prompts, steps):
        texts = [text for text, _ in prompts]
        # 512 as the pipe's call has it: encode_prompt's own default is another, and text is attended to with its padding.
        self.texts = self.pipe.encode_prompt(texts, negative_prompt="", do_classifier_free_guidance=True, max_sequence_length=512, device=self.device)
        self.steps = steps or self.dense_steps
        self.pipe.scheduler.set_timesteps(self.steps, device=self.device)
        self.pipe.scheduler.set_begin_index(0)
        self.residuals = {}
        noise = [torch.randn(self.shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32) for _, seed in prompts]
        return torch.stack(noise).to(self.device)

    def _branch(self, latents, step, name, reuse, rows):
        text = self.texts[0 if name == "cond" else 1]
        if reuse:
            self.transformer.blocks = torch.nn.ModuleList([Cached(self.residuals[name])])
        with self.transformer.cache_context(name, step_index=step, num_inference_steps=self.steps):
            timestep = self.pipe.scheduler.timesteps[step].expand(len(latents))
            out = self.transformer(hidden_states=latents.to(self.dtype), timestep=timestep, return_dict=False,
                                   encoder_hidden_states=text if rows is None else text[rows])[0].float()  # fmt: skip
        if reuse:
            self.transformer.blocks = self.blocks
        else:
            self.residuals[name] = self._residual
        return out

    def branches(self, latents, step, reuse=False, rows=None):
        """[conditional, unconditional], of all prompts of the batch or of those rows. reuse: the blocks' last residual in place of them."""
        return [self._branch(latents, step, name, reuse, rows) for name in ("cond", "uncond")]

    @torch.no_grad()
    def run(self, rule, prompts, notes=None):
        """prompts: [(text, seed)] → final latents, and forwards of a prompt on average. notes: takes what rules measure of a dense run."""
        parts, self.forwards = [], 0
        for at in range(0, len(prompts), self.batch):
            latents = self._begin(prompts[at : at + self.batch], rule.steps if rule else None)
            if rule:
                rule.begin(self)
            for step in range(self.steps):
                outs = rule.predict(self, latents, step) if rule else self.branches(latents, step)
                if notes is not None:
                    self._note(notes, outs[0], step)
                guided = outs[1] + GUIDANCE * (outs[0] - outs[1])
                latents = self.pipe.scheduler.step(guided, self.pipe.scheduler.timesteps[step], latents, return_dict=False)[0]
            parts.append(latents)
        return torch.cat(parts), self.forwards / len(prompts)

    def _note(self, notes, out, step):
        self.transformer.condition_embedder(self.pipe.scheduler.timesteps[step].expand(1), self.texts[0][:1])
        new = {"magnitudes": self.residuals["cond"].float().norm(dim=-1), "outputs": out, "embeddings": self.embedding.float()}
        for name, each in new.items():
            of_steps = notes.setdefault(name, [])
            if step < len(of_steps):  # another batch
                of_steps[step] = torch.cat((of_steps[step], each))
            else:
                of_steps.append(each)

    @torch.no_grad()
    def frames(self, latents):
        """8 bits, [frames, height, width, 3] of each prompt in turn."""
        config = self.pipe.vae.config
        mean, deviation = (torch.tensor(x, device=self.device).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
        for each in latents:
            video = self.pipe.vae.decode(each[None] * deviation + mean, return_dict=False)[0]
            yield (self.pipe.video_processor.postprocess_video(video, output_type="pt")[0] * 255).round().to(torch.uint8)


def psnr(a, b):
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean().clamp(min=1e-9)))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=ROOT / "out/peers_steps")
    parser.add_argument("--speedups", default="1.5,2,3")
    parser.add_argument("--masks", nargs="*", default=["none"], help="plans without reused steps; none: dense attention")
    parser.add_argument("--ours", type=pathlib.Path, nargs="*", default=[], help="plans of masks and reused steps")
    parser.add_argument("--rules", default=",".join(RULES))
    parser.add_argument("--share", type=float, default=0.82, help="attention's share of a dense forward")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--first-prompt", type=int, default=0)
    parser.add_argument("--calibration-prompts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1, help="of the first held-out prompt; the i-th has seed + i")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begins no row after that")
    return parser.parse_args()


def combinations(args):
    """(speedup, plan of the masks or None, steps that run, not yet whole), such that the cost is one over the speedup."""
    densities = {None if masks == "none" else pathlib.Path(masks): 1.0 if masks == "none" else density_of(masks) for masks in args.masks}
    found = []
    for speedup in (float(text) for text in args.speedups.split(",")):
        for plan, density in densities.items():
            steps = args.steps / (speedup * forward_cost(density, args.share))
            if plan is None or (round(steps) < args.steps and abs(round(steps) / steps - 1) <= 0.02):
                found.append((speedup, plan, steps))
    return found


class Rows:
    """Runs rules on the held-out prompts and keeps what came out."""

    def __init__(self, args, model, prompts):
        self.args, self.model, self.prompts = args, model, prompts
        latents, self.dense_forwards = model.run(None, prompts)
        self.dense = list(model.frames(latents))
        device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
        self.result = {"model": MODEL.name, "device": device, "dtype": str(model.dtype), "seed": args.seed, "first_prompt": args.first_prompt,
                       "steps": args.steps, "share": args.share, "rows": []}  # fmt: skip

    def add(self, rule, speedup, plan, density_of_run):
        """Of a rule whose knob is set, the plan being applied."""
        start = time.time()
        latents, forwards = self.model.run(rule, self.prompts)
        values = [psnr(frames, reference) for frames, reference in zip(self.model.frames(latents), self.dense)]
        name, density = plan.stem if plan else "", density_of_run()
        row = {"rule": rule.name, "masks": name, "speedup": speedup, "forwards": forwards, "density": density,
               "cost": forwards / self.dense_forwards * forward_cost(density, self.args.share), "knob": rule.knob,
               "skipped": [step for step, skip in enumerate(rule.skips) if skip], "prompts": len(values), "psnr_db": statistics.median(values),
               "psnr_db_worst": min(values), "each_db": [round(value, 3) for value in values], "seconds": round(time.time() - start, 1)}  # fmt: skip
        self.result["rows"].append(row)
        (self.args.output / "steps.json").write_text(json.dumps(self.result, indent=1) + "\n")
        print(f"{rule.name}{name and ', masks ' + name}: {forwards:.1f} forwards of density {density:.2f}, cost {row['cost']:.3f}: "
              f"{row['psnr_db']:.1f} dB (worst {row['psnr_db_worst']:.1f}), {row['seconds']:.0f} s", flush=True)  # fmt: skip


def main():
    args = arguments()
    deadline = time.time() + args.seconds
    args.output.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, args.dtype or ("float16" if args.device == "cuda" else "float32"))
    model = Model(args.device, dtype, args.steps, args.frames, args.size, args.batch)
    known = [(text, i) for i, text in enumerate((MODEL / "prompts/calibration_prompts.txt").read_text().splitlines())][: args.calibration_prompts]
    held = [(text, args.seed + i) for i, text in enumerate((MODEL / "prompts/heldout.txt").read_text().splitlines())]
    rows = Rows(args, model, held[args.first_prompt : args.first_prompt + args.prompts])
    for path in args.ours:
        with applied(model.pipe, path) as density_of_run:
            rows.add(Ours(), None, path, density_of_run)
    notes = {}
    model.run(None, known, notes)
    for speedup, plan, steps in combinations(args):
        with applied(model.pipe, plan) as density_of_run:
            for kind in (kind for name, kind in RULES.items() if name in args.rules.split(",")):
                if time.time() > deadline:
                    return
                rule = kind()
                rule.measure(notes)
                rule.tune(model, steps, known)
                rows.add(rule, speedup, plan, density_of_run)


if __name__ == "__main__":
    main()
