#!/usr/bin/env python3
"""Draws where a forward's time goes, dense and planned, as stacked bars.

    plot_forward.py FORWARD.json OPERATIONS.json IMAGE.png

FORWARD: of calibatt_forward_bench (all layers of 14B at 720p); OPERATIONS: of calibatt_operations_bench, which says what a layer's linear
layers take by themselves. What neither counts is the rest: norms, rotation, cross-attention.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

MODEL = "14B, 720p, 81 frames"
CALLS = {  # of a layer
    "linear: q, k, v": 1,
    "linear: dim to dim": 1,
    "linear: weights of a prompt's keys to dim, added to the residual": 1,
    "linear: dim to dim, gated and added": 1,
    "linear: feed-forward in, GELU (75600 rows)": 1,
    "linear: feed-forward out, gated and added (75600 rows)": 1,
}


def main(forward, operations, image):
    run = json.loads(Path(forward).read_text())
    timed = next(model for model in json.loads(Path(operations).read_text())["models"] if model["model"] == MODEL)
    milliseconds = {operation["operation"]: operation["ms"] for operation in timed["operations"]}
    linear = run["layers"] * sum(calls * milliseconds[name] for name, calls in CALLS.items()) / 1e3
    figure, axes = plt.subplots(figsize=(8, 2.6), dpi=120)
    for place, kind in enumerate(("planned", "dense")):
        attention = run[f"{kind}_attention_seconds"]
        parts = {"self-attention": attention, "linear layers": linear, "rest": run[f"{kind}_seconds"] - attention - linear}
        left = 0
        for (name, seconds), colour in zip(parts.items(), ("#1f5fa8", "#d1721b", "#8a8a8a"), strict=True):
            axes.barh(place, seconds, left=left, color=colour, label=name if place == 0 else None)
            narrow = seconds < 0.5  # its number stands beside it
            axes.text(left + (seconds + 0.05 if narrow else seconds / 2), place, f"{seconds:.2f}", ha="left" if narrow else "center",
                      va="center", color="black" if narrow else "white", fontsize=9)  # fmt: skip
            left += seconds
        print(f"{kind}: " + ", ".join(f"{name} {seconds:.2f} s ({seconds / left:.1%})" for name, seconds in parts.items()))
    axes.margins(x=0.08)  # for the numbers beside the bars
    axes.set_xlim(left=0)
    axes.set_yticks([0, 1], [f"planned ({run['density']:.3f})", "dense"])
    axes.set_xlabel("seconds a forward, 14B, 720p × 81 frames, H100")
    axes.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(image)


if __name__ == "__main__":
    main(*sys.argv[1:4])
