#!/usr/bin/env python3
"""Videos of many prompts over a Ray cluster, with the small model that comes with calibatt: on one machine, two processes, about a minute.

    make                                                        # the program, build/cpu/calibatt
    pip install "$(echo dist/calibatt-*.whl)[ray]"
    python examples/ray_tiny_wan.py --program build/cpu/calibatt

On a cluster of yours: `RAY_ADDRESS=…`, a model folder that all machines have, actors=… and num_gpus=1. docs/clusters.md says more.
"""

import argparse
from pathlib import Path

from calibatt import ray as cluster

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models/tiny-wan"
SIZE = ["-W", 128, "-H", 128, "--video-frames", 17, "--steps", 8]
PROMPTS = [f"a {colour} {shape} moves to the right" for colour in ("red", "blue", "yellow", "green") for shape in ("circle", "star")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("ray_tiny_wan"), help="folder [ray_tiny_wan]")
    parser.add_argument("--program", default="calibatt", help="calibatt's program, where it is not on the PATH")
    args = parser.parse_args()
    args.output.mkdir(exist_ok=True)

    # One calibration, measured by all actors, and a plan of it. A second time: what is there is used.
    dense = cluster.Program(str(MODEL), flags=SIZE, program=args.program)
    plan = cluster.calibrate(dense, PROMPTS[:6], args.output / "plan.safetensors", density=0.5, prompts_per_range=3, actors=args.actors)
    print(plan)

    def keep(index, video):
        (args.output / f"{index:04}.mp4").write_bytes(video)

    planned = cluster.Program(str(MODEL), plan=plan.path, flags=SIZE, program=args.program)
    videos = cluster.generate(planned, PROMPTS, seed=1, actors=args.actors, on_result=keep)
    print(f"{len(videos)} videos in {args.output}")
    return videos


if __name__ == "__main__":
    main()
