"""Draws the committed logs: python -m tools.tiny_wan.plot --logs tools/tiny_wan/logs -o tools/tiny_wan/logs/curves.png"""

from __future__ import annotations

import argparse
import json
import pathlib


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logs", default="tools/tiny_wan/logs", type=pathlib.Path)
    parser.add_argument("-o", "--output", default="tools/tiny_wan/logs/curves.png", type=pathlib.Path)
    arguments = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4))
    vae = [row for row in read(arguments.logs / "vae.jsonl") if "loss" in row]
    left.plot([row["seconds"] for row in vae], [row["psnr"] for row in vae])
    left.set(title="autoencoder", xlabel="seconds", ylabel="PSNR of training crops, dB")

    rows = read(arguments.logs / "dit.jsonl")
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
    figure.savefig(arguments.output, dpi=80)


if __name__ == "__main__":
    main()
