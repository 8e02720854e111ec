"""Training's sampler gives the videos of diffusers' pipelines."""

import diffusers
import pytest
import torch

from tools.tiny_video import architecture as architectures
from tools.tiny_video.export import export, random_parts
from tools.tiny_video.sample import Sampler


@pytest.mark.parametrize("name, setting", [("wan", (4, 4.0, 3.0)), ("mochi", (4, 4.5))])
def test_matches_diffusers(tmp_path, name, setting):
    architecture = architectures.load(name)
    export(architecture, tmp_path, *random_parts(architecture, 0))
    classes = getattr(diffusers, architecture.MODEL_INDEX["_class_name"])
    pipeline = classes.from_pretrained(tmp_path, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts, seeds = ["A red star spins over a brick wall.", "a blue ring grows"], [3, 4]
    steps, guidance, *_ = setting
    frames = architectures.total_frames(architecture, 2)
    expected = [
        torch.from_numpy(
            pipeline(prompt, height=64, width=64, num_frames=frames, num_inference_steps=steps, guidance_scale=guidance,
                     generator=torch.Generator().manual_seed(seed), output_type="np").frames[0])  # fmt: skip
        for prompt, seed in zip(prompts, seeds)
    ]
    parts = pipeline.transformer, pipeline.text_encoder, pipeline.vae
    sampler = Sampler(architecture, parts, tmp_path / "tokenizer", "cpu")
    clips = sampler.videos(prompts, seeds, *setting, frames=2, size=8)
    difference = (clips.float() / 255 - torch.stack(expected)).abs()
    assert torch.stack(expected).std() > 0.05
    assert difference.max() < 0.01
