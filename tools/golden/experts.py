"""Golden data of Wan 2.2's pair of transformers: what diffusers' WanPipeline makes with two small ones, in float32 on the CPU.

    python tools/golden/experts.py

Writes tests/golden/data/experts/: transformer/ and transformer_2/ (random weights, bfloat16) and golden.safetensors with
the frames [frames, height, width, 3] of one prompt, and every setting in golden.json. Text encoder, tokenizer,
autoencoder and scheduler are those of models/tiny-wan. Deterministic.
"""

import json
import pathlib
import shutil

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/golden/data/experts"
CONFIG = dict(num_layers=2, num_attention_heads=3, attention_head_dim=32, ffn_dim=200, text_dim=256, freq_dim=64,
              in_channels=16, out_channels=16, qk_norm="rms_norm_across_heads", cross_attn_norm=True)  # fmt: skip
SETTINGS = dict(prompt="a red circle moves to the right", negative_prompt="blurred", seed=11, height=48, width=80,
                video_frames=9, steps=6, cfg_scale=4.0, cfg_scale_2=3.0, boundary_ratio=0.875)  # fmt: skip


def make_transformer(seed, config):
    generator = torch.Generator().manual_seed(seed)
    model = WanTransformer3DModel(**config)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            value = 1 + 0.3 * noise
        else:
            value = noise * (0.1 if parameter.dim() == 1 else 0.4 if "table" in name else 1.2 / parameter[0].numel() ** 0.5)
        parameter.data = value.to(torch.bfloat16).float()
    return model


def write_frames(pipeline, settings, data=DATA, **options):
    """What the pipeline makes, to golden.safetensors; returned as well."""
    pipeline.set_progress_bar_config(disable=True)
    frames = pipeline(
        prompt=settings["prompt"], negative_prompt=settings["negative_prompt"], height=settings["height"],
        width=settings["width"], num_frames=settings["video_frames"], num_inference_steps=settings["steps"],
        guidance_scale=settings["cfg_scale"], generator=torch.Generator("cpu").manual_seed(settings["seed"]),
        output_type="pt", **options,
    ).frames[0]  # fmt: skip
    frames = (frames.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    save_file({"frames": frames.contiguous()}, data / "golden.safetensors")
    return frames


@torch.no_grad()
def main():
    shutil.rmtree(DATA, ignore_errors=True)
    pair = {}
    for seed, name in ((51, "transformer"), (52, "transformer_2")):
        make_transformer(seed, CONFIG).to(torch.bfloat16).save_pretrained(DATA / name)
        pair[name] = WanTransformer3DModel.from_pretrained(DATA / name, torch_dtype=torch.float32)
    tiny = ROOT / "models/tiny-wan"
    vae = AutoencoderKLWan.from_pretrained(tiny, subfolder="vae", torch_dtype=torch.float32)
    pipeline = WanPipeline.from_pretrained(tiny, vae=vae, torch_dtype=torch.float32, **pair)
    pipeline.register_to_config(boundary_ratio=SETTINGS["boundary_ratio"])
    used = []
    for name, transformer in pair.items():
        transformer.register_forward_hook(lambda *_, name=name: used.append(name))
    frames = write_frames(pipeline, SETTINGS, guidance_scale_2=SETTINGS["cfg_scale_2"])
    settings = SETTINGS | {"forwards": [used.count(name) for name in pair]}
    (DATA / "golden.json").write_text(json.dumps(settings, indent=1) + "\n")
    print(f"{tuple(frames.shape)} mean {frames.float().mean():.1f} std {frames.float().std():.1f}; forwards {settings['forwards']}")


if __name__ == "__main__":
    main()
