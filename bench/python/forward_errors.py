#!/usr/bin/env python3
"""How much one forward of tiny-wan errs, by what of it is in 8 bits, over what diffusers' own bf16 errs: issue 18's bars are 1.4 for attention alone, and with it
4.5 for linear layers in e4m3 and 2 in int8.

    python bench/python/forward_errors.py --bench build/cpu/bench/calibatt_forward_error_bench --output errors.json

Inputs are those of diffusers' own float32 runs of held-out prompts (the conditional forward of some steps), the error is that of the prediction:
‖found − float32‖ / ‖float32‖. With --backend cuda (and --device cuda) our kernels compute attention in 8 bits; on a CPU it is played.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models/tiny-wan"
BARS = {("bf16", True): 1.4, ("e4m3", True): 4.5, ("int8", True): 2.0}


@torch.no_grad()
def record(args):
    """→ tensors by name for the program, and diffusers' own bf16 error of each case."""
    pipe = WanPipeline.from_pretrained(MODEL, dtype=torch.float32).to(args.device)
    pipe.set_progress_bar_config(disable=True)
    half = WanTransformer3DModel.from_pretrained(MODEL / "transformer", dtype=torch.bfloat16).to(args.device)
    forward, tensors, errors = pipe.transformer.forward, {}, {}
    prompts = (MODEL / "prompts/heldout.txt").read_text().splitlines()[: args.prompts]
    for index, prompt in enumerate(prompts):
        calls = 0

        def kept(hidden_states, timestep, encoder_hidden_states, **others):
            nonlocal calls
            output = forward(hidden_states=hidden_states, timestep=timestep, encoder_hidden_states=encoder_hidden_states, **others)
            step, branch = divmod(calls, 2)
            calls += 1
            if branch == 0 and step + 1 in args.at:
                case = f"prompt_{index}.step_{step + 1}"
                tokens = int(encoder_hidden_states[0].abs().amax(1).nonzero().max()) + 1  # the rest is padding
                found = half(hidden_states.bfloat16(), timestep, encoder_hidden_states.bfloat16(), return_dict=False)[0].float()
                errors[case] = float((found - output[0]).norm() / output[0].norm())
                new = {"latents": hidden_states[0], "timestep": timestep.float().reshape(-1)[:1], "text": encoder_hidden_states[0, :tokens], "output": output[0][0]}
                tensors.update({f"{case}.{name}": x.cpu().contiguous().clone() for name, x in new.items()})
                print(f"{case}: {tokens} tokens of text, diffusers' bf16 errs by {errors[case]:.5f}", flush=True)
            return output

        pipe.transformer.forward = kept
        pipe(prompt=prompt, negative_prompt="", height=args.size, width=args.size, num_frames=args.frames, num_inference_steps=args.steps, guidance_scale=4.0,
             output_type="latent", generator=torch.Generator("cpu").manual_seed(1000 + index))  # fmt: skip
    return tensors, errors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", type=Path, required=True, help="calibatt_forward_error_bench")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", default="cpu", help="of diffusers")
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--at", type=int, nargs="+", default=[1, 5, 10, 15, 20], help="steps, from 1")
    parser.add_argument("--frames", type=int, default=65)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tensors, bf16 = record(args)
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.safetensors"
        save_file(tensors, inputs)
        command = [str(args.bench), "--transformer", str(MODEL / "transformer"), "--inputs", str(inputs), "--backend", args.backend]
        lines = [json.loads(line) for line in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()]
    ways = {}
    for line in lines:
        ways.setdefault((line["layers"], line["attention_in_8_bits"]), []).append(line)
    summary = []
    for (layers, attention), found in ways.items():
        ratios = {line["case"]: line["error"] / bf16[line["case"]] for line in found}
        bar = BARS.get((layers, attention))
        summary.append({"layers": layers, "attention_in_8_bits": attention, "median": statistics.median(ratios.values()), "least": min(ratios.values()),
                        "most": max(ratios.values()), "bar": bar, "over_bf16": ratios})  # fmt: skip
        print(f"{layers:5} {'with attention in 8 bits' if attention else '':25} {summary[-1]['median']:.2f} ({summary[-1]['least']:.2f} to {summary[-1]['most']:.2f})"
              f" times diffusers' bf16" + (f", bar {bar}" if bar else ""))  # fmt: skip
    what = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items() if key not in ("bench", "output")}
    args.output.write_text(json.dumps({"torch": torch.__version__, "settings": what, "diffusers_bf16": bf16, "summary": summary, "forwards": lines}, indent=1) + "\n")


if __name__ == "__main__":
    main()
