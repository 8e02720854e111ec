#!/usr/bin/env python3
"""Draws a result of attention.py: products per second on the kept blocks, against the density of the mask.

    plot.py RESULT.json IMAGE.png

A kernel whose skipped blocks cost nothing is a horizontal line. Marks: the tensor cores' rated dense peak, and what cuBLAS sustains on
the card before it throttles (8192³, measured beside the peers).
"""

import json
import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

RATED_TFLOPS, CUBLAS_SUSTAINED = 989, 700
COLOURS = {"75600": "#1f5fa8", "32760": "#d1721b", "44776": "#4a8f3c"}


def main(result, image):
    with open(result) as file:
        report = json.load(file)
    shapes = json.loads((Path(__file__).parent / "cases.json").read_text())["shapes"]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    for shape, cases in report["times"].items():
        spec = shapes[shape]
        if "dtype" in spec:  # the same shape in half precision: a line on top of the other
            continue
        points = {"sm90": [], "sm80": []}
        for name, case in cases.items():
            times = [ms for ms in case["ms"] if ms]
            plain = name.removeprefix("sm80 ")
            if not times or not (plain == "dense" or plain.startswith("mixed")):
                continue
            work = 4 * spec["heads"] * spec["tokens"] ** 2 * spec["head_dim"] * case["share"]
            points[case["kernel"]].append((case["share"], work / statistics.median(times) / 1e9))
        for kernel, style in (("sm90", "o-"), ("sm80", "s--")):
            if len(points[kernel]) > 1:
                axes.plot(*zip(*sorted(points[kernel]), strict=True), style, color=COLOURS.get(shape), label=f"{kernel}, {spec['heads']} × {int(shape):,} tokens")
        cudnn = cases.get("cudnn", {}).get("ms")
        cudnn = [ms for ms in cudnn or [] if ms]
        if cudnn and shape == "75600":
            work = 4 * spec["heads"] * spec["tokens"] ** 2 * spec["head_dim"]
            axes.plot([1], [work / statistics.median(cudnn) / 1e9], "x", color="black", label="cuDNN, dense, 75,600 tokens")
    axes.axhline(RATED_TFLOPS, color="grey", linewidth=0.8)
    axes.text(0.02, RATED_TFLOPS - 28, "rated peak, dense bf16", color="grey", fontsize=8)
    axes.axhline(CUBLAS_SUSTAINED, color="grey", linewidth=0.8, linestyle=":")
    axes.text(0.02, CUBLAS_SUSTAINED + 8, "cuBLAS, sustained", color="grey", fontsize=8)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1040)
    axes.set_xlabel("density: kept blocks of all")
    axes.set_ylabel("TFLOP/s on kept blocks")
    axes.legend(fontsize=8, loc="lower right")
    axes.set_title(f"{report['machine']['gpu']}, sustained", fontsize=10)
    figure.tight_layout()
    figure.savefig(image)


if __name__ == "__main__":
    main(*sys.argv[1:3])
