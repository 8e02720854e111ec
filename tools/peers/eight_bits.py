"""How much attention in 8 bits errs: our kernels beside published recipes, on the same bf16 inputs, against a float64 softmax.

    python -m tools.peers.eight_bits [-o out/eight_bits.json] [--library build/cuda/libcalibatt.so] [--device cuda]

Inputs: normal numbers; keys and values with a few channels far from zero; q, k and v of tiny-wan's self-attention, recorded in diffusers on held-out
prompts. Recipes are played in torch from their papers: operands rounded as published, products and sums in float32, so that each is shown at its best; one
has its P·V summed by the tensor core, as the fastest forms do. Kernels need --library and a GPU. An error is ‖found − exact‖ / ‖exact‖ over all that
was attended; of recorded inputs also that of the worst (step, layer, head).
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import sys
from dataclasses import dataclass, field

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]
LARGEST_BYTE, LARGEST_E4M3 = 127.0, 448.0
CHECKED_ROWS = 2048  # queries that are compared, of inputs with more tokens


def _scale(x, block, largest):
    """One scale for each [block, all channels] piece of x [heads, tokens, d], as [heads, tokens, 1]; block 0: for each channel of all tokens."""
    if block == 0:
        return x.abs().amax(1, keepdim=True).clamp(min=1e-30) / largest
    tokens = x.shape[1]
    padded = torch.nn.functional.pad(x.abs().amax(2), (0, -tokens % block))
    peaks = padded.view(len(x), -1, block).amax(2).clamp(min=1e-30)
    return (peaks / largest).repeat_interleave(block, 1)[:, :tokens, None]


def bytes_of(x, block):
    """x as a run in int8 sees it, a scale for each `block` tokens."""
    scale = _scale(x, block, LARGEST_BYTE)
    return (x / scale).round().clamp(-LARGEST_BYTE, LARGEST_BYTE) * scale


def to_e4m3(x):
    return x.clamp(-LARGEST_E4M3, LARGEST_E4M3).to(torch.float8_e4m3fn)


def e4m3_of(x, block):
    """x as a run in e4m3 sees it; block: tokens of a scale, or 0 for scales of channels."""
    scale = _scale(x, block, LARGEST_E4M3)
    return to_e4m3(x / scale).float() * scale


def rotated(x):
    """Channels mixed by a Hadamard matrix, which leaves products of rotated q and k as they are."""
    d = x.shape[2]
    matrix = torch.ones(1, 1, device=x.device)
    while len(matrix) < d:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return x @ matrix / math.sqrt(d)


def less_mean(x):
    return x - x.mean(1, keepdim=True)


@dataclass
class Recipe:
    """attend(q, k, v [heads, tokens, d] float32, rows) → [heads, rows, d]."""

    queries_and_keys: object  # (q, k) → as they are multiplied
    values: object  # v → as they are multiplied
    weights: float | None = None  # e4m3(weight · this), weights at most 1; None: fp16
    takes_mean: bool = False  # the values' mean, less that of the rounded, is added at the end
    by_tensor_core: bool = False  # P·V by torch._scaled_mm with fast accumulation

    def attend(self, q, k, v, rows):
        q, k = self.queries_and_keys(q, k)
        mean = v.mean(1, keepdim=True) if self.takes_mean else torch.zeros_like(v[:, :1])
        rounded = self.values(v - mean)
        if self.takes_mean:
            mean = mean - rounded.mean(1, keepdim=True)
        out = []
        for head in range(len(q)):
            logits = q[head, rows] @ k[head].T / math.sqrt(q.shape[2])
            weights = (logits - logits.amax(1, keepdim=True)).exp()
            sums = weights.sum(1, keepdim=True)
            if self.by_tensor_core:
                product = self._by_tensor_core(weights, v[head])
            else:
                weights = weights.half().float() if self.weights is None else to_e4m3(weights * self.weights).float() / self.weights
                product = weights @ rounded[head]
            out.append(product / sums + mean[head])
        return torch.stack(out)

    def _by_tensor_core(self, weights, v):
        scale = _scale(v[None], 0, LARGEST_E4M3)[0]
        one = torch.ones((), device=v.device)
        columns = to_e4m3(v / scale).t().contiguous().t()
        product = torch._scaled_mm(to_e4m3(weights * self.weights), columns, scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=True)
        return product * scale / self.weights


RECIPES = {
    "SageAttention: int8 q, k (128, 64 tokens a scale), fp16 P, V": Recipe(lambda q, k: (bytes_of(q, 128), bytes_of(less_mean(k), 64)), lambda v: v.half().float()),
    "SageAttention2: int8 q, k (32, 64), e4m3 P, V": Recipe(lambda q, k: (bytes_of(q, 32), bytes_of(less_mean(k), 64)), lambda v: e4m3_of(v, 0), 448.0),
    "the same, P·V by the tensor core": Recipe(lambda q, k: (bytes_of(q, 32), bytes_of(less_mean(k), 64)), lambda v: e4m3_of(v, 0), 448.0, by_tensor_core=True),
    "FlashAttention-3: e4m3, a scale a head": Recipe(lambda q, k: (e4m3_of(q, q.shape[1]), e4m3_of(k, k.shape[1])), lambda v: e4m3_of(v, v.shape[1]), 256.0),
    "FlashAttention-3: blocks of 128, rotated": Recipe(
        lambda q, k: (e4m3_of(rotated(q), 128), e4m3_of(rotated(k), 128)), lambda v: e4m3_of(v, 128), 256.0
    ),
    "ours, played": Recipe(lambda q, k: (bytes_of(q, 1), bytes_of(less_mean(k), 64)), lambda v: e4m3_of(v, 0), 448.0, takes_mean=True),
}  # fmt: skip


def kernels(library):
    """attend(q, k, v bf16 [1, tokens, heads, d]) by name."""
    sys.path.insert(0, str(ROOT / "bench/cuda"))
    from calibatt_kernels import Library

    lib = Library(library)

    def runner(kernel):
        def attend(q, k, v):
            out = torch.full_like(q, float("nan"))
            lib.attention(q, k, v, out, scale=q.shape[3] ** -0.5, kernel=kernel).run()
            return out

        return attend

    return {"our bf16 kernel": runner("sm90"), "our 8-bit kernel": runner("sm90_fp8"), "our 8-bit kernel, three groups": runner("sm90_fp8_wide")}


def exact(q, k, v, rows):
    out = [((q[h, rows].double() @ k[h].double().T) / math.sqrt(q.shape[2])).softmax(1) @ v[h].double() for h in range(len(q))]
    return torch.stack(out)


@dataclass
class Errors:
    """Of one way on one kind of input: squares summed over all sites, and the worst site's own error."""

    difference: float = 0.0
    norm: float = 0.0
    worst: float = 0.0
    left_out: str = ""

    def add(self, found, wanted):
        difference, norm = ((found.double() - wanted) ** 2).sum((1, 2)), (wanted**2).sum((1, 2))
        self.difference += float(difference.sum())
        self.norm += float(norm.sum())
        each = (difference / norm).sqrt()
        self.worst = float("inf") if bool(each.isnan().any()) else max(self.worst, float(each.max()))

    @property
    def error(self):
        return math.sqrt(self.difference / self.norm) if self.norm else float("nan")


@dataclass
class Table:
    ways: dict  # name → function of bf16 [1, tokens, heads, d]
    errors: dict = field(default_factory=dict)  # input → way → Errors
    sites: dict = field(default_factory=dict)

    def add(self, name, q, k, v):
        """q, k, v: bf16 [heads, tokens, d]."""
        mine = self.errors.setdefault(name, {})
        self.sites[name] = self.sites.get(name, 0) + len(q)
        tokens = q.shape[1]
        rows = torch.arange(0, tokens, max(1, tokens // CHECKED_ROWS), device=q.device)
        wanted = exact(q, k, v, rows)
        wide = [x.float() for x in (q, k, v)]
        for way, recipe in RECIPES.items():
            if recipe.by_tensor_core and not q.is_cuda:
                continue
            mine.setdefault(way, Errors()).add(recipe.attend(*wide, rows), wanted)
        for way, attend in self.ways.items():
            errors = mine.setdefault(way, Errors())
            try:
                found = attend(*(x.transpose(0, 1)[None].contiguous() for x in (q, k, v)))
                errors.add(found[0].transpose(0, 1)[:, rows], wanted)
            except RuntimeError as error:  # a kernel that does not take this head dimension
                errors.left_out = " ".join(str(error).split())

    def print(self):
        for name, ways in self.errors.items():
            print(f"{name} ({self.sites[name]} heads)")
            for way, errors in ways.items():
                print(f"  {way:62} " + (errors.left_out[:80] if errors.left_out else f"{errors.error:.5f}, worst {errors.worst:.4f}"))

    def as_json(self):
        def of(errors):
            return {"left_out": errors.left_out} if errors.left_out else {"error": errors.error, "worst": errors.worst}

        return {name: {"heads": self.sites[name], **{way: of(errors) for way, errors in ways.items()}} for name, ways in self.errors.items()}


def random_inputs(table, device, heads, sizes):
    generator = torch.Generator(device).manual_seed(1)
    for tokens in sizes:
        q, k, v = (torch.randn(heads, tokens, 128, device=device, generator=generator) for _ in range(3))
        table.add(f"normal, d128, {tokens} tokens", *(x.bfloat16() for x in (q, k, v)))
    for x in (k, v):
        x[..., :4] += 20
    table.add(f"channel outliers (4 of 128 channels of k and v moved by 20), {sizes[-1]} tokens", *(x.bfloat16() for x in (q, k, v)))


class Recorded:
    """A recorder of tools.peers.run.Harness: what self-attention gets at some steps goes straight into the table."""

    def __init__(self, table, steps):
        self.table, self.steps = table, steps

    def record(self, call, q, k, v):
        if call.step + 1 in self.steps:
            for i in range(len(q)):
                self.table.add("recorded from tiny-wan, d64", *(x[i].bfloat16() for x in (q, k, v)))


def recorded_inputs(table, args):
    from tools.peers.run import MODEL, Harness

    harness = Harness(args.device, args.steps, args.frames, args.size)
    prompts = (MODEL / "prompts/heldout.txt").read_text().splitlines()[: args.prompts]
    every = {1, *range(args.steps // 4, args.steps + 1, max(1, args.steps // 4))}
    harness.videos(prompts, [1000 + i for i in range(len(prompts))], recorder=Recorded(table, every), decode=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=ROOT / "out/eight_bits.json")
    parser.add_argument("--library", type=pathlib.Path, help="libcalibatt.so with CUDA kernels; without it recipes alone")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tokens", type=int, nargs="*", default=[1024, 20000], help="of random inputs, 4 heads each; outliers have the last")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    table = Table(kernels(args.library) if args.library else {})
    with torch.no_grad():
        if args.tokens:
            random_inputs(table, args.device, 4, args.tokens)
        if args.prompts:
            recorded_inputs(table, args)
    table.print()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    args.output.write_text(json.dumps({"device": device, "torch": torch.__version__, "inputs": table.as_json()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
