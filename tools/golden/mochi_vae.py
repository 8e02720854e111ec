"""Golden data of Mochi's video autoencoder, from diffusers' AutoencoderKLMochi with random weights.

    python tools/golden/mochi_vae.py

Writes tests/golden/data/mochi_vae/<model>/: config.json and diffusion_pytorch_model.safetensors as diffusers saves them, without the
encoder (weights in bfloat16), and golden.safetensors: per case <case>.latents (normalised, as the denoising loop leaves them) and
<case>.decoded [frames, 3, H, W], clamped to [-1, 1], decoded in one piece as MochiPipeline does it. All float32 arithmetic.
Deterministic. Run it again only when the cases change: the C++ test must keep passing on the committed files.
"""

import pathlib

import torch
from diffusers import AutoencoderKLMochi
from safetensors.torch import load_file, save_file
from vae import randomise

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data/mochi_vae"

MODELS = {
    # Mochi 1 in miniature: four levels, six frames and eight pixels per latent; groups of two channels at the last level.
    "mochi1": dict(decoder_block_out_channels=(64, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1)),
    # What the configuration allows besides: other expansions (also none), levels without blocks, no statistics, a scale.
    "odd": dict(decoder_block_out_channels=(32, 32, 64), layers_per_block=(1, 2, 1, 0), temporal_expansions=(3, 2),
                spatial_expansions=(2, 1), latent_channels=3, latents_mean=None, latents_std=None, scaling_factor=1.3,
                add_attention_block=(False, True, True, True)),
}  # fmt: skip

# A norm of very few pixels magnifies rounding errors: none has fewer than six.
# model: [(latent frames, rows, columns), ...]
CASES = {
    "mochi1": [(1, 3, 5), (2, 4, 3), (4, 3, 2)],
    "odd": [(1, 4, 3), (3, 5, 7), (5, 6, 3)],
}


@torch.no_grad()
def main():
    for index, (name, settings) in enumerate(MODELS.items()):
        generator = torch.Generator("cpu").manual_seed(40 + index)
        z_dim = settings.get("latent_channels", 12)
        encoder = (32,) * len(settings["decoder_block_out_channels"])
        vae = AutoencoderKLMochi(encoder_block_out_channels=encoder, **settings).eval()
        randomise(vae, generator)
        vae.decoder.proj_out.weight.data *= 0.25  # most pixels within [-1, 1]
        folder = DATA / name
        vae.to(torch.bfloat16).save_pretrained(folder)
        file = folder / "diffusion_pytorch_model.safetensors"
        save_file({key: value for key, value in load_file(file).items() if key.startswith("decoder.")}, file, {"format": "pt"})
        vae.float()

        golden = {}
        for frames, height, width in CASES[name]:
            case = f"{frames}x{height}x{width}"
            latents = torch.randn((1, z_dim, frames, height, width), generator=generator)
            if vae.config.latents_mean is None:  # MochiPipeline.__call__
                z = latents / vae.config.scaling_factor
            else:
                shape = (1, z_dim, 1, 1, 1)
                z = latents * torch.tensor(vae.config.latents_std).view(shape) / vae.config.scaling_factor
                z += torch.tensor(vae.config.latents_mean).view(shape)
            decoded = vae.decode(z, return_dict=False)[0]
            exact = vae.double().decode(z.double(), return_dict=False)[0]
            vae.float()
            assert decoded.shape[2] == vae.temporal_compression_ratio * (frames - 1) + 1
            print(name, case, list(decoded.shape[1:]), f"std {decoded.std():.3f}", f"rounding {(decoded - exact).norm() / exact.norm():.1e}",
                  f"clamped {(decoded.abs() >= 1).float().mean():.3f}")  # fmt: skip
            golden[f"{case}.latents"] = latents[0].contiguous()
            golden[f"{case}.decoded"] = decoded[0].clamp(-1, 1).transpose(0, 1).contiguous()
        save_file(golden, folder / "golden.safetensors")


if __name__ == "__main__":
    main()
