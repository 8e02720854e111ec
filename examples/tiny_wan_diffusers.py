#!/usr/bin/env python3
"""A video dense and a video by a plan, in diffusers, with the small model that comes with calibatt: about a minute on a CPU.

    pip install "$(echo dist/calibatt-*.whl)[diffusers]"
    python examples/tiny_wan_diffusers.py

Prints how close both are, and writes both beside each other to tiny_wan_diffusers.webp (left dense, right planned). The command line makes
the same videos: `calibatt calibrate` and `calibatt generate` with the arguments that are printed.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import WanPipeline
from PIL import Image

import calibatt

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "models/tiny-wan"  # a real one: "Wan-AI/Wan2.1-T2V-14B-Diffusers", 1280×720, 81 frames, 50 steps, torch.bfloat16, pipe.to("cuda")
CALL = dict(height=256, width=256, num_frames=13, num_inference_steps=8, guidance_scale=4.0)
CALIBRATION = ["a red circle moves to the right over a striped background", "a blue star rotates over waves"]
PROMPT = "a yellow heart bounces over a checkerboard"


def generate(pipe, seed):
    """→ [frames, height, width, 3], 8 bits, and the seconds."""
    start = time.perf_counter()
    frames = pipe(PROMPT, generator=torch.Generator("cpu").manual_seed(seed), output_type="np", **CALL).frames[0]
    return np.round(frames * 255).astype(np.uint8), time.perf_counter() - start


def psnr(a, b):
    """dB; of the whole video."""
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--density", type=float, default=0.4, help="share of attention to compute [0.4]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("tiny_wan_diffusers.webp"))
    parser.add_argument("--plan", type=Path, default=Path("tiny_wan_plan.safetensors"))
    args = parser.parse_args()

    pipe = WanPipeline.from_pretrained(MODEL, dtype=torch.float32)
    dense, dense_seconds = generate(pipe, args.seed)
    plan = calibatt.calibrate(pipe, CALIBRATION, args.plan, density=args.density, **CALL)  # a second time: what is there is used
    calibatt.apply(pipe, plan)
    planned, planned_seconds = generate(pipe, args.seed)
    print(calibatt.summary(pipe))

    both = [Image.fromarray(frame) for frame in np.concatenate([dense, planned], axis=2)]
    both[0].save(args.output, save_all=True, append_images=both[1:], duration=1000 // 16, loop=0, quality=90)
    print(f"dense {dense_seconds:.1f} s, planned {planned_seconds:.1f} s → {args.output}")
    print(f"PSNR {psnr(dense, planned):.2f} dB at density {plan.density:.3f}")
    return psnr(dense, planned)


if __name__ == "__main__":
    main()
