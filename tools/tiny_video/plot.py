"""Draws the committed logs: python -m tools.tiny_video.plot --model wan"""

from __future__ import annotations

import argparse
import json
import pathlib

from . import architecture as architectures


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    architectures.add_argument(parser)
    parser.add_argument("--logs", type=pathlib.Path, help="default: the committed ones, tools/tiny_video/logs/MODEL")
    parser.add_argument("-o", "--output", type=pathlib.Path, help="default: curves.png beside the logs")
    arguments = parser.parse_args()
    logs = arguments.logs or pathlib.Path("tools/tiny_video/logs") / arguments.model

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4))
    vae = [row for row in read(logs / "vae.jsonl") if "loss" in row]
    left.plot([row["seconds"] for row in vae], [row["psnr"] for row in vae])
    left.set(title="autoencoder", xlabel="seconds", ylabel="PSNR of training crops, dB")

    rows = read(logs / "dit.jsonl")
    for frames in ("1", "5", "17"):
        points = [(r["seconds"], r["loss"][frames]) for r in rows if "event" not in r and frames in r["loss"]]
        middle.plot(*zip(*points), label=f"{frames} latent frames")
    middle.set(title="transformer: training loss", xlabel="seconds", yscale="log")
    middle.legend()

    # The noise levels are those of the rows; each row of a full-length validation has its step.
    checks = [r for r in rows if r.get("event") == "validation"][1:]
    for sigma in checks[0]["loss"]:
        points = [(r["step"], r["loss"][sigma]) for r in checks if sigma in r["loss"]]
        right.plot(*zip(*points), marker="o", label=f"noise {sigma}")
    right.set(title="validation loss, averaged weights", xlabel="step", yscale="log")
    right.legend()
    figure.tight_layout()
    figure.savefig(arguments.output or logs / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
