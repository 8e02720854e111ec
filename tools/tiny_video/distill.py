"""Distils a trained model in guidance and steps: a LoRA with which it makes in four forwards what took forty.

  python -m tools.tiny_video.distill -o DIR --seconds 420        # GPU: DIR/lora.safetensors, its log and its measurement

The student takes four Euler steps without guidance. Each is to end where the teacher gets to from the same place in several
guided steps. At first the places are the teacher's own; then they are those that the student reaches, so that every
step also learns to mend the errors of the steps before it. What the student sees is a pool of such places, renewed bit by bit.
Of several rates the one with the best first seconds goes on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import time

import torch

from . import architecture as architectures
from . import state
from .clips import SIZE, caption, sample_scene
from .compiling import eager
from .low_rank import LowRank, merge_file
from .optim import Average, Optimiser
from .ring import Ring
from .sample import Sampler, read_prompts, sheet
from .tokenizer import CaptionTokenizer
from .train_dit import Model

SEED = 3
LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)  # of the student's steps and of their end, before the shift
SUBSTEPS = 5  # the teacher's, in each of the student's: as near to its 40 steps as UniPC's 20 are
FINAL_SHARE = 0.6  # of the time, over which the rate falls to zero
RESERVE = 50.0  # seconds for the measurement at the end


class Distillation:
    """A guided teacher, a student, and the places and directions that the student learns from."""

    def __init__(self, architecture, model: pathlib.Path, device, shape: tuple, tokenizer, compiled: bool):
        """shape: of one video's latents."""
        steps, guidance, shift = (float(v) for v in architecture.SETTING.split(","))
        self.architecture, self.device, self.shape, self.guidance, self.shift = architecture, device, shape, guidance, shift
        self.tokenizer, self.rng = tokenizer, random.Random(SEED)
        self.generator = torch.Generator(device=device).manual_seed(SEED)
        self.teacher, self.student = (Model(architecture, device, compiled) for _ in range(2))
        transformer, text_encoder, self.vae = state.load_exported(model)
        for part in (self.teacher, self.student):
            part.transformer.load_state_dict(transformer.state_dict())
            part.text_encoder.load_state_dict(text_encoder.state_dict())
            part.transformer.requires_grad_(False)
            part.text_encoder.requires_grad_(False)
        self.empty = tokenizer([""]).to(device)
        self.sigmas = [self.shifted(level) for level in LEVELS]
        self.sigma_of_step = torch.tensor(self.sigmas, device=device)

    def shifted(self, level: float) -> float:
        return self.shift * level / (1 + (self.shift - 1) * level)

    def velocity(self, model: Model, x, sigma: float, ids):
        return model.predict(x, torch.full((len(x),), sigma, device=self.device), ids)

    def guided(self, x, sigma: float, ids):
        empty = self.velocity(self.teacher, x, sigma, self.empty.expand(len(x), -1))
        return empty + self.guidance * (self.velocity(self.teacher, x, sigma, ids) - empty)

    @torch.no_grad()
    def teach(self, x, step: int, ids, substeps: int = SUBSTEPS):
        """Where the teacher gets to from x in the student's step: Adams-Bashforth's second order, begun by Euler's."""
        first, last = LEVELS[step], LEVELS[step + 1]
        sigmas = [self.shifted(first + (last - first) * i / substeps) for i in range(substeps + 1)]
        before = None
        for sigma, following in zip(sigmas, sigmas[1:]):
            width, slope = following - sigma, self.guided(x, sigma, ids)
            mean = slope if before is None else slope + width / (2 * before[0]) * (slope - before[1])
            x, before = x + width * mean, (width, slope)
        return x

    @torch.no_grad()
    def take(self, x, step: int, ids):
        """The student's step."""
        return x + (self.sigmas[step + 1] - self.sigmas[step]) * self.velocity(self.student, x, self.sigmas[step], ids)

    def walk(self, move, x, ids):
        """All steps by `take` or `teach`."""
        for step in range(len(LEVELS) - 1):
            x = move(x, step, ids)
        return x

    def prompts(self, count: int, part: str) -> torch.Tensor:
        return self.tokenizer([caption(sample_scene(self.rng, part), self.rng) for _ in range(count)]).to(self.device)

    def noise(self, count: int) -> torch.Tensor:
        return torch.randn(count, *self.shape, device=self.device, generator=self.generator)

    def new_pool(self, capacity: int) -> Ring:
        return Ring(capacity, self.device, x=(self.shape, torch.bfloat16), target=(self.shape, torch.bfloat16),
                    step=((), torch.long), ids=((self.architecture.TRAIN_PROMPT_TOKENS,), torch.long))  # fmt: skip

    def collect(self, pool: Ring, count: int, by_student: bool, part: str = "train"):
        """New videos from noise, all steps of each; the walk between the steps is the student's or the teacher's.

        Returns the noise, the prompts and where the walk ended.
        """
        noise, ids = self.noise(count), self.prompts(count, part)
        x = noise
        for step in range(len(LEVELS) - 1):
            end = self.teach(x, step, ids)
            target = (end - x) / (self.sigmas[step + 1] - self.sigmas[step])
            pool.put(x=x, target=target, step=torch.full((count,), step), ids=ids)
            x = self.take(x, step, ids) if by_student else end
        return noise, ids, x

    def losses(self, pool: Ring, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of each of these examples, and which step it is of."""
        x, target, step, ids = (pool.fields[name][rows] for name in ("x", "target", "step", "ids"))
        velocity = self.student.predict(x.float(), self.sigma_of_step[step], ids)
        return (velocity - target.float()).square().flatten(1).mean(1), step


class HeldOut:
    """Videos of prompts that are not trained on, walked by the teacher: each of its steps, and where it ended."""

    def __init__(self, work: Distillation, count: int):
        self.work, self.count = work, count
        self.pool = work.new_pool(count * (len(LEVELS) - 1))
        self.noise, self.ids, self.end = work.collect(self.pool, count, by_student=False, part="heldout")

    @torch.no_grad()
    def measure(self) -> dict:
        """The loss of each step, and the mean square distance between the student's videos and the teacher's of the same
        noise. Both in latents of deviation 1."""
        rows = torch.arange(self.pool.filled, device=self.work.device).split(self.count)
        losses = [float(self.work.losses(self.pool, part)[0].mean()) for part in rows]
        distance = (self.work.walk(self.work.take, self.noise, self.ids) - self.end).square().mean()
        return {"held_loss": [round(v, 4) for v in losses], "distance": round(float(distance), 5)}


class Training:
    """The factors in training with their optimiser and average."""

    def __init__(self, work: Distillation, rank: int, rate: float):
        self.work, self.rate, self.steps = work, rate, 0
        self.low_rank = LowRank(work.student.transformer, rank, SEED)
        self.optimiser = Optimiser([*self.low_rank.down, *self.low_rank.up], [])
        self.average = Average([self.low_rank], 0.99)
        self.recent: list[torch.Tensor] = []

    def step(self, pool: Ring, batch: int, factor: float) -> None:
        """factor: of the rate, for warming up and for its end."""
        loss, which = self.work.losses(pool, pool.rows(batch, self.work.generator))
        loss.mean().backward()
        self.low_rank.take_gradients()
        self.optimiser.step(self.rate * factor, 0.0)
        self.low_rank.merge()
        self.average.update()
        self.steps += 1
        sums = torch.zeros(2, len(LEVELS) - 1, device=loss.device)
        self.recent.append(sums.index_add_(1, which, torch.stack([loss.detach(), torch.ones_like(loss)])))

    def recent_losses(self) -> list[float]:
        """Mean loss of each step since the last call."""
        sums = torch.stack([torch.zeros(2, len(LEVELS) - 1, device=self.work.device), *self.recent]).sum(0)
        self.recent = []
        return [round(v, 4) for v in (sums[0] / sums[1].clamp_min(1)).tolist()]

    def with_average(self, function, *values):
        self.average.swap()
        self.low_rank.merge()
        result = function(*values)
        self.average.swap()
        self.low_rank.merge()
        return result

    def save(self, path: pathlib.Path) -> None:
        self.low_rank.save(path, steps=json.dumps(LEVELS[:-1]), flow_shift=str(self.work.shift))


def train(training: Training, pool: Ring, batch: int, until: float, limit: int, before_step=lambda: None) -> None:
    """To a moment or a number of steps; the rate falls to zero."""
    begin, first = time.perf_counter(), training.steps
    while training.steps - first < limit:
        remaining = (until - time.perf_counter()) / max(1e-9, until - begin)
        if remaining <= 0:
            break
        before_step()
        training.step(pool, batch, min(1.0, (training.steps - first + 1) / 40, max(0.0, remaining) / FINAL_SHARE))
        if training.steps % 8 == 0 and training.work.device.type == "cuda":
            torch.cuda.synchronize()  # the clock must not run ahead of the device


def race(work: Distillation, pool: Ring, held: HeldOut, arguments, log: state.Log) -> Training:
    """A short training by each rate; the best one of them."""
    best = None
    for rate in arguments.rates:
        training = Training(work, arguments.rank, rate)
        training.low_rank.merge()
        train(training, pool, arguments.batch, time.perf_counter() + arguments.race_seconds, arguments.steps)
        measured = held.measure()
        loss = sum(measured["held_loss"])
        log.write(event="race", rate=rate, steps=training.steps, loss=training.recent_losses(), **measured)
        for name, layer in training.low_rank.layers.items():
            layer.weight.data.copy_(training.low_rank.base[name])  # the next one starts from the teacher, too
        if best is None or loss < best[0]:
            best = loss, training
    best[1].low_rank.merge()
    return best[1]


def measure(work: Distillation, lora: pathlib.Path, arguments, log: state.Log) -> None:
    """The merged student against the teacher's own setting on held-out prompts: frames of the same seeds."""
    prompts, _ = read_prompts(arguments.heldout, arguments.count)
    seeds = [1000 + i for i in range(len(prompts))]
    parts = work.teacher.transformer, work.teacher.text_encoder, work.vae
    sampler = Sampler(work.architecture, parts, arguments.tokenizer, work.device)
    work.student.transformer.load_state_dict(work.teacher.transformer.state_dict())
    merge_file(work.student.transformer, lora)
    steps, guidance, *scheduling = (float(v) for v in work.architecture.SETTING.split(","))
    _, frames, _, size = work.shape
    noise = torch.cat([sampler.noise(seed, frames, size) for seed in seeds]).to(work.device)
    ids = work.tokenizer(prompts).to(work.device)
    psnr, distances, shown = [], [], []
    for first in range(0, len(prompts), 16):
        part = slice(first, first + 16)
        expected = sampler.latents(prompts[part], seeds[part], int(steps), guidance, *scheduling, frames=frames, size=size)
        actual = work.walk(work.take, noise[part], ids[part])
        distances += (actual - expected).square().flatten(1).mean(1).tolist()
        clips = sampler.decode(expected), sampler.decode(actual)
        for pair in zip(*clips):
            a, b = (clip.to(work.device).float() for clip in pair)
            psnr.append(float(10 * torch.log10(255**2 / (a - b).square().mean().clamp_min(1e-3))))
            shown += pair
    ordered = sorted(psnr)
    log.write(event="measured", prompts=len(psnr), distance=round(sum(distances) / len(distances), 5), mean=round(sum(psnr) / len(psnr), 2),
              median=round(ordered[len(ordered) // 2], 2), worst=round(ordered[0], 2))  # fmt: skip
    (arguments.output / "measured.json").write_text(json.dumps({"psnr": psnr, "distance": distances}) + "\n")
    rows = min(24, len(shown))
    titles = [f"{kind}: {prompts[i // 2]}" for i in range(rows) for kind in (("teacher", "student")[i % 2],)]
    sheet(torch.stack(shown[:rows]), titles, arguments.output / "sheet.jpg")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--teacher", type=pathlib.Path, help="default: the committed model")
    parser.add_argument("--tokenizer", type=pathlib.Path, help="default: the teacher's")
    parser.add_argument("--seconds", type=float, default=420.0, help="from now, everything included")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.003, 0.008], help="Muon's, to choose from")
    parser.add_argument("--race-seconds", type=float, default=15.0, help="of training by each rate")
    parser.add_argument("--batch", type=int, default=24, help="examples of a training step")
    parser.add_argument("--group", type=int, default=48, help="videos that are begun at once")
    parser.add_argument("--first-groups", type=int, default=8, help="groups that the teacher walks alone")
    parser.add_argument("--refresh", type=int, default=36, help="training steps from one new group to the next")
    parser.add_argument("--capacity", type=int, default=6144, help="examples in the pool")
    parser.add_argument("--heldout", type=pathlib.Path, default=pathlib.Path("models/tiny-wan/prompts/heldout_prompts.json"))
    parser.add_argument("--count", type=int, default=64, help="held-out prompts to measure on")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--steps", type=int, default=10**9, help="stop each training after so many steps (tests)")
    parser.add_argument("--frames", type=int, help="latent frames; default: the whole clip's (tests)")
    parser.add_argument("--size", type=int, default=SIZE // 8, help="latent rows and columns (tests)")
    parser.add_argument("--no-compile", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    start = time.perf_counter()
    architecture = architectures.load("wan")
    arguments.teacher = arguments.teacher or architecture.FOLDER
    arguments.tokenizer = arguments.tokenizer or arguments.teacher / "tokenizer"
    device = torch.device(arguments.device)
    torch.set_float32_matmul_precision("high")
    on_gpu = device.type == "cuda"
    if on_gpu:
        architecture.use_attention(architecture.choose_attention())
    log = state.Log(arguments.output / "distill.jsonl", stage="distill")
    tokenizer = CaptionTokenizer(arguments.tokenizer, architecture.TRAIN_PROMPT_TOKENS)
    shape = (architecture.LATENT_CHANNELS, arguments.frames or architecture.LATENT_FRAMES, arguments.size, arguments.size)
    work = Distillation(architecture, arguments.teacher, device, shape, tokenizer, on_gpu and not arguments.no_compile)

    held = HeldOut(work, arguments.group)
    log.write(event="ready", **held.measure(), seconds=round(time.perf_counter() - start, 1))
    pool = work.new_pool(arguments.capacity)
    for _ in range(arguments.first_groups):
        work.collect(pool, arguments.group, by_student=False)
    if on_gpu:
        torch.cuda.synchronize()
    log.write(event="pool", examples=pool.filled, seconds=round(time.perf_counter() - start, 1))

    Training(work, arguments.rank, 0.0).step(pool, arguments.batch, 0.0)  # compiles before the race's clock runs
    training = race(work, pool, held, arguments, log)
    lora = arguments.output / "lora.safetensors"
    saved = [time.perf_counter()]

    def before_step() -> None:
        if training.steps % arguments.refresh == 0:
            work.collect(pool, arguments.group, by_student=True)
        if training.steps % (5 * arguments.refresh) == 0 and training.recent:
            log.write(step=training.steps, loss=training.recent_losses(), **training.with_average(held.measure),
                      drawn=pool.drawn, seconds=round(time.perf_counter() - start, 1))  # fmt: skip
        if time.perf_counter() - saved[0] > 60:  # what is there if the machine goes away
            training.with_average(training.save, lora)
            saved[0] = time.perf_counter()

    train(training, pool, arguments.batch, start + arguments.seconds - RESERVE, arguments.steps, before_step)
    log.write(event="trained", step=training.steps, loss=training.recent_losses(), **training.with_average(held.measure),
              seconds=round(time.perf_counter() - start, 1))  # fmt: skip
    training.with_average(training.save, lora)
    eager(measure, work, lora, arguments, log)
    log.write(event="over", seconds=round(time.perf_counter() - start, 1))


if __name__ == "__main__":
    main()
