#!/usr/bin/env python3
"""What a plan costs in diffusers beside its kernels, and what it gains: whole pipes with random weights of the full width, in one run.

Ways of the same denoising steps, timed round by round in random order, each after a warm-up:

    dense_torch  the pipe as diffusers runs it, with the attention that torch chooses
    dense_cudnn  the same, with cuDNN's where it can
    planned      with calibatt.apply
    without      the pipe with its self-attention left out: all that is not attention
    kernel       the planned attention calls alone, on random queries, keys and values

`overhead` is planned / (without + kernel) − 1: what calibatt adds beside its kernels. `speedup_over_…` is a dense way / planned. A figure is the
median over rounds of a ratio within one round; the spread is that of the middle half. Beside them: how much longer calibration takes than the
same dense runs, seconds of apply, memory beyond the dense pipe's, graphs that torch.compile made after the first step, and with --check how far
a plan that keeps every block is from float32, beside how far dense attention is. The result is written after everything that is known.

    python bench/python/diffusers_overhead.py --size 720p --layers 40 --guidance 1 --steps 1 --ways dense_torch,dense_cudnn,planned --output FILE
    python bench/python/diffusers_overhead.py --size 480p --layers 4 --ways planned,without,kernel --compiled both --check --output FILE
    python bench/python/diffusers_overhead.py --size tiny --layers 2 --rounds 3 --check --output FILE       # any machine, without a GPU too

Needs torch, diffusers, transformers, accelerate, sentencepiece, protobuf; text encoder, tokenizer and autoencoder are those of models/.
"""

import argparse
import contextlib
import copy
import datetime
import gc
import importlib
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import diffusers
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel

import calibatt
from calibatt import _library
from calibatt._session import Session

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "wan": {"tiny": (96, 128, 17), "480p": (480, 832, 81), "720p": (720, 1280, 81)},
    "mochi": {"tiny": (96, 128, 13), "480p": (480, 848, 163)},
}
WIDTHS = {
    "wan": {"tiny": dict(num_attention_heads=4, attention_head_dim=64, ffn_dim=512),
            "14B": dict(num_attention_heads=40, attention_head_dim=128, ffn_dim=13824)},
    "mochi": {"tiny": dict(num_attention_heads=2, attention_head_dim=64, pooled_projection_dim=64),
              "14B": dict(num_attention_heads=24, attention_head_dim=128, pooled_projection_dim=1536)},
}  # fmt: skip
WAYS = ("dense_torch", "dense_cudnn", "planned", "without", "kernel")
CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
PROMPT = "a red circle moves to the right over a striped background"


def make_pipe(args, device, dtype):
    tiny = ROOT / f"models/tiny-{args.model}"
    width = WIDTHS[args.model]["tiny" if args.size == "tiny" else "14B"]
    torch.manual_seed(0)
    with torch.device(device):
        if args.model == "wan":
            transformer = diffusers.WanTransformer3DModel(num_layers=args.layers, text_dim=256, **width)
        else:
            transformer = diffusers.MochiTransformer3DModel(num_layers=args.layers, text_embed_dim=256, **width)
            torch.nn.init.normal_(transformer.pos_frequencies, std=0.1)
    cls = diffusers.WanPipeline if args.model == "wan" else diffusers.MochiPipeline
    keep = [name for name in ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3") if args.model == "wan"]
    for name, parameter in transformer.named_parameters():  # as from_pretrained keeps some in float32
        if not any(part in name for part in keep):
            parameter.data = parameter.data.to(dtype)
        if name.endswith("attn1.norm_q.weight"):  # a random transformer's attention is all but uniform, a trained one's has peaks
            parameter.data.fill_(3)
    pipe = cls.from_pretrained(tiny, transformer=transformer.eval(), torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


_anything = {}


@torch.library.custom_op("calibatt_bench::anything", mutates_args=())
def anything(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Something of an attention's shape. An operation, so that torch.compile does not leave out what makes q and k."""
    kind = (q.shape, q.dtype, q.device)
    if kind not in _anything:
        _anything[kind] = torch.randn(q.shape, dtype=q.dtype, device=q.device)
    return _anything[kind]


@anything.register_fake
def _(q, k, v):
    return q.new_empty(q.shape)


@contextlib.contextmanager
def without_attention(model):
    """Self-attention computes nothing; all else is as it was."""
    if model == "wan":
        module = importlib.import_module("diffusers.models.transformers.transformer_wan")
        real = module.dispatch_attention_fn
        module.dispatch_attention_fn = lambda q, k, v, **more: anything(q, k, v) if q.shape == k.shape else real(q, k, v, **more)
        try:
            yield
        finally:
            module.dispatch_attention_fn = real
        return
    module = importlib.import_module("diffusers.models.attention_processor")
    real = module.F
    module.F = SimpleNamespace(scaled_dot_product_attention=lambda q, k, v, **_: anything(q, k, v), pad=real.pad, softmax=real.softmax)
    try:
        yield
    finally:
        module.F = real


def switched_off(pipe):
    """calibatt.disabled where a plan is applied."""
    try:
        calibatt.summary(pipe)
    except calibatt.UsageError:
        return contextlib.nullcontext()
    return calibatt.disabled(pipe)


class Ways:
    """The ways; each is a method that runs once."""

    def __init__(self, args, pipe, call):
        self.args, self.pipe, self.call = args, pipe, call
        self.device = pipe.transformer.device
        self.graphs = []  #: that torch.compile had made after each step of the last run

    def run_pipe(self, steps=None):
        """steps: only so many of the run's; None: those of --run-steps."""
        steps = steps or self.args.run_steps or self.args.steps
        self.graphs = []

        def stop(pipe, step, _, tensors):
            self.graphs.append(counters["stats"]["unique_graphs"])
            pipe._interrupt = step + 1 >= steps
            return tensors

        generator = torch.Generator("cpu").manual_seed(1)
        return self.pipe(PROMPT, generator=generator, output_type="latent", callback_on_step_end=stop, **self.call).frames

    def dense_torch(self):
        with switched_off(self.pipe):
            return self.run_pipe()

    def dense_cudnn(self):
        with sdpa_kernel(CUDNN_FIRST, set_priority=True):
            return self.dense_torch()

    def planned(self):
        return self.run_pipe()

    def without(self):
        with switched_off(self.pipe), without_attention(self.args.model):
            return self.run_pipe()

    def prepare_kernel(self, plan):
        """The same calls as a planned run makes, noted by watching one."""
        calls, real = [], Session.attend

        def watch(session, layer, q, k, v, out, output=None):
            calls.append((layer, tuple(q.shape), q.dtype))
            return real(session, layer, q, k, v, out, output)

        Session.attend = watch
        try:
            self.run_pipe()
        finally:
            Session.attend = real
        self.calls = calls
        run = calibatt.summary(self.pipe).run
        self.sessions = {branch: Session.open(plan, run, self.device, reuses_steps=True) for branch in (_library.CONDITIONAL, _library.UNCONDITIONAL)}
        shapes = {shape for _, shape, _ in calls}
        self.inputs = {shape: [torch.randn(shape, dtype=calls[0][2], device=self.device) for _ in range(3)] for shape in shapes}

    def kernel(self):
        per_step = len(self.calls) // (self.args.run_steps or self.args.steps)
        joint = self.args.model == "mochi"
        for index, (layer, shape, _) in enumerate(self.calls):
            step, place = divmod(index, per_step)
            guided = self.call["guidance_scale"] > 1
            branch = (1 - place % 2 if joint else place >= per_step // 2) if guided else 0
            session = self.sessions[int(branch) if joint else _library.CONDITIONAL]
            if layer == 0:
                session.begin_forward(step, int(branch))
            q, k, v = self.inputs[shape]
            session.attend(layer, q, k, v, torch.empty_like(q))

    def time(self, way):
        self.wait()
        start = time.perf_counter()
        getattr(self, way)()
        self.wait()
        return time.perf_counter() - start

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def distance(x, reference):
    return float((x.double() - reference).norm() / reference.norm())


def check(ways, folder, settings):
    """A plan that keeps every block, and dense attention, each against float32 at the same weights: one forward."""
    pipe, call = ways.pipe, {**ways.call, "num_inference_steps": 2 if ways.args.model == "mochi" else 1, "guidance_scale": 1.0}
    one = Ways(SimpleNamespace(**{**vars(ways.args), "run_steps": 1}), pipe, call)
    dense, cudnn = one.dense_torch().double(), one.dense_cudnn().double()
    plan = calibatt.calibrate(pipe, [PROMPT], folder / "everything.safetensors", 1.0, settings=settings, **call)
    calibatt.apply(pipe, plan)
    planned = one.planned().double()
    calibatt.restore(pipe)
    again = one.dense_torch().double()
    transformer = pipe.transformer
    pipe.transformer = copy.deepcopy(transformer).float()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    reference = one.dense_torch().double()
    pipe.transformer = transformer
    errors = {"planned": distance(planned, reference), "dense_torch": distance(dense, reference), "dense_cudnn": distance(cudnn, reference)}
    errors |= {"planned_from_dense": distance(planned, dense), "restored_bit_for_bit": bool((again == dense).all())}
    if transformer.dtype != torch.float32:
        errors["planned_over_dense_torch"] = errors["planned"] / errors["dense_torch"]
    return errors


def middle_half(values):
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return quartiles[2] - quartiles[0]


def figures(times):
    """Of the ways that were timed."""
    ratios = {}
    if {"planned", "without", "kernel"} <= times.keys():
        ratios["overhead"] = [p / (w + k) - 1 for p, w, k in zip(times["planned"], times["without"], times["kernel"])]
    for dense in {"dense_torch", "dense_cudnn"} & times.keys():
        ratios["speedup_over_" + dense] = [d / p for d, p in zip(times[dense], times["planned"])]
        if "without" in times:
            ratios["attention_share_of_" + dense] = [1 - w / d for w, d in zip(times["without"], times[dense])]
    return {name: {"median": statistics.median(values), "spread": middle_half(values)} for name, values in sorted(ratios.items()) if values}


def facts(args, device, dtype):
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "calibatt": calibatt.__version__}
    return {"commit": args.commit or git.stdout.strip(), "date": datetime.date.today().isoformat(), "device": card, "dtype": str(dtype),
            "arguments": {k: str(v) for k, v in vars(args).items()}, "versions": versions}  # fmt: skip


class Bench:
    """One pipe, measured stage by stage; what is known is in the output file."""

    def __init__(self, args):
        self.args, self.began = args, time.monotonic()
        self.device = torch.device(args.device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        height, width, frames = SIZES[args.model][args.size]
        call = dict(height=height, width=width, num_frames=frames, num_inference_steps=args.steps, guidance_scale=args.guidance)
        self.result = facts(args, self.device, dtype)
        self.ways = Ways(args, make_pipe(args, self.device, dtype), call)
        self.names, self.dense_peak = args.ways.split(","), 0
        self.note("built")
        # Level codes, as for large models: maps of so many tokens would take minutes a layer.
        blocks = {"block_q": 16, "block_k": 16, "token_order": "tiles:2x2x4"} if args.size == "tiny" else {"block_q": 128, "block_k": 128}
        self.settings = {**blocks, "measure": "levels"}

    def note(self, what, **more):
        """What is known so far, on the terminal and on the disk."""
        self.result |= more
        self.result.setdefault("seconds_at", {})[what] = round(time.monotonic() - self.began, 1)
        self.args.output.write_text(json.dumps(self.result, indent=1) + "\n")
        print(f"{self.result['seconds_at'][what]:6.1f} s  {what}", *[f"{name}={json.dumps(value)}" for name, value in more.items()], flush=True)

    def left(self):
        return self.args.seconds - (time.monotonic() - self.began)

    def outside_of_torch(self):
        """Bytes of the device that torch does not hold: the library's memory, and code that was loaded."""
        if self.device.type != "cuda":
            return 0
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        return total - free - torch.cuda.memory_reserved()

    def reset_peak(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self):
        """Bytes that torch held at most."""
        return torch.cuda.max_memory_allocated() if self.device.type == "cuda" else 0

    def warm_up(self):
        """With one layer: libraries load, and look for their kernels."""
        transformer = self.ways.pipe.transformer
        name = "blocks" if self.args.model == "wan" else "transformer_blocks"
        blocks = getattr(transformer, name)
        setattr(transformer, name, blocks[-1:])
        for way in ("dense_torch", "dense_cudnn"):
            getattr(self.ways, way)()
        setattr(transformer, name, blocks)
        self.note("warm")

    def calibrate(self, folder):
        """A plan, and how much longer its measuring takes than dense runs of the same steps."""
        pipe, output = self.ways.pipe, folder / "plan.safetensors"
        prompts = [f"{PROMPT}, {index}" for index in range(self.args.prompts)]

        def run(**more):
            self.ways.wait()
            start = time.perf_counter()
            plan = calibatt.calibrate(pipe, prompts, output, self.args.density, settings=self.settings, **self.ways.call, **more)
            return time.perf_counter() - start, plan

        whole = SimpleNamespace(**{**vars(self.args), "run_steps": None})
        dense = Ways(whole, pipe, self.ways.call)
        dense_seconds = {}
        for way in [name for name in self.names if name.startswith("dense")] or ["dense_torch"]:
            self.reset_peak()
            dense_seconds[way] = dense.time(way)
            self.dense_peak = max(self.dense_peak, self.peak())
        recording = run(prompt_range=(0, len(prompts)))[0]
        try:
            compiling, plan = run()
        except calibatt.UsageError as refused:  # random weights spread attention over all keys
            self.args.density += 0.05
            self.note("compiled denser than asked", refused=str(refused))
            compiling, plan = run()
        longer = {way: recording / (len(prompts) * seconds) - 1 for way, seconds in dense_seconds.items()}
        self.note("calibrated", dense_seconds=dense_seconds, calibration={"seconds": recording, "prompts": len(prompts), "longer_than": longer},
                  compile_seconds=compiling, density_of_plan=plan.density)  # fmt: skip
        return plan

    def apply(self, plan):
        outside = self.outside_of_torch()
        start = time.perf_counter()
        calibatt.apply(self.ways.pipe, plan)
        seconds = time.perf_counter() - start
        self.reset_peak()
        self.ways.time("planned")
        summary = calibatt.summary(self.ways.pipe)
        more = self.outside_of_torch() - outside
        memory = {"torch": (self.peak() - self.dense_peak) / 1e6, "outside_of_torch": more / 1e6, "masks": sum(each["mask_bytes"] for each in summary.reports) / 1e6}
        self.note("applied", apply_seconds=seconds, memory_beyond_dense_mb=memory if self.device.type == "cuda" else None, density=summary.density_of_run,
                  kernel=summary.reports[0]["kernel"], fallbacks=summary.dense_fallback_calls)  # fmt: skip

    def measure(self, mode, warm_ups):
        """Rounds of all ways, until the time is over."""
        counters.clear()
        self.ways.planned()
        graphs = self.ways.graphs
        for way in self.names * warm_ups:
            self.ways.time(way)
        after_warm_up = counters["stats"]["unique_graphs"]
        times = {way: [] for way in self.names}
        for round_ in range(self.args.rounds):
            start = time.monotonic()
            for way in random.sample(self.names, len(self.names)):
                times[way].append(self.ways.time(way))
            recompiled = {"after_first_step": graphs[-1] - graphs[0], "in_rounds": counters["stats"]["unique_graphs"] - after_warm_up, "graphs_by_step": graphs}
            self.note(f"{mode}, round {round_}", **{mode: {"figures": figures(times), "recompilations": recompiled, "times": times}})
            if self.left() < 1.2 * (time.monotonic() - start):
                break


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="wan")
    parser.add_argument("--size", choices=["tiny", "480p", "720p"], default="tiny")
    parser.add_argument("--layers", type=int, default=4, help="of the transformer; 40 is Wan 14B, 48 Mochi [4]")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps of a run [2]")
    parser.add_argument("--run-steps", type=int, help="of them, those that are run and timed, whose density may be another than the plan's [all]")
    parser.add_argument("--density", type=float, default=0.375)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--prompts", type=int, default=1, help="of the calibration [1]")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm-ups", type=int, default=1, help="of all ways before the rounds, eager [1]")
    parser.add_argument("--seconds", type=float, default=1e9, help="no round begins that would end later")
    parser.add_argument("--compiled", choices=["no", "both", "only"], default="no", help="the transformer's blocks by torch.compile")
    parser.add_argument("--check", action="store_true", help="a plan that keeps everything, and dense attention, against float32")
    parser.add_argument("--commit", default=os.environ.get("COMMIT", ""))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main():
    args = parsed()
    torch._dynamo.config.automatic_dynamic_shapes = False
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        bench, folder = Bench(args), Path(name)
        bench.warm_up()
        if args.check:
            bench.note("checked", errors=check(bench.ways, folder, bench.settings))
        plan = bench.calibrate(folder)
        bench.apply(plan)
        if "kernel" in bench.names:
            bench.ways.prepare_kernel(plan)
        if args.compiled != "only":
            bench.measure("eager", args.warm_ups)
        if args.compiled != "no":
            bench.ways.pipe.transformer.compile_repeated_blocks(fullgraph=True)
            bench.measure("compiled", 1)


if __name__ == "__main__":
    main()
