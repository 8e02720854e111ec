"""Golden data of the whole pipeline: what diffusers' WanPipeline makes of one prompt, in float32 on the CPU.

    python tools/golden/pipeline.py [--model models/tiny-wan] [--output tests/golden/data/pipeline] [--prompt ...] ...

Writes OUTPUT/frames.png (the frames under one another, 8 bits, as `round(255 · x)`) and OUTPUT/golden.json (every setting,
the scheduler's timesteps, and the SHA-256 of the model's weight files, so that one can tell a changed model from a changed
result). Deterministic; to be run again when the model's weights change.
"""

import argparse
import hashlib
import json
import pathlib

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanPipeline
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[2]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/tiny-wan")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "tests/golden/data/pipeline")
    parser.add_argument("--prompt", default="a red circle moves to the right over a striped background")
    parser.add_argument("--negative-prompt", default="")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--cfg-scale", type=float, default=5.0)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--video-frames", type=int, default=17)
    return parser.parse_args()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def decode(vae, latents):
    """As WanPipeline does after its loop."""
    mean = torch.tensor(vae.config.latents_mean).view(1, vae.config.z_dim, 1, 1, 1)
    scale = 1.0 / torch.tensor(vae.config.latents_std).view(1, vae.config.z_dim, 1, 1, 1)
    pixels = vae.decode(latents / scale + mean, return_dict=False)[0]
    return (pixels[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).numpy()  # [frames, height, width, 3]


@torch.no_grad()
def main():
    args = arguments()
    vae = AutoencoderKLWan.from_pretrained(args.model, subfolder="vae", torch_dtype=torch.float32)
    pipeline = WanPipeline.from_pretrained(args.model, vae=vae, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    latents = pipeline(
        prompt=args.prompt,
        negative_prompt=args.negative_prompt,
        height=args.height,
        width=args.width,
        num_frames=args.video_frames,
        num_inference_steps=args.steps,
        guidance_scale=args.cfg_scale,
        generator=torch.Generator("cpu").manual_seed(args.seed),
        output_type="latent",
    ).frames.float()
    frames = np.round(decode(vae, latents) * 255).astype(np.uint8)

    args.output.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frames.reshape(-1, args.width, 3)).save(args.output / "frames.png", optimize=True)
    settings = {key: value for key, value in vars(args).items() if key not in ("model", "output")}
    settings["timesteps"] = [float(t) for t in pipeline.scheduler.timesteps]
    settings["weights_sha256"] = {
        str(path.relative_to(args.model)): sha256(path) for path in sorted(args.model.glob("*/*.safetensors"))
    }
    (args.output / "golden.json").write_text(json.dumps(settings, indent=1) + "\n")
    print(f"{frames.shape} mean {frames.mean():.1f}, std {frames.std():.1f}; latents std {latents.std():.3f}")


if __name__ == "__main__":
    main()
