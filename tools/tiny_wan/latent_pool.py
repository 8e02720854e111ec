"""Rendered clips as normalised latents with tokenised captions, held on the device and replaced bit by bit."""

from __future__ import annotations

import random

import torch

from . import config
from .clips import caption, render, sample_scene
from .whole_clip import WholeClip, to_video

CAPTIONS_PER_CLIP = 4


class LatentPool:
    """latents [P, 16, T, H, W] bf16 with mean 0 and deviation 1 per channel; ids [P, 4, 64], four captions of each.

    latent_frames < 17 keeps the first frames only (the autoencoder is causal, so these equal the whole clip's).
    """

    def __init__(self, capacity: int, latent_frames: int, vae: WholeClip, mean, std, tokenizer, device, seed: int,
                 frames: int = config.NUM_FRAMES, size: int = config.SIZE, at_once: int = 16):  # fmt: skip
        self.vae, self.tokenizer, self.device = vae, tokenizer, device
        self.capacity, self.latent_frames, self.frames, self.size, self.at_once = capacity, latent_frames, frames, size, at_once
        self.rng = random.Random(seed)
        shape = (1, config.LATENT_CHANNELS, 1, 1, 1)
        self.mean, self.std = (torch.tensor(v, device=device).view(shape) for v in (mean, std))
        latent = size // 8
        self.latents = torch.empty(
            capacity, config.LATENT_CHANNELS, latent_frames, latent, latent, device=device, dtype=torch.bfloat16
        )
        self.ids = torch.empty(capacity, CAPTIONS_PER_CLIP, config.TRAIN_PROMPT_TOKENS, dtype=torch.long, device=device)
        self.filled, self.next, self.drawn = 0, 0, 0

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Draws `count` new clips over the oldest ones."""
        for first in range(0, count, self.at_once):
            scenes = [sample_scene(self.rng, "train") for _ in range(min(self.at_once, count - first))]
            latents = self.encode(scenes)
            texts = [caption(scene, self.rng) for scene in scenes for _ in range(CAPTIONS_PER_CLIP)]
            ids = self.tokenizer(texts).view(len(scenes), CAPTIONS_PER_CLIP, -1)
            where = (torch.arange(len(scenes)) + self.next) % self.capacity
            self.latents[where.to(self.device)] = latents
            self.ids[where.to(self.device)] = ids.to(self.device)
            self.next = (self.next + len(scenes)) % self.capacity
            self.filled = min(self.capacity, self.filled + len(scenes))
            self.drawn += len(scenes)

    def encode(self, scenes) -> torch.Tensor:
        still = self.latent_frames == 1
        clips = render(scenes, self.device, 1 if still else self.frames, self.size)
        video = to_video(clips[:, : 1 + 4 * (self.latent_frames - 1)])
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            mean, _ = self.vae.encode(video)
        return ((mean.float() - self.mean) / self.std).to(torch.bfloat16)

    def batch(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(self.filled, (count,), device=self.device, generator=generator)
        which = torch.randint(CAPTIONS_PER_CLIP, (count,), device=self.device, generator=generator)
        return self.latents[rows].float(), self.ids[rows, which]

    def state(self) -> dict:
        return {"latents": self.latents[: self.filled], "ids": self.ids[: self.filled], "next": self.next, "drawn": self.drawn}

    def restore(self, saved: dict) -> None:
        count = min(self.capacity, len(saved["latents"]))
        self.latents[:count] = saved["latents"][:count]
        self.ids[:count] = saved["ids"][:count]
        self.filled, self.next, self.drawn = count, saved["next"] % self.capacity, saved["drawn"]
