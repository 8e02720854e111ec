"""Golden data of models/tiny-mochi's denoiser: what a trained Mochi sees in a run, from diffusers' MochiPipeline in float32.

    python tools/golden/tiny_mochi.py [--full]

Writes tests/golden/data/tiny_mochi/golden.safetensors: of some steps of a run, guided, of a held-out prompt, <case>.latents,
.timestep (Mochi's own: 0 is noise), .text (the prompt's real tokens), .output of the float32 run, and .bf16_error, the relative
error of diffusers' own bfloat16 forward of the same inputs, the yardstick for ours. Deterministic; to be run again when
models/tiny-mochi changes. --full: a run of the size that the model was trained for, which is written to the present folder.
"""

import pathlib
import sys

import torch
from diffusers import MochiPipeline, MochiTransformer3DModel
from safetensors.torch import save_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/tiny-mochi"
SMALL = dict(height=256, width=256, num_frames=13)
TRAINED = dict(height=256, width=256, num_frames=97)
STEPS = 20


def record(size, prompt, seed):
    """Inputs and output of the conditional forward of each step."""
    pipe = MochiPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    forward, recorded = pipe.transformer.forward, []

    def kept(hidden_states, encoder_hidden_states, timestep, encoder_attention_mask, **others):
        output = forward(hidden_states, encoder_hidden_states, timestep, encoder_attention_mask, **others)
        # Without a negative prompt's tokens the first half of the batch is the unconditional one.
        recorded.append((hidden_states[-1:], encoder_hidden_states[-1:], timestep[-1:], encoder_attention_mask[-1:], output[0][-1:]))
        return output

    pipe.transformer.forward = kept
    pipe(prompt=prompt, **size, num_inference_steps=STEPS, guidance_scale=4.5, output_type="latent",
         generator=torch.Generator().manual_seed(seed))  # fmt: skip
    return recorded


@torch.no_grad()
def main():
    full = "--full" in sys.argv
    prompts = (ROOT / "models/tiny-wan/prompts/heldout.txt").read_text().splitlines()
    half = MochiTransformer3DModel.from_pretrained(MODEL / "transformer", torch_dtype=torch.bfloat16)
    golden = {}
    for index in (0, 1) if full else (0,):
        for step, inputs in enumerate(record(TRAINED if full else SMALL, prompts[index], 1000 + index), start=1):
            if step not in ((1, 5, 10, 15, 20) if full else (1, 10, 20)):
                continue
            latents, text, timestep, mask, output = inputs
            found = half(latents.bfloat16(), text.bfloat16(), timestep, mask, return_dict=False)[0].float()
            error = (found - output).norm() / output.norm()
            case = f"prompt_{index}.step_{step}" if full else f"step_{step}"
            golden |= {f"{case}.latents": latents[0].clone(), f"{case}.timestep": timestep.float().clone(),
                       f"{case}.text": text[0][mask[0].bool()].clone(), f"{case}.output": output[0].clone(),
                       f"{case}.bf16_error": error.reshape(1)}  # fmt: skip
            print(f"{case}: time {timestep.item():.1f}, {int(mask.sum())} tokens, bfloat16 error {error:.2e}", flush=True)
    folder = pathlib.Path() if full else ROOT / "tests/golden/data/tiny_mochi"
    folder.mkdir(exist_ok=True)
    save_file({key: value.contiguous() for key, value in golden.items()}, folder / "golden.safetensors")


if __name__ == "__main__":
    main()
