"""Golden data of Wan 2.2 TI2V-5B, text to video: what diffusers' WanPipeline makes with a small one, in float32 on the CPU.

    python tools/golden/ti2v.py

Writes tests/golden/data/ti2v/: transformer/ and vae/ (random weights, bfloat16; the 48 latent channels, the 16x16x4 pixels
of each and the latents' mean and deviation are those of the public model) and golden.safetensors with the frames [frames,
height, width, 3] of one prompt, and every setting in golden.json. The pipeline gives each token a timestep
(expand_timesteps). Text encoder, tokenizer and scheduler are those of models/tiny-wan. Deterministic.
"""

import json
import pathlib
import shutil

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from experts import CONFIG, make_transformer, write_frames
from vae import MODELS, randomise

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/golden/data/ti2v"
SETTINGS = dict(prompt="a red circle moves to the right", negative_prompt="blurred", seed=13, height=96, width=160,
                video_frames=9, steps=5, cfg_scale=5.0)  # fmt: skip
# As published: Wan-Video/Wan2.2, wan/modules/vae2_2.py.
MEAN = [-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891,
        0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502,
        -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723,
        -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667]  # fmt: skip
DEVIATION = [0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
             0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
             0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
             0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744]  # fmt: skip


@torch.no_grad()
def main():
    shutil.rmtree(DATA, ignore_errors=True)
    make_transformer(61, CONFIG | dict(in_channels=48, out_channels=48)).to(torch.bfloat16).save_pretrained(DATA / "transformer")
    vae = AutoencoderKLWan(**MODELS["wan22"] | dict(z_dim=48, latents_mean=MEAN, latents_std=DEVIATION)).eval()
    randomise(vae, torch.Generator("cpu").manual_seed(62))
    vae.to(torch.bfloat16).save_pretrained(DATA / "vae")

    transformer = WanTransformer3DModel.from_pretrained(DATA / "transformer", torch_dtype=torch.float32)
    vae = AutoencoderKLWan.from_pretrained(DATA / "vae", torch_dtype=torch.float32)
    pipeline = WanPipeline.from_pretrained(ROOT / "models/tiny-wan", transformer=transformer, vae=vae, torch_dtype=torch.float32)
    pipeline.register_to_config(expand_timesteps=True)
    shapes = []
    transformer.register_forward_pre_hook(lambda _, __, given: shapes.append(given["timestep"].shape), with_kwargs=True)
    frames = write_frames(pipeline, SETTINGS, DATA)
    assert all(len(shape) == 2 for shape in shapes), "a timestep for each token"
    (DATA / "golden.json").write_text(json.dumps(SETTINGS, indent=1) + "\n")
    print(f"{tuple(frames.shape)} mean {frames.float().mean():.1f} std {frames.float().std():.1f}; timesteps {tuple(shapes[0])}")


if __name__ == "__main__":
    main()
