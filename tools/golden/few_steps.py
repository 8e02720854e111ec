"""Golden data of the four-step model: what diffusers' WanPipeline makes of models/tiny-wan with the LoRA of models/tiny-wan-4step,
fused by diffusers (and rounded to bf16, as weights are stored), in float32.

    python tools/golden/few_steps.py

diffusers' Euler scheduler would shift the levels of a number of steps twice (huggingface/diffusers issue 13243). It gets the levels
themselves, which it shifts once. Writes tests/golden/data/few_steps/frames.png (as pipeline.py) and golden.json. Deterministic; to
be run again when the weights change.
"""

import json

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline
from PIL import Image
from pipeline import ROOT, decode

BASE, FOLDER = ROOT / "models/tiny-wan", ROOT / "models/tiny-wan-4step"
OUTPUT = ROOT / "tests/golden/data/few_steps"
TIMESTEPS = [1000, 750, 500, 250]
CALL = dict(prompt="a red circle moves to the right over a striped background", height=112, width=144, num_frames=21, guidance_scale=1.0)
SEED = 42


class ShiftedOnce(FlowMatchEulerDiscreteScheduler):
    def set_timesteps(self, num_inference_steps, device=None, **others):
        super().set_timesteps(sigmas=[t / self.config.num_train_timesteps for t in TIMESTEPS], device=device)


@torch.no_grad()
def main():
    vae = AutoencoderKLWan.from_pretrained(BASE, subfolder="vae", torch_dtype=torch.float32)
    pipeline = WanPipeline.from_pretrained(
        BASE, vae=vae, scheduler=ShiftedOnce.from_pretrained(FOLDER, subfolder="scheduler"), torch_dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(FOLDER / "lora.safetensors")
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()
    for parameter in pipeline.transformer.parameters():
        parameter.copy_(parameter.to(torch.bfloat16))
    latents = pipeline(
        **CALL, num_inference_steps=len(TIMESTEPS), generator=torch.Generator("cpu").manual_seed(SEED), output_type="latent"
    ).frames.float()
    frames = np.round(decode(vae, latents) * 255).astype(np.uint8)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    Image.fromarray(frames.reshape(-1, CALL["width"], 3)).save(OUTPUT / "frames.png", optimize=True)
    settings = dict(CALL, seed=SEED, timesteps=TIMESTEPS, levels=[float(t) for t in pipeline.scheduler.timesteps])
    (OUTPUT / "golden.json").write_text(json.dumps(settings, indent=1) + "\n")
    print(f"{frames.shape} mean {frames.mean():.1f}, std {frames.std():.1f}; levels {settings['levels']}")


if __name__ == "__main__":
    main()
