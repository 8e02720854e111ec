"""Stage 2: transformer and text encoder together, by flow matching on the frozen autoencoder's latents.

  python -m tools.tiny_video.train_dit --state training_state --minutes 9            # one stretch, resumes the last
  python -m tools.tiny_video.train_dit --state training_state --minutes 9 --finish   # the last one: rates fall to zero

x = (1 - s) x0 + s noise, target noise - x0 (Mochi: x0 - noise), timestep 1000 s (1000 (1 - s)), s = shift u / (1 + (shift - 1) u) with u logit-normal, and a
share of nearly pure noise.
A curriculum: single frames first (shape, colour, background, text), then the first second, then whole clips. The causal
autoencoder makes the first latent frames of a clip independent of the rest, so all three share one latent space.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import time

import torch

from . import architecture as architectures
from . import state
from .clips import SIZE
from .compiling import compile_blocks, eager
from .latent_pool import LatentPool
from .optim import Average, Optimiser
from .tokenizer import CaptionTokenizer

SEED = 2
CAPTION_DROPOUT = 0.12
# The share of noise levels drawn evenly from [0.9, 1]. A moving object shows through 97 % noise, so only above that does the
# text alone say where it goes; the logit-normal hardly ever draws such levels, and left was as often right without this.
HIGH_NOISE_SHARE = 0.25
VALIDATION_SIGMAS = (0.2, 0.5, 0.7, 0.85, 0.95, 0.99)
TINY_PHASES = ((1e-3, (1,)), (1e9, (3, 1)))  # of architecture.TINY_KINDS, as architecture.PHASES of architecture.KINDS


def sigmas(count: int, shift: float, device, generator, high_share: float = HIGH_NOISE_SHARE) -> torch.Tensor:
    """Noise levels: shifted logit-normal, and the last `high_share` of the batch even in [0.9, 1]; both stratified."""
    high = round(count * high_share)
    u = (torch.arange(count - high, device=device) + torch.rand(count - high, device=device, generator=generator)) / (count - high)
    t = torch.sigmoid(torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4)))
    usual = shift * t / (1 + (shift - 1) * t)
    even = (torch.arange(high, device=device) + torch.rand(high, device=device, generator=generator)) / max(1, high)
    return torch.cat([usual, 1.0 - 0.1 * even])


class Model:
    """The two modules that are trained, and how a loss comes from them."""

    def __init__(self, architecture, device, compiled: bool):
        torch.manual_seed(SEED)
        self.architecture, self.device = architecture, device
        self.transformer, self.text_encoder = architecture.make_transformer(), architecture.make_text_encoder()
        architecture.initialise_transformer(self.transformer)
        architecture.initialise_text_encoder(self.text_encoder)
        self.transformer.to(device).train()
        self.text_encoder.to(device).train()
        architecture.make_fast(self.transformer)
        if compiled:
            compile_blocks(architecture.blocks(self.transformer))

    def autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def predict(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            text = self.architecture.encode_text(self.text_encoder, ids)
            return self.architecture.call(self.transformer, noisy, self.architecture.timestep(sigma), text).float()

    def loss(self, latents, ids, sigma, noise) -> torch.Tensor:
        """Per clip."""
        s = sigma.view(-1, 1, 1, 1, 1)
        velocity = self.predict((1 - s) * latents + s * noise, sigma, ids)
        return (velocity - self.architecture.target(latents, noise)).square().flatten(1).mean(1)


@torch.no_grad()
def validate(model: Model, latents, ids) -> dict:
    """Mean loss at fixed noise levels, with fixed noise."""
    generator = torch.Generator(device=model.device).manual_seed(SEED)
    result = {}
    for sigma in VALIDATION_SIGMAS:
        total = 0.0
        for first in range(0, len(latents), 16):
            x, text = latents[first : first + 16].float(), ids[first : first + 16, 0]
            noise = torch.randn(x.shape, device=model.device, generator=generator)
            total += float(model.loss(x, text, torch.full((len(x),), sigma, device=model.device), noise).sum())
        result[str(sigma)] = round(total / len(latents), 4)
    return result


def prepare(model: Model, kinds: dict, log: state.Log) -> None:
    """Runs every shape once forward and backward, so that compiling is over (and cached on disk) before time counts."""
    for frames, (batch, _, _) in kinds.items():
        start = time.perf_counter()
        latents = torch.randn(batch, model.architecture.LATENT_CHANNELS, frames, SIZE // 8, SIZE // 8, device=model.device)
        ids = torch.ones(batch, model.architecture.TRAIN_PROMPT_TOKENS, dtype=torch.long, device=model.device)
        ids[: batch // 2, 1:] = 0
        model.loss(latents, ids, torch.full((batch,), 0.5, device=model.device), torch.randn_like(latents)).mean().backward()
        modules = (model.transformer, model.text_encoder)
        finite = all(bool(p.grad.isfinite().all()) for module in modules for p in module.parameters() if p.grad is not None)
        for module in modules:
            module.zero_grad(set_to_none=True)
        log.write(event="compiled", frames=frames, batch=batch, finite=finite, seconds=round(time.perf_counter() - start, 1))


def save(folder: pathlib.Path, model: Model, average: Average, optimiser: Optimiser, seconds: float, step: int) -> None:
    modules = {"transformer": model.transformer, "text_encoder": model.text_encoder}
    state.save(folder / "live.pt", {name: state.halved(module.state_dict()) for name, module in modules.items()})
    state.save(folder / "dit_training.pt", {
        **{name: module.state_dict() for name, module in modules.items()},
        "average": average.shadow, "average_steps": average.steps, "optimiser": optimiser.state_dict(),
        "seconds": seconds, "step": step,
    })  # fmt: skip
    save_average(folder, model, average)


def save_average(folder: pathlib.Path, model: Model, average: Average) -> None:
    modules = {"transformer": model.transformer, "text_encoder": model.text_encoder}
    average.swap()
    state.save(folder / "average.pt", {name: state.halved(module.state_dict()) for name, module in modules.items()})
    average.swap()


def resume(folder: pathlib.Path, model: Model, average: Average, optimiser: Optimiser) -> tuple[float, int]:
    """Exactly where the last stretch ended; else a warm start from live.pt or average.pt; else from nothing."""
    saved = state.load(folder / "dit_training.pt", model.device)
    if saved is not None:
        model.transformer.load_state_dict(saved["transformer"])
        model.text_encoder.load_state_dict(saved["text_encoder"])
        with torch.no_grad():
            for mine, theirs in zip(average.shadow, saved["average"], strict=True):
                mine.copy_(theirs)
        average.steps = saved["average_steps"]
        optimiser.load_state_dict(saved["optimiser"])
        return saved["seconds"], saved["step"]
    for name in ("live.pt", "average.pt"):
        saved = state.load(folder / name, model.device)
        if saved is not None:
            for module in ("transformer", "text_encoder"):
                getattr(model, module).load_state_dict({k: v.float() for k, v in saved[module].items()})
            with torch.no_grad():
                for mine, live in zip(average.shadow, average.live, strict=True):
                    mine.copy_(live)
            return 1e6, 0  # past the curriculum
    return 0.0, 0


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    architectures.add_argument(parser)
    parser.add_argument("--state", default="training_state", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, help="default: the committed model's")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of this stretch")
    parser.add_argument("--finish", action="store_true", help="let the rates fall to zero at the end of this stretch")
    parser.add_argument("--finish-share", type=float, default=0.75, help="the part of the stretch over which they fall")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--muon-rate", type=float, default=5e-3)
    parser.add_argument("--adamw-rate", type=float, default=1e-3)
    parser.add_argument("--high-noise-share", type=float, default=HIGH_NOISE_SHARE)
    parser.add_argument("--average-decay", type=float, default=0.998)
    parser.add_argument("--attention", help="the GPU's attention kernel; default: the faster")
    parser.add_argument("--only-compile", action="store_true", help="fill the compiler's cache and stop")
    parser.add_argument("--keep-pool", type=pathlib.Path, help="a file to keep the latents in for the next stretch")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps (tests)")
    parser.add_argument("--tiny", action="store_true", help="small batches and clips (tests)")
    parser.add_argument("--no-compile", action="store_true")
    arguments = parser.parse_args(argv)
    start = time.perf_counter()
    architecture = architectures.load(arguments.model)
    device = torch.device(arguments.device)
    torch.set_float32_matmul_precision("high")
    on_gpu = device.type == "cuda"
    kinds = architecture.TINY_KINDS if arguments.tiny else architecture.KINDS
    longest = max(kinds)
    log = state.Log(arguments.state / "dit.jsonl", stage="dit")
    if on_gpu:
        architecture.use_attention(arguments.attention or architecture.choose_attention())
    model = Model(architecture, device, compiled=on_gpu and not arguments.no_compile)
    if arguments.only_compile:
        prepare(model, kinds, log)
        return
    matrices, rest, slow = architecture.split(model.transformer, model.text_encoder)
    optimiser = Optimiser(matrices, rest, slow, betas=(0.9, 0.98))
    average = Average([model.transformer, model.text_encoder], arguments.average_decay)
    trained, step = resume(arguments.state, model, average, optimiser)
    generator = torch.Generator(device=device).manual_seed(SEED + 1000 * step)

    vae = architecture.WholeClip(state.load_vae(architecture, arguments.state).to(device), compiled=on_gpu and not arguments.no_compile)
    tokenizer = CaptionTokenizer(arguments.tokenizer or architecture.FOLDER / "tokenizer", architecture.TRAIN_PROMPT_TOKENS)
    empty = tokenizer([""]).to(device)
    size = (architecture.TINY_FRAMES, 64) if arguments.tiny else (architecture.NUM_FRAMES, SIZE)
    seeds = random.Random(SEED + step)

    def new_pool(frames: int, clips: int, seed: int) -> LatentPool:
        return LatentPool(architecture, clips, frames, vae, tokenizer, device, seed, *size)

    held = new_pool(longest, 4 if arguments.tiny else 32, SEED + 12345)  # the same clips in every stretch
    held.add(held.capacity)
    pools = {frames: new_pool(frames, clips, seeds.randrange(1 << 30)) for frames, (_, _, clips) in kinds.items()}
    kept = state.load(arguments.keep_pool, device) if arguments.keep_pool else None
    if kept is not None:
        for frames, saved in kept.items():
            pools[frames].restore(saved)
        del kept
    log.write(event="ready", step=step, trained=round(trained, 1), seconds=round(time.perf_counter() - start, 1))

    def pool_of(frames: int) -> LatentPool:
        pool = pools[frames]
        if pool.filled < pool.capacity // 2:
            begin = time.perf_counter()
            pool.add(pool.capacity - pool.filled)
            if on_gpu:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
            clock["filling"] += seconds
            log.write(event="pool", frames=frames, clips=pool.filled, seconds=round(seconds, 1))
        return pool

    stretch = arguments.minutes * 60
    begin, counts = time.perf_counter(), dict.fromkeys(kinds, 0)
    clock = {"filling": 0.0}  # seconds of filling pools, which do not count as training

    def seconds_trained() -> float:
        return trained + time.perf_counter() - begin - clock["filling"]

    recent: dict[int, list[torch.Tensor]] = {frames: [] for frames in kinds}
    first_step, last_log, clips_seen = step, begin, 0
    phases = TINY_PHASES if arguments.tiny else architecture.PHASES
    fall_from = stretch * (1 - arguments.finish_share)
    while step - first_step < arguments.steps:
        elapsed = time.perf_counter() - start
        if elapsed >= stretch:
            break
        decay = max(0.0, min(1.0, (stretch - elapsed) / (stretch - fall_from))) if arguments.finish else 1.0
        cycle = (longest,) if decay < 0.5 else next(cycle for until, cycle in phases if seconds_trained() <= until)
        frames = cycle[step % len(cycle)]
        batch, shift, _ = kinds[frames]
        pool = pool_of(frames)
        counts[frames] += 1
        if counts[frames] % architecture.REFRESH_EVERY.get(frames, 8) == 0:
            pool.add(2 if arguments.tiny else architecture.REFRESH)
        latents, ids = pool.batch(batch, generator)
        dropped = torch.rand(batch, 1, device=device, generator=generator) < CAPTION_DROPOUT
        ids = torch.where(dropped, empty, ids)
        noise = torch.randn(latents.shape, device=device, generator=generator)
        loss = model.loss(latents, ids, sigmas(batch, shift, device, generator, arguments.high_noise_share), noise).mean()
        loss.backward()
        warmup = min(1.0, (step - first_step + 1) / 60)
        norm = optimiser.step(arguments.muon_rate * warmup * decay, arguments.adamw_rate * warmup * decay)
        average.update()
        recent[frames].append(torch.stack([loss.detach(), norm]))
        step, clips_seen = step + 1, clips_seen + batch
        if step % 50 == 0 or arguments.tiny:
            values = {k: torch.stack(v).mean(0).tolist() for k, v in recent.items() if v}
            seconds = time.perf_counter() - last_log
            log.write(step=step, loss={k: round(v[0], 4) for k, v in values.items()}, rate=round(arguments.muon_rate * warmup * decay, 6),
                      norm=round(max(v[1] for v in values.values()), 3), clips_per_second=round(clips_seen / seconds, 1),
                      steps_per_second=round(50 / seconds, 2), drawn=sum(p.drawn for p in pools.values()),
                      seconds=round(seconds_trained(), 1))  # fmt: skip
            recent = {frames: [] for frames in kinds}
            last_log, clips_seen = time.perf_counter(), 0
        if step % 1000 == 0 and frames == longest:
            average.swap()
            log.write(event="validation", step=step, loss=eager(validate, model, held.latents, held.ids))
            average.swap()
            save_average(arguments.state, model, average)  # what is there if the stretch is cut short

    trained = seconds_trained()
    average.swap()
    log.write(event="validation", step=step, loss=eager(validate, model, held.latents, held.ids), seconds=round(trained, 1))
    average.swap()
    save(arguments.state, model, average, optimiser, trained, step)
    if arguments.keep_pool:
        state.save(arguments.keep_pool, {frames: pool.state() for frames, pool in pools.items() if pool.filled})
    log.write(event="stretch", step=step, trained=round(trained, 1), seconds=round(time.perf_counter() - start, 1))


if __name__ == "__main__":
    main()
