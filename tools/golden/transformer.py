"""Golden data of the denoiser, from diffusers' WanTransformer3DModel with random weights.

    python tools/golden/transformer.py

Writes tests/golden/data/transformer/<model>/: config.json and diffusion_pytorch_model.safetensors as diffusers saves them
(weights in bfloat16), and golden.safetensors: per case <case>.latents, .timestep, .text (the prompt's real rows),
.max_length (the rows it is zero-padded to), .block.<i> (each block's output) and .output, all from float32 arithmetic;
.bf16_error is the relative error (L2) of diffusers' own bfloat16 run of the same case, the yardstick for ours.
Deterministic. Run it again only when the cases change: the C++ test must keep passing on the committed files.
"""

import pathlib
import shutil

import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/data/transformer"

COMMON = dict(qk_norm="rms_norm_across_heads", cross_attn_norm=True, in_channels=16, out_channels=16, freq_dim=256)
MODELS = {
    # tiny-wan with half its heads (the file stays small).
    "tiny": dict(COMMON, num_layers=2, num_attention_heads=2, attention_head_dim=64, ffn_dim=512, text_dim=256),
    # Wan's head dimension, one head, no norm before cross-attention.
    "head128": dict(COMMON, num_layers=2, num_attention_heads=1, attention_head_dim=128, ffn_dim=256, text_dim=40,
                    cross_attn_norm=False, freq_dim=64),
    # Three heads of a width that is no multiple of a vector, no norm of queries and keys.
    "plain": dict(COMMON, num_layers=2, num_attention_heads=3, attention_head_dim=40, ffn_dim=200, text_dim=48, qk_norm=None,
                  in_channels=4, out_channels=6, freq_dim=32),
    # Six narrow heads, patches that also span frames.
    "patches": dict(COMMON, num_layers=3, num_attention_heads=6, attention_head_dim=16, ffn_dim=128, text_dim=24,
                    patch_size=(2, 1, 3), in_channels=3, out_channels=3, freq_dim=64),
}  # fmt: skip

# model: {case: (grid of tokens, timestep, prompt rows, padded to)}
CASES = {
    "tiny": {"odd": ((3, 5, 7), 999.0, 9, 512), "even": ((4, 4, 8), 37.0, 1, 512)},
    "head128": {"odd": ((3, 5, 7), 412.5, 21, 64), "line": ((1, 1, 67), 1000.0, 12, 12)},
    "plain": {"odd": ((3, 5, 7), 731.0, 5, 512), "full": ((2, 3, 11), 2.0, 32, 32)},
    "patches": {"odd": ((3, 5, 7), 250.0, 7, 226), "one": ((1, 1, 1), 500.0, 3, 8)},
}


def randomise(model, generator):
    """Weights that keep the signal's size through the blocks and leave nothing at its special initial value."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "scale_shift_table" in name:
            value = 0.4 * noise
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.3 * noise
        elif name.endswith("bias"):
            value = 0.1 * noise
        else:
            value = noise * (1.2 / parameter[0].numel() ** 0.5)
        parameter.data = value.to(torch.bfloat16).float()


def run(model, latents, timestep, text, max_length):
    """Block outputs and the output. Queries see the zero rows of the padded prompt too, as in diffusers' pipeline."""
    padded = torch.zeros(1, max_length, text.shape[1])
    padded[0, : len(text)] = text
    blocks = []
    hooks = [b.register_forward_hook(lambda module, args, out: blocks.append(out[0].float())) for b in model.blocks]
    output = model(latents[None].to(model.dtype), torch.tensor([timestep]), padded.to(model.dtype), return_dict=False)[0]
    for hook in hooks:
        hook.remove()
    return blocks, output[0].float()


@torch.no_grad()
def main():
    for index, (name, settings) in enumerate(MODELS.items()):
        generator = torch.Generator().manual_seed(20 + index)
        model = WanTransformer3DModel(**settings).eval()
        if settings["qk_norm"] is None:  # today's class normalises whatever the configuration says
            for block in model.blocks:
                for attention in (block.attn1, block.attn2):
                    attention.norm_q = attention.norm_k = torch.nn.Identity()
        randomise(model, generator)
        golden = {}
        inputs = {}
        for case, (grid, timestep, rows, max_length) in CASES[name].items():
            size = [tokens * patch for tokens, patch in zip(grid, model.config.patch_size)]
            latents = torch.randn(settings["in_channels"], *size, generator=generator)
            text = torch.randn(rows, settings["text_dim"], generator=generator)
            blocks, output = run(model, latents, timestep, text, max_length)
            inputs[case] = (latents, timestep, text, max_length, output)
            golden |= {
                f"{case}.latents": latents,
                f"{case}.timestep": torch.tensor([timestep]),
                f"{case}.text": text,
                f"{case}.max_length": torch.tensor([max_length]),
                f"{case}.output": output,
            }
            golden |= {f"{case}.block.{i}": block for i, block in enumerate(blocks)}
        folder = DATA / name
        shutil.rmtree(folder, ignore_errors=True)
        model.to(torch.bfloat16).save_pretrained(folder)
        half = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16) if settings["qk_norm"] else model
        for case, (latents, timestep, text, max_length, output) in inputs.items():
            error = (run(half, latents, timestep, text, max_length)[1] - output).norm() / output.norm()
            golden[f"{case}.bf16_error"] = error.reshape(1)
            print(f"{name}.{case}: output rms {output.square().mean().sqrt():.3f}, bfloat16 error {error:.2e}")
        save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")


if __name__ == "__main__":
    main()
