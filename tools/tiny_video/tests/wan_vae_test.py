"""The whole-clip passes equal diffusers' chunked ones."""

import torch

from tools.tiny_video import wan
from tools.tiny_video.wan import WholeClip


def _vae():
    torch.manual_seed(0)
    vae = wan.make_vae().eval()
    for name, parameter in vae.named_parameters():  # biases and gains away from their defaults
        if parameter.dim() == 1 or "gamma" in name:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return vae


@torch.no_grad()
def test_encode_matches_diffusers():
    vae = _vae()
    for frames in (1, 5, 17):
        video = torch.rand(2, 3, frames, 32, 48) * 2 - 1
        expected = vae.encode(video).latent_dist
        mean, logvar = WholeClip(vae).encode(video)
        assert torch.allclose(mean, expected.mean, atol=2e-4), frames
        assert torch.allclose(logvar, expected.logvar, atol=2e-4), frames


@torch.no_grad()
def test_decode_matches_diffusers():
    vae = _vae()
    for frames in (1, 2, 5):
        latents = torch.randn(2, 16, frames, 4, 6)
        expected = vae.decode(latents).sample
        assert torch.allclose(WholeClip(vae).decode(latents).clamp(-1, 1), expected, atol=2e-4), frames
