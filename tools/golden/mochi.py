"""Golden data of Mochi's denoiser, from diffusers' MochiTransformer3DModel with random weights.

    python tools/golden/mochi.py

Writes tests/golden/data/mochi/<model>/: config.json and bfloat16 weights, as diffusers saves them; golden.safetensors: per
case <case>.latents, .timestep (Mochi's own: 0 is noise), .text (the prompt's real tokens; absent for a prompt without any),
.block.<i> and .text_block.<i> (both streams after each block, the text's real tokens) and .output of a float32 run on the
prompt padded to its mask, as diffusers' pipeline does it, and .bf16_error: the relative error of diffusers' own bfloat16 run of
the same case, the yardstick for ours. Deterministic. Run it again only when the cases change: the C++ test must keep passing on
the committed files.
"""

import pathlib
import shutil

import torch
from diffusers import MochiTransformer3DModel
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data/mochi"

MODELS = {
    # Mochi's head dimension, one head.
    "head128": dict(num_layers=2, num_attention_heads=1, attention_head_dim=128, pooled_projection_dim=48, in_channels=12,
                    text_embed_dim=64, time_embed_dim=256),
    # Two heads of half that, text wider than a head.
    "tiny": dict(num_layers=2, num_attention_heads=2, attention_head_dim=64, pooled_projection_dim=96, in_channels=12,
                 text_embed_dim=72, time_embed_dim=64),
    # Three heads of a width that is no multiple of a vector, text as wide as the video, one patch per latent pixel.
    "plain": dict(num_layers=2, num_attention_heads=3, attention_head_dim=40, pooled_projection_dim=120, in_channels=4,
                  out_channels=6, patch_size=1, text_embed_dim=40, time_embed_dim=32),
    # Narrow, with a layer between the first and the last.
    "deep": dict(num_layers=3, num_attention_heads=4, attention_head_dim=16, pooled_projection_dim=32, in_channels=12,
                 text_embed_dim=32, time_embed_dim=32),
    # A single layer, which is the first and the last.
    "single": dict(num_layers=1, num_attention_heads=2, attention_head_dim=16, pooled_projection_dim=24, in_channels=3,
                   text_embed_dim=16, time_embed_dim=16),
}  # fmt: skip

# model: {case: (grid of tokens, timestep, tokens of the prompt, padded to)}
CASES = {
    "head128": {"odd": ((3, 5, 7), 999.6094, 9, 256), "line": ((1, 1, 67), 0.0, 12, 12), "empty": ((2, 3, 4), 25.0, 0, 16)},
    "tiny": {"odd": ((3, 5, 7), 0.390625, 23, 64), "even": ((4, 4, 8), 512.5, 1, 256)},
    "plain": {"odd": ((3, 5, 7), 731.25, 5, 32), "full": ((2, 11, 3), 2.5, 32, 32)},
    "deep": {"odd": ((3, 5, 7), 62.5, 9, 16), "empty": ((1, 3, 2), 437.5, 0, 16)},
    "single": {"odd": ((5, 3, 2), 250.0, 7, 8), "one": ((1, 1, 1), 875.0, 3, 8)},
}


def randomise(model, generator):
    """Weights that keep the signal's size through the blocks and leave nothing at its special initial value."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name == "pos_frequencies":
            value = noise * torch.tensor([0.3, 0.05, 0.05])[:, None, None]
        elif "norm_q" in name or "norm_k" in name or "norm_added" in name:
            value = 1 + 0.3 * noise
        elif ".norm1" in name and name.endswith("weight"):
            value = noise * (0.6 / parameter[0].numel() ** 0.5)
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = noise * (1.2 / parameter[0].numel() ** 0.5)
        parameter.data = value.to(torch.bfloat16).float()


def run(model, latents, timestep, text, padded_to):
    """Both streams after each block, and the output. What pads the prompt is noise, so that who looks at it is found out."""
    padded = torch.randn(1, padded_to, model.config.text_embed_dim, generator=torch.Generator().manual_seed(7))
    padded[0, : len(text)] = text
    mask = (torch.arange(padded_to) < len(text))[None]
    video, words = [], []

    def keep(module, args, output):
        video.append(output[0][0].float())
        words.append(output[1][0, : len(text)].float())

    hooks = [block.register_forward_hook(keep) for block in model.transformer_blocks]
    output = model(latents[None].to(model.dtype), padded.to(model.dtype), torch.tensor([timestep]), mask, return_dict=False)[0]
    for hook in hooks:
        hook.remove()
    return video, words, output[0].float()


@torch.no_grad()
def main():
    for index, (name, settings) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(60 + index)
        model = MochiTransformer3DModel(**settings).eval()
        randomise(model, generator)
        golden, inputs = {}, {}
        for case, (grid, timestep, tokens, padded_to) in CASES[name].items():
            patch = model.config.patch_size
            latents = torch.randn(settings["in_channels"], grid[0], grid[1] * patch, grid[2] * patch, generator=generator)
            text = torch.randn(tokens, settings["text_embed_dim"], generator=generator)
            video, words, output = run(model, latents, timestep, text, padded_to)
            inputs[case] = (latents, timestep, text, padded_to, output)
            golden |= {f"{case}.latents": latents, f"{case}.timestep": torch.tensor([timestep]), f"{case}.output": output}
            golden |= {f"{case}.block.{i}": block for i, block in enumerate(video)}
            if tokens:
                golden |= {f"{case}.text": text} | {f"{case}.text_block.{i}": block for i, block in enumerate(words[:-1])}
        folder = DATA / name
        shutil.rmtree(folder, ignore_errors=True)
        model.to(torch.bfloat16).save_pretrained(folder)
        half = MochiTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
        for case, (latents, timestep, text, padded_to, output) in inputs.items():
            error = (run(half, latents, timestep, text, padded_to)[2] - output).norm() / output.norm()
            golden[f"{case}.bf16_error"] = error.reshape(1)
            print(f"{name}.{case}: output rms {output.square().mean().sqrt():.3f}, bfloat16 error {error:.2e}")
        save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")


if __name__ == "__main__":
    main()
