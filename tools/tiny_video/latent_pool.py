"""Rendered clips as normalised latents with tokenised captions, held on the device and replaced bit by bit."""

from __future__ import annotations

import random

import torch

from .architecture import total_frames
from .clips import SIZE, caption, render, sample_scene, to_video
from .ring import Ring

CAPTIONS_PER_CLIP = 4


class LatentPool(Ring):
    """latents [P, C, T, H, W] bf16 with mean 0 and deviation 1 per channel; ids [P, 4, L], four captions of each.

    Fewer latent_frames than the whole clip's keep the first frames only (the autoencoder is causal, so these equal the whole clip's).
    """

    def __init__(self, architecture, capacity: int, latent_frames: int, vae, tokenizer, device, seed: int,
                 frames: int | None = None, size: int = SIZE, at_once: int = 16):  # fmt: skip
        """vae: the architecture's WholeClip. tokenizer: a CaptionTokenizer."""
        frames = frames or architecture.NUM_FRAMES
        self.vae, self.tokenizer = vae, tokenizer
        self.latent_frames, self.frames, self.size, self.at_once = latent_frames, frames, size, at_once
        self.rng = random.Random(seed)
        self.frames_used = total_frames(architecture, latent_frames)
        statistics = vae.vae.config.latents_mean, vae.vae.config.latents_std
        self.mean, self.std = (torch.tensor(v, device=device).view(1, -1, 1, 1, 1) for v in statistics)
        latent = size // 8
        super().__init__(
            capacity,
            device,
            latents=((architecture.LATENT_CHANNELS, latent_frames, latent, latent), torch.bfloat16),
            ids=((CAPTIONS_PER_CLIP, architecture.TRAIN_PROMPT_TOKENS), torch.long),
        )
        self.latents, self.ids = self.fields["latents"], self.fields["ids"]

    @torch.no_grad()
    def add(self, count: int) -> None:
        """Draws `count` new clips over the oldest ones."""
        for first in range(0, count, self.at_once):
            scenes = [sample_scene(self.rng, "train") for _ in range(min(self.at_once, count - first))]
            latents = self.encode(scenes)
            texts = [caption(scene, self.rng) for scene in scenes for _ in range(CAPTIONS_PER_CLIP)]
            ids = self.tokenizer(texts).view(len(scenes), CAPTIONS_PER_CLIP, -1)
            self.put(latents=latents, ids=ids)

    def encode(self, scenes) -> torch.Tensor:
        still = self.latent_frames == 1
        clips = render(scenes, self.device, 1 if still else self.frames, self.size)
        video = to_video(clips[:, : self.frames_used])
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            mean, _ = self.vae.encode(video)
        return ((mean.float() - self.mean) / self.std).to(torch.bfloat16)

    def batch(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.rows(count, generator)
        which = torch.randint(CAPTIONS_PER_CLIP, (count,), device=self.device, generator=generator)
        return self.latents[rows].float(), self.ids[rows, which]

    def state(self) -> dict:
        return {"latents": self.latents[: self.filled], "ids": self.ids[: self.filled], "next": self.next, "drawn": self.drawn}

    def restore(self, saved: dict) -> None:
        count = min(self.capacity, len(saved["latents"]))
        self.latents[:count] = saved["latents"][:count]
        self.ids[:count] = saved["ids"][:count]
        self.filled, self.next, self.drawn = count, saved["next"] % self.capacity, saved["drawn"]
