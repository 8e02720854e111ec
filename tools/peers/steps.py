"""Other methods' choice of the steps that run no forward, on tiny-wan in diffusers: PSNR to the dense run of the same seed.

    python -m tools.peers.steps -o out/peers_steps [--prompts 64] [--forwards 26,20,14,10] [--masks plan.safetensors,…] [--device cuda]

Each rule is written from its paper: TeaCache (arXiv 2411.19108), MagCache (2506.09045), EasyCache (2507.02860). What they measure is
measured on prompts for calibration, and their threshold is set there so that a run makes so many of its forwards (two a step). --masks: for each
number of forwards a plan (or a dash) whose masks the forwards that run use, by the package calibatt. Steps are diffusers' own, UniPC.

Writes steps.json after every rule. PSNR is of 8-bit frames; density and steps of a plan with masks are its file's.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import time

import numpy
import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/tiny-wan"
CALIBRATION = 4  # prompts
GUIDANCE = 4.0


class Cached(torch.nn.Module):
    """Stands for all blocks in a forward that is not computed: adds what they added at the last that was."""

    def __init__(self, residual):
        super().__init__()
        self.residual = residual

    def forward(self, hidden_states, *_):
        return hidden_states + self.residual


class Model:
    """The transformer of a WanPipeline with guidance, one prompt at a time: all of it, or its ends with the blocks' last residual."""

    def __init__(self, device, dtype, steps, frames, size):
        from diffusers import WanPipeline

        self.device, self.steps = device, steps
        self.pipe = WanPipeline.from_pretrained(MODEL, dtype=dtype).to(device)
        self.pipe.vae.to(torch.float32)
        self.transformer, self.dtype = self.pipe.transformer, dtype
        self.blocks = self.transformer.blocks
        self.shape = (1, self.transformer.config.in_channels, (frames - 1) // 4 + 1, size // 8, size // 8)
        self.blocks[0].register_forward_pre_hook(lambda _, inputs: setattr(self, "_before", inputs[0]))
        self.blocks[-1].register_forward_hook(lambda _, inputs, output: setattr(self, "_after", output))
        self.transformer.condition_embedder.register_forward_hook(lambda _, inputs, output: setattr(self, "embedding", output[1]))
        self.pipe._guidance_scale, self.pipe._guidance_scale_2 = GUIDANCE, None

    def begin(self, prompt, seed):
        self.texts = self.pipe.encode_prompt(prompt, negative_prompt="", do_classifier_free_guidance=True, device=self.device)
        self.pipe.scheduler.set_timesteps(self.steps, device=self.device)
        self.pipe.scheduler.set_begin_index(0)
        noise = torch.randn(self.shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=torch.float32)
        self.residuals, self.forwards = {}, 0
        return noise.to(self.device)

    def branch(self, latents, step, name, reuse):
        text = self.texts[0 if name == "cond" else 1]
        if reuse:
            self.transformer.blocks = torch.nn.ModuleList([Cached(self.residuals[name])])
        with self.transformer.cache_context(name, step_index=step, num_inference_steps=self.steps):
            timestep = self.pipe.scheduler.timesteps[step].expand(1)
            out = self.transformer(hidden_states=latents.to(self.dtype), timestep=timestep, encoder_hidden_states=text, return_dict=False)[0].float()
        if reuse:
            self.transformer.blocks = self.blocks
        else:
            self.residuals[name] = self._after - self._before
            self.forwards += 1
        return out

    def branches(self, latents, step, reuse=False):
        """(conditional, unconditional)"""
        return [self.branch(latents, step, name, reuse) for name in ("cond", "uncond")]

    def step(self, conditional, unconditional, step, latents):
        guided = unconditional + GUIDANCE * (conditional - unconditional)
        return self.pipe.scheduler.step(guided, self.pipe.scheduler.timesteps[step], latents, return_dict=False)[0]

    def frames(self, latents):
        """8 bits, [frames, height, width, 3]"""
        config = self.pipe.vae.config
        mean, deviation = (torch.tensor(x, device=self.device).view(1, -1, 1, 1, 1) for x in (config.latents_mean, config.latents_std))
        video = self.pipe.vae.decode(latents * deviation + mean, return_dict=False)[0]
        return (self.pipe.video_processor.postprocess_video(video, output_type="pt")[0] * 255).round().to(torch.uint8)


def embedding_at(model, step):
    """What TeaCache looks at: the time embedding that modulates the blocks."""
    timestep = model.pipe.scheduler.timesteps[step].expand(1)
    model.transformer.condition_embedder(timestep, model.texts[0])
    return model.embedding.float()


class Scheduled:
    """A rule whose steps do not depend on the prompt."""

    name = ""

    def begin(self, model):
        pass

    def predict(self, model, latents, step):
        reuse = self.skips[step]
        return model.branches(latents, step, reuse)

    def schedule(self, threshold, changes):
        """Changes add up since the last step that ran; below the threshold a step is skipped. The first steps and the last one run."""
        skips, total, in_a_row = [], 0.0, 0
        for step, change in enumerate(changes):
            total = self.added(total, change, in_a_row)
            skip = self.first_steps <= step < len(changes) - 1 and total < threshold and in_a_row < self.most_in_a_row
            in_a_row = in_a_row + 1 if skip else 0
            if not skip:
                total = self.reset()
            skips.append(skip)
        return skips

    def tune(self, model, forwards, prompts):
        """The least threshold with so few forwards, or else as few as there can be."""
        candidates = numpy.geomspace(1e-5, 30, 4000)
        low, high = 0, len(candidates) - 1
        while low < high:
            middle = (low + high) // 2
            skips = self.schedule(candidates[middle], self.changes)
            low, high = (low, middle) if 2 * (len(skips) - sum(skips)) <= forwards else (middle + 1, high)
        self.knob = float(candidates[low])
        self.skips = self.schedule(self.knob, self.changes)


class TeaCache(Scheduled):
    """Relative change of the time embedding, by a polynomial of degree 4 that says what the output's change then is."""

    name, most_in_a_row = "TeaCache", 99
    first_steps = 1

    def added(self, total, change, _):
        return total + change

    def reset(self):
        return 0.0

    def measure(self, runs):
        inputs = [[0.0] + relative_changes(run["embeddings"]) for run in runs][0]
        outputs = numpy.mean([[0.0] + relative_changes(run["outputs"]) for run in runs], axis=0)
        scale = max(inputs)
        fit = numpy.polyfit(numpy.array(inputs[1:]) / scale, outputs[1:], 4)
        self.changes = [0.0] + [abs(float(numpy.polyval(fit, x / scale))) for x in inputs[1:]]


class MagCache(Scheduled):
    """How much the residual's magnitude changes from step to step, averaged over the prompts; the product since the last that ran."""

    name, most_in_a_row = "MagCache", 4

    def added(self, total, ratio, in_a_row):
        product, error = (1.0, 0.0) if in_a_row == 0 else self._state
        product *= ratio
        error += abs(1 - product)
        self._state = (product, error)
        return error

    def reset(self):
        return 0.0

    def measure(self, runs):
        self.first_steps = round(0.2 * len(runs[0]["magnitudes"]))
        ratios = []
        for step in range(1, len(runs[0]["magnitudes"])):
            ratios.append(statistics.mean(float((run["magnitudes"][step] / run["magnitudes"][step - 1]).mean()) for run in runs))
        self.changes = [1.0] + ratios


class EasyCache:
    """Online: the output is taken to change with the latents as it last did; the residual is that of the whole transformer."""

    name, first_steps = "EasyCache", 4

    def measure(self, runs):
        pass

    def begin(self, model):
        self.total, self.rate, self.latents, self.out, self.ran = 0.0, None, None, None, None

    def predict(self, model, latents, step):
        before, self.latents = self.latents, latents
        if self.rate is not None and self.first_steps <= step < model.steps - 1:
            self.total += float(self.rate * (latents - before).abs().mean() / self.out.abs().mean())
            if self.total < self.knob:
                outs = [latents + residual for residual in self.residuals]
                self.out = outs[0]
                return outs
        outs = model.branches(latents, step)
        self.total = 0.0
        if self.ran is not None:
            self.rate = (outs[0] - self.ran[1]).abs().mean() / (latents - self.ran[0]).abs().mean()
        self.ran, self.out = (latents, outs[0]), outs[0]
        self.residuals = [out - latents for out in outs]
        return outs

    def tune(self, model, forwards, prompts):
        low, high = 1e-3, 3.0
        for _ in range(9):
            self.knob = (low * high) ** 0.5
            mean = statistics.mean(run(model, self, *prompt)[1] for prompt in prompts)
            if abs(mean - forwards) < 0.6:
                return
            low, high = (self.knob, high) if mean > forwards else (low, self.knob)


RULES = (TeaCache, MagCache, EasyCache)


def relative_changes(tensors):
    return [float((b - a).abs().mean() / a.abs().mean()) for a, b in zip(tensors, tensors[1:])]


@torch.no_grad()
def run(model, rule, prompt, seed, notes=None):
    """→ final latents, forwards"""
    latents = model.begin(prompt, seed)
    if rule:
        rule.begin(model)
    for step in range(model.steps):
        outs = rule.predict(model, latents, step) if rule else model.branches(latents, step)
        if notes is not None:
            residual = model.residuals["cond"].float()
            notes.setdefault("magnitudes", []).append(residual.norm(dim=-1))
            notes.setdefault("outputs", []).append(outs[0])
            notes.setdefault("embeddings", []).append(embedding_at(model, step))
        latents = model.step(*outs, step, latents)
    return latents, model.forwards


def psnr(a, b):
    return float(10 * torch.log10(255**2 / (a.float() - b.float()).square().mean().clamp(min=1e-9)))


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=ROOT / "out/peers_steps")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--first-prompt", type=int, default=0)
    parser.add_argument("--forwards", default="26,20,14,10", help="of two a step")
    parser.add_argument("--masks", default="", help="a plan, or -, for each number of forwards")
    parser.add_argument("--rules", default=",".join(rule.name for rule in RULES))
    parser.add_argument("--seed", type=int, default=1, help="of the first held-out prompt; the i-th has seed + i")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begins no rule after that")
    return parser.parse_args()


def tuned_rules(args, model, calibration):
    """(rule, forwards, plan of its masks), thresholds set; dense runs measure what the rules measure."""
    notes = []
    for prompt in calibration:
        notes.append({})
        run(model, None, *prompt, notes[-1])
    numbers = [int(text) for text in args.forwards.split(",")]
    plans = args.masks.split(",") if args.masks else ["-"] * len(numbers)
    for number, plan in zip(numbers, plans):
        for kind in RULES:
            if kind.name in args.rules.split(","):
                rule = kind()
                rule.measure(notes)
                rule.tune(model, number, calibration)
                yield rule, number, None if plan == "-" else plan


def main():
    args = arguments()
    deadline = time.time() + args.seconds
    args.output.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, args.dtype or ("float16" if args.device == "cuda" else "float32"))
    model = Model(args.device, dtype, args.steps, args.frames, args.size)
    held = (MODEL / "prompts/heldout.txt").read_text().splitlines()
    held = [(text, args.seed + i) for i, text in enumerate(held)][args.first_prompt : args.first_prompt + args.prompts]
    known = [(text, i) for i, text in enumerate((MODEL / "prompts/calibration_prompts.txt").read_text().splitlines()[:CALIBRATION])]
    rules = list(tuned_rules(args, model, known))
    with torch.no_grad():
        dense = [model.frames(run(model, None, *prompt)[0]) for prompt in held]
        result = {"model": MODEL.name, "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu", "dtype": str(dtype),
                  "seed": args.seed, "first_prompt": args.first_prompt, "steps": args.steps, "rows": []}  # fmt: skip
        for rule, number, plan in rules:
            if time.time() > deadline:
                break
            start, density = time.time(), 1.0
            if plan:
                import calibatt

                calibatt.apply(model.pipe, plan, on_mismatch="warn")
            ends = [run(model, rule, *prompt) for prompt in held]
            if plan:
                density = calibatt.summary(model.pipe).density
                calibatt.restore(model.pipe)
            values = [psnr(frames, model.frames(latents)) for frames, (latents, _) in zip(dense, ends)]
            row = {"rule": rule.name, "masks": plan, "density": density, "target_forwards": number, "forwards": statistics.mean(count for _, count in ends), "knob": rule.knob,
                   "prompts": len(values), "psnr_db": statistics.median(values), "psnr_db_worst": min(values), "each_db": values,
                   "skipped": [step for step, skip in enumerate(getattr(rule, "skips", [])) if skip], "seconds": time.time() - start}  # fmt: skip
            result["rows"].append(row)
            print(f"{rule.name}, {row['forwards']:.1f} forwards{' with masks' if plan else ''}: {row['psnr_db']:.1f} dB (worst {row['psnr_db_worst']:.1f}), "
                  f"{row['seconds']:.0f} s", flush=True)  # fmt: skip
            (args.output / "steps.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
