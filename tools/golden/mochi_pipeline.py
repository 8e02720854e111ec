"""Golden data of Mochi's whole pipeline: what diffusers' MochiPipeline makes of prompts with a small random model and with
models/tiny-mochi, in float32.

    python tools/golden/mochi_pipeline.py

Writes tests/golden/data/mochi_pipeline/: model/, a folder as diffusers saves it (weights in bfloat16), with the settings that
the published model has; <case>.png, the frames of a run under one another (8 bits, as `round(255 · x)`); and golden.json, the
settings of the runs ("model": of the shipped one). Deterministic; to be run again when models/tiny-mochi changes.
"""

import json
import pathlib
import shutil

import numpy as np
import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
from mochi import randomise
from PIL import Image
from transformers import T5Config, T5EncoderModel, T5Tokenizer

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data"
FOLDER = DATA / "mochi_pipeline"

# Another number of tokens for each branch; an empty negative prompt, which is no text at all; a cut prompt without guidance.
CASES = {
    "guided": dict(prompt="a red circle moves to the left, softly", negative_prompt="clouds", seed=42, steps=5, guidance_scale=4.5,
                   height=48, width=80, num_frames=13),
    "empty": dict(prompt="a green  star\\nrotates over bricks!", negative_prompt="", seed=7, steps=4, guidance_scale=6.0, height=64,
                  width=48, num_frames=7),
    "long": dict(prompt="the camera pans over a background of waves, " * 20, negative_prompt="", seed=3, steps=2,
                 guidance_scale=1.0, height=32, width=48, num_frames=19),
}  # fmt: skip
SHIPPED = {
    "tiny_mochi": dict(prompt="a red circle moves to the right over a striped background", negative_prompt="", seed=42, steps=4,
                       guidance_scale=4.5, height=96, width=128, num_frames=13),
}  # fmt: skip


def randomise_t5(model, generator):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "layer_norm" in name:
            value = 1 + 0.3 * noise
        elif "relative_attention_bias" in name or "shared" in name:
            value = noise
        elif name.endswith("SelfAttention.q.weight"):
            value = noise * (parameter.shape[1] * model.config.d_kv) ** -0.5
        else:
            value = noise * parameter.shape[1] ** -0.5
        parameter.data = value.to(torch.bfloat16).float()


def randomise_vae(model, generator):
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            value = 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        else:
            value = noise * parameter[0].numel() ** -0.5
        if name.startswith("decoder.proj_out"):
            value = 0.3 * value  # few pixels beyond black and white, where errors would not show
        parameter.data = value.to(torch.bfloat16).float()


def make_pipeline():
    generator = torch.Generator().manual_seed(80)
    tokenizer = T5Tokenizer.from_pretrained(DATA / "tokenizer")
    text_encoder = T5EncoderModel(
        T5Config(vocab_size=120, d_model=32, d_kv=8, num_heads=3, d_ff=40, num_layers=2, feed_forward_proj="gated-gelu",
                 dropout_rate=0.0, is_encoder_decoder=False, use_cache=False, tie_word_embeddings=False)).eval()  # fmt: skip
    randomise_t5(text_encoder, generator)
    transformer = MochiTransformer3DModel(num_layers=3, num_attention_heads=2, attention_head_dim=32, pooled_projection_dim=48,
                                          in_channels=12, text_embed_dim=32, time_embed_dim=64).eval()  # fmt: skip
    randomise(transformer, generator)
    vae = AutoencoderKLMochi(encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 64),
                             layers_per_block=(1, 1, 1, 1, 1), latents_mean=[0.05 * i - 0.3 for i in range(12)],
                             latents_std=[0.8 + 0.05 * i for i in range(12)], scaling_factor=1.0).eval()  # fmt: skip
    randomise_vae(vae, generator)
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return MochiPipeline(scheduler, vae, text_encoder, tokenizer, transformer, force_zeros_for_empty_prompt=True)


def run(pipeline, cases):
    pipeline.set_progress_bar_config(disable=True)
    for name, case in cases.items():
        settings = {key: value for key, value in case.items() if key not in ("seed", "steps")}
        frames = pipeline(**settings, num_inference_steps=case["steps"], generator=torch.Generator("cpu").manual_seed(case["seed"]),
                          output_type="np").frames[0]  # fmt: skip
        picture = np.round(frames * 255).astype(np.uint8)
        Image.fromarray(picture.reshape(-1, case["width"], 3)).save(FOLDER / f"{name}.png", optimize=True)
        print(f"{name}: {picture.shape} mean {picture.mean():.1f}, std {picture.std():.1f}")


@torch.no_grad()
def main():
    pipeline = make_pipeline()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    run(pipeline, CASES)
    run(MochiPipeline.from_pretrained(DATA.parents[2] / "models/tiny-mochi", torch_dtype=torch.float32), SHIPPED)
    shipped = {name: case | {"model": "tiny-mochi"} for name, case in SHIPPED.items()}
    (FOLDER / "golden.json").write_text(json.dumps(CASES | shipped, indent=1) + "\n")
    for component in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        component.to(torch.bfloat16)
    pipeline.save_pretrained(FOLDER / "model")


if __name__ == "__main__":
    main()
