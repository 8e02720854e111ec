"""Videos of the model in training or exported, on a GPU in batches: contact sheets to look at, accuracy by the judge.

  python -m tools.tiny_video.sample --state training_state -o DIR

Noise comes from torch's CPU generator, a seed per prompt, so a video equals the diffusers pipeline's of that prompt and seed up to
arithmetic.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import tempfile
import time

import numpy
import torch

from . import architecture as architectures
from . import state
from .clips import SIZE, caption, sample_scene, to_clips
from .judging import judge_files
from .prompts import DEFAULT_FOLDER
from .tokenizer import CaptionTokenizer


class Sampler:
    def __init__(self, architecture, parts, tokenizer_folder, device):
        self.architecture = architecture
        self.transformer, self.text_encoder, vae = (module.to(device).eval() for module in parts)
        architecture.make_fast(self.transformer)
        self.vae, self.device = architecture.WholeClip(vae), torch.device(device)
        self.tokenizer = CaptionTokenizer(tokenizer_folder, architecture.TRAIN_PROMPT_TOKENS)

    def autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def noise(self, seed: int, frames: int, size: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(1, self.architecture.LATENT_CHANNELS, frames, size, size, generator=generator)

    @torch.no_grad()
    def latents(self, prompts, seeds, steps, guidance, *scheduling, frames=None, size=SIZE // 8):
        """Denoises one batch with classifier-free guidance against the empty prompt. scheduling: for make_scheduler."""
        architecture = self.architecture
        frames = frames or architecture.LATENT_FRAMES
        x = torch.cat([self.noise(seed, frames, size) for seed in seeds]).to(self.device)
        ids = self.tokenizer([*prompts, *[""] * len(prompts)]).to(self.device)
        scheduler = architecture.make_scheduler(*scheduling)
        architecture.set_timesteps(scheduler, steps, self.device)
        with self.autocast():
            text = architecture.encode_text(self.text_encoder, ids)
        for t in scheduler.timesteps:
            with self.autocast():
                both = architecture.call(self.transformer, torch.cat([x, x]), t.expand(2 * len(x)), text).float()
            conditional, empty = both.chunk(2)
            x = scheduler.step(empty + guidance * (conditional - empty), t, x, return_dict=False)[0]
        return x

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Normalised latents -> uint8 [B, T, H, W, 3] on the CPU."""
        shape = (1, -1, 1, 1, 1)
        settings = self.vae.vae.config
        mean, std = (torch.tensor(v, device=self.device).view(shape) for v in (settings.latents_mean, settings.latents_std))
        with self.autocast():
            clips = [to_clips(self.vae.decode(z[None] * std + mean)).cpu() for z in latents]
        return torch.cat(clips)

    def videos(self, prompts, seeds, steps, guidance, *scheduling, batch=16, **size) -> torch.Tensor:
        clips = []
        for first in range(0, len(prompts), batch):
            part = slice(first, first + batch)
            clips.append(self.decode(self.latents(prompts[part], seeds[part], steps, guidance, *scheduling, **size)))
        return torch.cat(clips)


def sheet(clips: torch.Tensor, titles: list[str], path: pathlib.Path, columns: int = 8, pixels: int = 96) -> None:
    """One row per clip: frames at equal distances, the title underneath."""
    from PIL import Image, ImageDraw

    shown = torch.linspace(0, clips.shape[1] - 1, columns).round().long()
    line = 13
    picture = Image.new("RGB", (columns * pixels, len(clips) * (pixels + line)), "white")
    draw = ImageDraw.Draw(picture)
    for row, (clip, title) in enumerate(zip(clips, titles)):
        for column, frame in enumerate(clip[shown].numpy()):
            tile = Image.fromarray(frame).resize((pixels, pixels), Image.Resampling.LANCZOS)
            picture.paste(tile, (column * pixels, row * (pixels + line)))
        draw.text((2, row * (pixels + line) + pixels), title, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, quality=88)


def judged(clips: torch.Tensor, labels: list[dict], workers: int) -> list[dict]:
    """The judge's verdict on each clip."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = []
        for index, (clip, label) in enumerate(zip(clips, labels)):
            path = pathlib.Path(folder) / f"{index:02d}.npy"
            numpy.save(path, clip.numpy())
            jobs.append((str(path), label))
        return judge_files(jobs, workers)


ASPECTS = ("colour", "shape", "motion", "background")


def accuracy(verdicts: list[dict]) -> dict[str, float]:
    """Share of clips judged right, in percent; `all` needs all four."""
    result = {a: round(100 * sum(bool(v[a]) for v in verdicts) / max(1, len(verdicts)), 1) for a in ASPECTS}
    result["all"] = round(100 * sum(all(v[a] for a in ASPECTS) for v in verdicts) / max(1, len(verdicts)), 1)
    return result


def read_prompts(path: pathlib.Path, count: int) -> tuple[list[str], list[dict]]:
    """The held-out prompts and their labels; without the file, others of the held-out split."""
    if not path.exists():
        rng = random.Random(0)
        scenes = [sample_scene(rng, "heldout", second_share=0.0) for _ in range(count)]
        return [caption(scene, rng) for scene in scenes], [scene.to_dict() for scene in scenes]
    entries = json.loads(path.read_text())
    entries = entries["prompts"] if isinstance(entries, dict) else entries
    return [entry["prompt"] for entry in entries][:count], entries[:count]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    architectures.add_argument(parser)
    parser.add_argument("--state", default="training_state", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, help="default: the committed model's")
    parser.add_argument("--heldout", type=pathlib.Path, default=DEFAULT_FOLDER / "heldout_prompts.json")
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--count", type=int, default=64, help="prompts, from the first")
    parser.add_argument("--settings", nargs="+", help="steps,guidance(,shift for Wan), each sampled and judged; default: the model's")
    parser.add_argument("--seed", type=int, default=1000, help="of the first prompt")
    parser.add_argument("--frames", type=int, help="latent frames; default: the whole clip's")
    parser.add_argument("--sheet-rows", type=int, default=16)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-judge", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="two latent frames of 64x64 (tests)")
    arguments = parser.parse_args(argv)
    architecture = architectures.load(arguments.model)
    tokenizer = arguments.tokenizer or architecture.FOLDER / "tokenizer"
    sampler = Sampler(architecture, state.load_parts(architecture, arguments.state), tokenizer, arguments.device)
    prompts, labels = read_prompts(arguments.heldout, arguments.count)
    seeds = [arguments.seed + i for i in range(len(prompts))]
    size = dict(frames=2, size=8) if arguments.tiny else dict(frames=arguments.frames)
    log = state.Log(arguments.state / "samples.jsonl", stage="sample")
    for setting in arguments.settings or [architecture.SETTING]:
        steps, guidance, *scheduling = (float(v) for v in setting.split(","))
        start = time.perf_counter()
        clips = sampler.videos(prompts, seeds, int(steps), guidance, *scheduling, **size)
        sampled = time.perf_counter() - start
        name = setting.replace(",", "_")
        rows = min(arguments.sheet_rows, len(clips))
        sheet(clips[:rows], prompts, arguments.output / f"sheet_{name}.jpg")
        if arguments.no_judge:
            log.write(setting=setting, prompts=len(clips), sampling_seconds=round(sampled, 1))
            continue
        verdicts = judged(clips, labels, arguments.workers)
        log.write(setting=setting, prompts=len(clips), accuracy=accuracy(verdicts), sampling_seconds=round(sampled, 1),
                  seconds=round(time.perf_counter() - start, 1))  # fmt: skip
        (arguments.output / f"judged_{name}.json").write_text(json.dumps(
            {"setting": setting, "accuracy": accuracy(verdicts), "prompts": prompts, "verdicts": verdicts}, default=float))  # fmt: skip


if __name__ == "__main__":
    main()
