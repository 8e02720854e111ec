#!/usr/bin/env python3
"""Compares builds of the attention library in one run: dense, a mixed mask at density .2, and block energy, beside torch's cuDNN.

    python3 variants.py --seconds 75 --output FILE.json before=PATH/before.so after=PATH/after.so

For kernel work: a change is worth what it gains side by side, on the same card at the same temperature. Each build's dense result is
compared with cuDNN's first. Random order, bursts of 0.35 s per competitor and round, of which the median of the second half counts.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

import torch
from calibatt_kernels import Library
from masks import kept_share, make_mask
from torch.nn.attention import SDPBackend, sdpa_kernel

SHAPES = ((32760, 1560, 0.45), (75600, 3600, 1.0))  # tokens, tokens of a frame, share of the time that is left
HEADS, HEAD_DIM, DENSITY, BURST = 40, 128, 0.2, 0.35


def burst_ms(run):
    times, begin = [], time.time()
    while time.time() - begin < BURST or len(times) < 2:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[len(times) // 2 :])


def measure(libraries, tokens, frame, seconds):
    generator = torch.Generator(device="cuda").manual_seed(1)
    size = (1, tokens, HEADS, HEAD_DIM)
    q, k, v = (torch.randn(size, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(3))
    out = torch.empty_like(q)
    blocks = (tokens + 127) // 128
    mask = make_mask("mixed", DENSITY, HEADS, tokens, frame, 128, 128)
    energy = torch.empty((1, HEADS, blocks, blocks), device="cuda", dtype=torch.float32)
    heads_first = [x.transpose(1, 2) for x in (q, k, v)]

    def cudnn():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(*heads_first)

    reference = cudnn().transpose(1, 2).float()
    cases = {"cudnn": cudnn}
    for name, library in libraries.items():
        common = dict(scale=HEAD_DIM**-0.5)
        cases[f"{name} dense"] = library.attention(q, k, v, out, **common).run
        schedule = library.make_schedule(mask, HEADS, tokens, tokens, 128, 128)
        cases[f"{name} .2"] = library.attention(q, k, v, out, schedule=schedule, **common).run
        cases[f"{name} energy"] = library.attention(q, k, v, out, energy=energy, **common).run
        out.zero_()
        cases[f"{name} dense"]()
        difference = float((out.float() - reference).norm() / reference.norm())
        print(f"{tokens} {name}: relative difference to cuDNN {difference:.5f}", flush=True)
        if not difference < 0.01:
            raise SystemExit(f"{name} is wrong at {tokens} tokens")
    times = {name: [] for name in cases}
    end = time.time() + seconds
    while time.time() < end:
        for name in random.sample(list(cases), len(cases)):
            times[name].append(burst_ms(cases[name]))
    return {"share": kept_share(mask, tokens, 128, 128), "ms": times}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("builds", nargs="+", help="NAME=PATH of libcalibatt.so")
    parser.add_argument("--seconds", type=float, default=75)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    end = time.time() + options.seconds
    libraries = {name: Library(path) for name, path in (build.split("=", 1) for build in options.builds)}
    shapes = {}
    for tokens, frame, share in SHAPES:
        shapes[tokens] = result = measure(libraries, tokens, frame, (end - time.time()) * share)
        options.output.write_text(json.dumps({"shapes": shapes}) + "\n")
        ms, rounds = result["ms"], range(len(result["ms"]["cudnn"]))
        for name in libraries:
            dense, sparse, energy = (ms[f"{name} {case}"] for case in ("dense", ".2", "energy"))
            speedup = statistics.median(ms["cudnn"][i] / dense[i] for i in rounds)
            efficiency = statistics.median(dense[i] * result["share"] / sparse[i] for i in rounds)
            overhead = statistics.median(energy[i] / dense[i] for i in rounds)
            print(f"{tokens} {name:<12} dense {statistics.median(dense):8.2f} ms, {speedup:.3f} x cuDNN; .2: efficiency {efficiency:.3f}; energy {overhead:.3f}")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
