"""Golden data of the video autoencoder, from diffusers' AutoencoderKLWan with random weights.

    python tools/golden/vae.py

Writes tests/golden/data/vae/<model>/: config.json and diffusion_pytorch_model.safetensors as diffusers saves them (weights
in bfloat16), and golden.safetensors: per case <case>.latents (normalised, as the denoising loop leaves them) and
<case>.decoded [frames, 3, H, W], <case>.video and <case>.encoded (the posterior's mean, normalised). All float32 arithmetic.
Deterministic. Run it again only when the cases change: the C++ test must keep passing on the committed files.
"""

import pathlib

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data/vae"

MODELS = {
    # Wan 2.1 in miniature: no patches, four levels, time halved in two of three.
    "wan21": dict(base_dim=4, z_dim=4, dim_mult=[1, 2, 4, 4], num_res_blocks=2, temperal_downsample=[False, True, True]),
    # tiny-wan in miniature: patches of two, three levels, time halved in both; channels that are not whole vectors.
    "tiny": dict(base_dim=12, z_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[True, True], patch_size=2,
                 in_channels=12, out_channels=12),
    # What the configuration allows besides: a decoder of another width, uneven levels, time halved once.
    "odd": dict(base_dim=6, decoder_base_dim=8, z_dim=3, dim_mult=[1, 3, 2], num_res_blocks=1,
                temperal_downsample=[False, True], scale_factor_temporal=2, scale_factor_spatial=4),
    # Wan 2.2's (5B) in miniature: shortcuts around every level, patches of two, a decoder of another width.
    "wan22": dict(base_dim=4, decoder_base_dim=6, z_dim=5, dim_mult=[1, 2, 4, 4], num_res_blocks=2, is_residual=True,
                  temperal_downsample=[False, True, True], patch_size=2, in_channels=12, out_channels=12, scale_factor_spatial=16),
    # What the configuration allows besides: time halved first, levels that grow by other factors.
    "wan22_odd": dict(base_dim=6, z_dim=3, dim_mult=[1, 2, 1], num_res_blocks=1, is_residual=True, temperal_downsample=[True, False],
                      scale_factor_temporal=2, scale_factor_spatial=4),
}  # fmt: skip

# model: [(frames, height, width), ...]
CASES = {
    "wan21": [(1, 24, 40), (5, 24, 40), (9, 16, 8)],
    "tiny": [(1, 16, 24), (9, 24, 40), (17, 8, 16)],
    "odd": [(5, 20, 12)],
    "wan22": [(1, 32, 48), (5, 16, 32), (13, 32, 16)],
    "wan22_odd": [(1, 12, 8), (5, 8, 20)],
}


def randomise(vae, generator):
    """Weights that keep the signal's size through the layers and leave nothing at its special initial value."""
    for name, parameter in vae.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("gamma") or (name.endswith("weight") and parameter.dim() == 1):
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = noise * (1.2 / parameter[0].numel() ** 0.5)
        parameter.data = value.to(torch.bfloat16).float()


def video(frames, height, width, generator):
    """Smooth in space, moving in time."""
    low = torch.randn(1, 3, max(2, frames // 2), 4, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(low, size=(frames, height, width), mode="trilinear", align_corners=True)
    return (0.6 * smooth + 0.05 * torch.randn(smooth.shape, generator=generator)).clamp(-1, 1)


@torch.no_grad()
def main():
    for index, (name, settings) in enumerate(MODELS.items()):
        generator = torch.Generator("cpu").manual_seed(20 + index)
        z_dim = settings["z_dim"]
        mean = [round(float(x), 4) for x in 0.5 * torch.randn(z_dim, generator=generator)]
        std = [round(float(x), 4) for x in 0.5 + torch.rand(z_dim, generator=generator)]
        vae = AutoencoderKLWan(latents_mean=mean, latents_std=std, **settings).eval()
        randomise(vae, generator)
        folder = DATA / name
        vae.to(torch.bfloat16).save_pretrained(folder)
        vae.float()

        shift = torch.tensor(mean).view(1, z_dim, 1, 1, 1)
        scale = 1.0 / torch.tensor(std).view(1, z_dim, 1, 1, 1)  # as WanPipeline has it
        golden = {}
        for frames, height, width in CASES[name]:
            case = f"{frames}x{height}x{width}"
            pixels = video(frames, height, width, generator)
            encoded = (vae.encode(pixels).latent_dist.mode() - shift) * scale
            latents = torch.randn(encoded.shape, generator=generator)
            decoded = vae.decode(latents / scale + shift, return_dict=False)[0]
            assert decoded.shape == pixels.shape
            print(name, case, "latents", list(latents.shape[1:]), f"decoded std {decoded.std():.3f}",
                  f"clamped {(decoded.abs() == 1).float().mean():.3f} encoded std {encoded.std():.3f}")  # fmt: skip
            golden[f"{case}.latents"] = latents[0].contiguous()
            golden[f"{case}.decoded"] = decoded[0].transpose(0, 1).contiguous()
            golden[f"{case}.video"] = pixels[0].transpose(0, 1).contiguous()
            golden[f"{case}.encoded"] = encoded[0].contiguous()
        save_file(golden, folder / "golden.safetensors")


if __name__ == "__main__":
    main()
