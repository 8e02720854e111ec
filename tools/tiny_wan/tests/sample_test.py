"""Training's sampler gives WanPipeline's videos."""

import pathlib
import tempfile

import torch

from tools.tiny_wan.export import export, random_parts
from tools.tiny_wan.sample import Sampler


def test_matches_wan_pipeline():
    from diffusers import WanPipeline

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        export(folder, *random_parts(0))
        pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        prompts, seeds = ["A red star spins over a brick wall.", "a blue ring grows"], [3, 4]
        expected = [
            torch.from_numpy(
                pipeline(prompt, height=64, width=64, num_frames=5, num_inference_steps=4, guidance_scale=4.0,
                         generator=torch.Generator().manual_seed(seed), output_type="np").frames[0])  # fmt: skip
            for prompt, seed in zip(prompts, seeds)
        ]
        parts = pipeline.transformer, pipeline.text_encoder, pipeline.vae
        sampler = Sampler(parts, folder / "tokenizer", "cpu")
        clips = sampler.videos(prompts, seeds, steps=4, guidance=4.0, shift=3.0, frames=2, size=8)
    difference = (clips.float() / 255 - torch.stack(expected)).abs()
    assert torch.stack(expected).std() > 0.05
    assert difference.max() < 0.01
