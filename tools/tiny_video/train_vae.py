"""Stage 1: the autoencoder, on clips rendered as it trains.

  python -m tools.tiny_video.train_vae --state training_state --minutes 6

Random crops first (17 frames of 128x128 for Wan), whole frames and whole clips in the last part. Writes vae.pt (weights, latent mean
and deviation) when done; the state can be resumed while the stage is unfinished.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import random
import time

import torch
import torch.nn.functional as F

from . import architecture as architectures
from . import state
from .clips import SIZE, render, sample_scene, to_video
from .optim import Optimiser

SEED = 1


class ClipPool:
    """Rendered clips, uint8 on the device, a few replaced at every step."""

    def __init__(self, clips: int, device, seed: int, frames: int, size: int):
        self.rng, self.device, self.frames, self.size = random.Random(seed), device, frames, size
        self.next = 0
        self.clips = torch.cat([self.draw(min(16, clips - i)) for i in range(0, clips, 16)])

    def draw(self, count: int) -> torch.Tensor:
        return render([sample_scene(self.rng) for _ in range(count)], self.device, self.frames, self.size)

    def refresh(self, count: int) -> None:
        for clip in self.draw(count):
            self.clips[self.next] = clip
            self.next = (self.next + 1) % len(self.clips)

    def crops(self, frames: int, size: int, batch: int) -> torch.Tensor:
        rng, rows = self.rng, []
        for _ in range(batch):
            i, t = rng.randrange(len(self.clips)), rng.randint(0, self.frames - frames)
            y, x = (rng.randint(0, self.size - size) for _ in range(2))
            rows.append(self.clips[i, t : t + frames, y : y + size, x : x + size])
        return to_video(torch.stack(rows))


def reconstruction_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Differences of colour, of edges in space and time, and of local mean colour, which keeps hues from drifting."""
    error = output.float() - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean() + 0.5 * error.diff(dim=-3).abs().mean()
    local = F.avg_pool3d(error, (1, 8, 8)).abs().mean()
    return error.abs().mean() + 2.0 * error.square().mean() + 0.5 * edges + local


def kl_divergence(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """To the standard normal, mean over elements, nats."""
    mean, logvar = mean.float(), logvar.float().clamp(-30, 20)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def psnr(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """dB per clip, of values in [-1, 1]."""
    error = (output.float().clamp(-1, 1) - target).square().flatten(1).mean(1)
    return 10 * torch.log10(4.0 / error.clamp_min(1e-10))


@torch.no_grad()
def validate(model, pool: ClipPool, clips: int, autocast) -> dict:
    """PSNR over whole clips and the worst error of an object's or texture's local mean colour (8-bit levels)."""
    values, hue = [], 0.0
    for first in range(0, clips, 2):
        target = to_video(pool.clips[first : first + 2])
        with autocast():
            output = model.decode(model.encode(target)[0])
        values.append(psnr(output, target))
        local = F.avg_pool3d(output.float().clamp(-1, 1) - target, (1, 16, 16)).abs()
        hue = max(hue, float(local.amax()) * 127.5)
    values = torch.cat(values)
    return {"psnr": round(float(values.mean()), 2), "psnr_min": round(float(values.min()), 2), "colour_error_max": round(hue, 1)}


@torch.no_grad()
def latent_statistics(model, pool: ClipPool, clips: int, autocast) -> tuple[list[float], list[float]]:
    sums = []
    for first in range(0, clips, 2):
        with autocast():
            mean, _ = model.encode(to_video(pool.clips[first : first + 2]))
        mean = mean.float()
        sums.append(torch.stack([mean.mean(dim=(0, 2, 3, 4)), mean.square().mean(dim=(0, 2, 3, 4))]))
    first, second = torch.stack(sums).mean(0)
    return first.tolist(), (second - first.square()).sqrt().tolist()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    architectures.add_argument(parser)
    parser.add_argument("--state", default="training_state", type=pathlib.Path)
    parser.add_argument("--minutes", type=float, default=6.0, help="time limit of this stretch")
    parser.add_argument("--plan-minutes", type=float, help="the whole stage's length, if it takes several stretches")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pool", type=int, default=384)
    parser.add_argument("--muon-rate", type=float, default=0.006)
    parser.add_argument("--adamw-rate", type=float, default=2e-3)
    parser.add_argument("--kl-weight", type=float, default=1e-4)
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps (tests)")
    parser.add_argument("--tiny", action="store_true", help="small crops (tests)")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    architecture = architectures.load(arguments.model)
    device = torch.device(arguments.device)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(SEED)

    def autocast():
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")

    vae = architecture.make_vae()
    architecture.initialise_vae(vae)
    vae.to(device)
    model = architecture.WholeClip(vae, compiled=device.type == "cuda" and not arguments.no_compile)
    optimiser = Optimiser(*architecture.vae_split(vae), betas=(0.9, 0.99))

    done, step = 0.0, 0  # seconds of this stage, steps
    saved = state.load(arguments.state / "vae_training.pt", device)
    if saved is not None:
        vae.load_state_dict(saved["vae"])
        optimiser.load_state_dict(saved["optimiser"])
        done, step = saved["seconds"], saved["step"]
    stretch = arguments.minutes * 60
    plan = arguments.plan_minutes * 60 if arguments.plan_minutes else done + stretch
    log = state.Log(arguments.state / "vae.jsonl", stage="vae")
    phases = architecture.TINY_VAE_PHASES if arguments.tiny else architecture.VAE_PHASES
    length, size = (architecture.TINY_FRAMES, 64) if arguments.tiny else (architecture.NUM_FRAMES, SIZE)
    pool = ClipPool(2 if arguments.tiny else arguments.pool, device, SEED + step, length, size)
    log.write(event="pool", clips=len(pool.clips), seconds=round(time.perf_counter() - start, 1))

    reserve = 0.0 if arguments.tiny else architecture.VAE_RESERVE
    recent: list[torch.Tensor] = []
    first_step, last_log = step, time.perf_counter()
    while step - first_step < arguments.steps:
        elapsed = time.perf_counter() - start
        progress = (done + elapsed) / max(1e-9, plan - reserve)
        if elapsed > stretch - reserve or progress >= 1:
            break
        kinds = next(kinds for until, kinds in phases if progress <= until)
        frames, size, batch = kinds[step % len(kinds)]
        target = pool.crops(frames, size, batch)
        with autocast():
            mean, logvar = model.encode(target)
            latents = mean + torch.exp(0.5 * logvar.clamp(-30, 20)) * torch.randn_like(mean)
            output = model.decode(latents)
        loss = reconstruction_loss(output, target)
        kl = kl_divergence(mean, logvar)
        (loss + arguments.kl_weight * kl).backward()
        warmup = min(1.0, (step + 1) / 50)
        decay = 0.5 * (1 + math.cos(math.pi * max(0.0, progress - 0.2) / 0.8)) * 0.99 + 0.01
        norm = optimiser.step(arguments.muon_rate * warmup * decay, arguments.adamw_rate * warmup * decay)
        recent.append(torch.stack([loss.detach(), kl.detach(), psnr(output.detach(), target).mean(), norm]))
        if step % 4 == 0:
            pool.refresh(1 if arguments.tiny else 4)
        step += 1
        if step % 50 == 0 or arguments.tiny:
            values = torch.stack(recent).mean(0).tolist()
            rate = len(recent) / (time.perf_counter() - last_log)
            log.write(step=step, loss=round(values[0], 5), kl=round(values[1], 3), psnr=round(values[2], 2), norm=round(values[3], 3),
                      shape=[frames, size, batch], steps_per_second=round(rate, 2), seconds=round(done + elapsed, 1))  # fmt: skip
            recent, last_log = [], time.perf_counter()

    done += time.perf_counter() - start
    vae.eval()
    fresh = 2 if arguments.tiny else 32
    quality = validate(model, ClipPool(fresh, device, SEED + 999, pool.frames, pool.size), fresh, autocast)
    mean, std = latent_statistics(model, pool, min(128, len(pool.clips)), autocast)
    log.write(event="validation", step=step, **quality, seconds=round(done, 1))
    log.write(event="latents", mean=[round(v, 4) for v in mean], std=[round(v, 4) for v in std])
    state.save(arguments.state / "vae_training.pt",
               {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "seconds": done, "step": step})  # fmt: skip
    state.save(arguments.state / "vae.pt", {"vae": state.halved(vae.state_dict()), "mean": mean, "std": std, **quality})


if __name__ == "__main__":
    main()
