#!/usr/bin/env python3
"""What a plan costs in diffusers beside its kernels, and what it gains: whole pipes with random weights of the full width, in one run.

Four ways of the same denoising steps are timed, round by round in random order, each after a warm-up:

    dense     the pipe as diffusers runs it
    planned   with calibatt.apply
    without   the pipe with its self-attention left out: all that is not attention
    kernel    the planned attention calls alone, on random queries, keys and values

`overhead` is planned / (without + kernel) − 1: what calibatt adds beside its kernels. `speedup` is dense / planned. A figure is the median over
rounds of a ratio within one round; the spread is that of the middle half. Before anything is timed, a plan that keeps every block has to give
what dense attention gives. Recompilations after the warm-up, and memory beyond the dense pipe's, are counted. The result is written after every
round.

    python bench/python/diffusers_overhead.py --model wan --size 720p --layers 40 --output result.json          # an H100
    python bench/python/diffusers_overhead.py --size tiny --layers 2 --rounds 3 --output result.json             # any machine

Needs torch, diffusers, transformers, accelerate, sentencepiece, protobuf; text encoder, tokenizer and autoencoder are those of models/.
"""

import argparse
import contextlib
import importlib
import json
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
    pipe = cls.from_pretrained(tiny, transformer=transformer.eval(), torch_dtype=dtype).to(device)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def without_attention(model):
    """Self-attention gives its values; all else is as it was."""
    if model == "wan":
        module = importlib.import_module("diffusers.models.transformers.transformer_wan")
        real = module.dispatch_attention_fn
        module.dispatch_attention_fn = lambda q, k, v, **more: v if q.shape == k.shape else real(q, k, v, **more)
        try:
            yield
        finally:
            module.dispatch_attention_fn = real
        return
    module = importlib.import_module("diffusers.models.attention_processor")
    real = module.F
    module.F = SimpleNamespace(scaled_dot_product_attention=lambda q, k, v, **_: v, pad=real.pad, softmax=real.softmax)
    try:
        yield
    finally:
        module.F = real


class Ways:
    """The four ways; each is a function that runs once and waits."""

    def __init__(self, args, pipe, plan, call):
        self.args, self.pipe, self.plan, self.call = args, pipe, plan, call
        self.device = pipe.transformer.device

    def run_pipe(self):
        generator = torch.Generator("cpu").manual_seed(1)
        return self.pipe(PROMPT, generator=generator, output_type="latent", **self.call).frames

    def dense(self):
        with calibatt.disabled(self.pipe):
            return self.run_pipe()

    def planned(self):
        return self.run_pipe()

    def without(self):
        with calibatt.disabled(self.pipe), without_attention(self.args.model):
            return self.run_pipe()

    def prepare_kernel(self):
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
        self.sessions = {branch: Session.open(self.plan, run, self.device) for branch in (_library.CONDITIONAL, _library.UNCONDITIONAL)}
        shapes = {shape for _, shape, _ in calls}
        self.inputs = {shape: [torch.randn(shape, dtype=calls[0][2], device=self.device) for _ in range(3)] for shape in shapes}
        self.steps = len(run.sigmas)

    def kernel(self):
        per_step = len(self.calls) // self.steps
        joint = self.args.model == "mochi"
        for index, (layer, shape, _) in enumerate(self.calls):
            step, place = divmod(index, per_step)
            guided = self.call["guidance_scale"] > 1
            branch = (place % 2 if joint else place >= per_step // 2) if guided else 0
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


def check(args, pipe, profile, call, folder):
    """A plan that keeps every block against dense attention."""
    ways = Ways(args, pipe, None, call)
    dense = ways.run_pipe().double()
    everything = calibatt.compile(profile, folder / "everything.safetensors", density=1.0)
    calibatt.apply(pipe, everything)
    error = float((ways.run_pipe().double() - dense).norm() / dense.norm())
    calibatt.restore(pipe)
    limit = 1e-3 if pipe.transformer.dtype == torch.float32 else 0.05
    if not error <= limit:
        raise SystemExit(f"a plan that keeps everything is {error:.2g} from dense, at most {limit} is allowed; nothing was timed")
    return error


def middle_half(values):
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return quartiles[2] - quartiles[0]


def figures(times):
    ratios = {
        "overhead": [p / (w + k) - 1 for p, w, k in zip(times["planned"], times["without"], times["kernel"])],
        "speedup": [d / p for d, p in zip(times["dense"], times["planned"])],
        "attention_share": [1 - w / d for w, d in zip(times["without"], times["dense"])],
    }
    return {name: {"median": statistics.median(values), "spread": middle_half(values)} for name, values in ratios.items()}


def peak_mb(ways, way):
    if ways.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    getattr(ways, way)()
    return torch.cuda.max_memory_allocated() / 1e6


def facts(args, device, dtype):
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "calibatt": calibatt.__version__}
    return {"commit": commit, "device": card, "dtype": str(dtype), "arguments": {k: str(v) for k, v in vars(args).items()}, "versions": versions}


def parsed():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=SIZES, default="wan")
    parser.add_argument("--size", choices=["tiny", "480p", "720p"], default="tiny")
    parser.add_argument("--layers", type=int, default=4, help="of the transformer; 40 is Wan 14B, 48 Mochi [4]")
    parser.add_argument("--steps", type=int, default=2, help="denoising steps of a run [2]")
    parser.add_argument("--density", type=float, default=0.375)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--compiled", action="store_true", help="the transformer's blocks by torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def main():
    args = parsed()
    device = torch.device(args.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    height, width, frames = SIZES[args.model][args.size]
    call = dict(height=height, width=width, num_frames=frames, num_inference_steps=args.steps, guidance_scale=args.guidance)
    pipe = make_pipe(args, device, dtype)
    result = facts(args, device, dtype)
    with tempfile.TemporaryDirectory() as name, torch.no_grad():
        folder = Path(name)
        if args.size == "tiny":
            settings = {"block_q": 16, "block_k": 16, "token_order": "tiles:2x2x4"}
        else:  # as for large models; maps of so many tokens would take minutes a layer
            settings = {"block_q": 128, "block_k": 128, "measure": "levels"}
        plan = calibatt.calibrate(pipe, [PROMPT], folder / "plan.safetensors", args.density, settings=settings, **call)
        result["checked_error"] = check(args, pipe, str(folder / "plan.safetensors.profile"), call, folder)
        calibatt.apply(pipe, plan)
        if args.compiled:
            for block in getattr(pipe.transformer, "blocks", None) or pipe.transformer.transformer_blocks:
                block.compile(fullgraph=True)
        measure(args, Ways(args, pipe, plan, call), result)
    print(json.dumps({name: result[name] for name in ("figures", "recompilations", "memory_beyond_dense_mb", "density")}, indent=1))


def measure(args, ways, result):
    ways.prepare_kernel()
    names = ["dense", "planned", "without", "kernel"]
    for _ in range(2):
        for way in names:
            ways.time(way)
    dense_peak, planned_peak = peak_mb(ways, "dense"), peak_mb(ways, "planned")
    summary = calibatt.summary(ways.pipe)
    result["density"] = summary.density_of_run
    result["kernel"] = summary.reports[0]["kernel"]
    masks = sum(report["mask_bytes"] for report in summary.reports) / 1e6
    result["memory_beyond_dense_mb"] = None if dense_peak is None else planned_peak - dense_peak + masks
    counters.clear()
    result["times"] = {way: [] for way in names}
    for _ in range(args.rounds):
        for way in random.sample(names, len(names)):
            result["times"][way].append(ways.time(way))
        result["figures"] = figures(result["times"])
        result["recompilations"] = counters["stats"]["unique_graphs"]
        args.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
