"""The whole-clip passes equal diffusers' own, gradients too."""

import torch

from tools.tiny_video import mochi
from tools.tiny_video.mochi import WholeClip


def _vae():
    torch.manual_seed(0)
    vae = mochi.make_vae().eval()
    for parameter in vae.parameters():  # biases and gains away from their defaults
        if parameter.dim() == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return vae


@torch.no_grad()
def test_encode_matches_diffusers():
    vae = _vae()
    for frames in (1, 7, 13):
        video = torch.rand(2, 3, frames, 32, 48) * 2 - 1
        expected = vae.encode(video).latent_dist
        mean, logvar = WholeClip(vae).encode(video)
        assert expected.mean.std() > 0.05
        assert torch.allclose(mean, expected.mean, atol=2e-4), frames
        assert torch.allclose(logvar, expected.logvar, atol=2e-4), frames


@torch.no_grad()
def test_decode_matches_diffusers():
    vae = _vae()
    for frames in (1, 2, 3):
        latents = torch.randn(2, 12, frames, 4, 6)
        expected = vae.decode(latents).sample
        assert expected.std() > 0.05
        assert torch.allclose(WholeClip(vae).decode(latents), expected, atol=2e-4), frames


def test_gradients_match_diffusers():
    vae = _vae()
    video = torch.rand(1, 3, 7, 16, 24) * 2 - 1

    def gradients(encode, decode):
        vae.zero_grad()
        decode(encode(video)).square().mean().backward()
        return {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}

    expected = gradients(lambda x: vae.encode(x).latent_dist.mean, lambda z: vae.decode(z).sample)
    clip = WholeClip(vae)
    actual = gradients(lambda x: clip.encode(x)[0], clip.decode)
    assert expected.keys() == actual.keys()
    for name, value in expected.items():
        assert (actual[name] - value).norm() < 1e-3 * value.norm() + 1e-7, name
