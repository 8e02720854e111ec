"""Writes the model as the folder that diffusers' pipeline loads: bf16 safetensors and JSON.

  python -m tools.tiny_video.export --random -o DIR          # untrained weights, exact final layout
  python -m tools.tiny_video.export --state DIR -o models/tiny-wan
"""

from __future__ import annotations

import argparse
import json
import pathlib

import torch

from . import architecture as architectures
from . import tokenizer


def export(architecture, folder: pathlib.Path, transformer, text_encoder, vae, flow_shift: float | None = None) -> None:
    """Converts the three modules to bf16 in place and writes them; the tokenizer is left alone if it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    transformer.to(torch.bfloat16).save_pretrained(folder / "transformer")
    text_encoder.to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    vae.to(torch.bfloat16).save_pretrained(folder / "vae")
    architecture.make_scheduler(*([] if flow_shift is None else [flow_shift])).save_pretrained(folder / "scheduler")
    if not (folder / "tokenizer" / "spiece.model").exists():
        tokenizer.write(folder / "tokenizer", architecture.PROMPT_TOKENS, architecture.SENTENCEPIECE)
    (folder / "model_index.json").write_text(json.dumps(architecture.MODEL_INDEX, indent=2) + "\n")
    for component in ("transformer", "text_encoder", "vae"):
        path = folder / component / "config.json"
        values = {k: v for k, v in json.loads(path.read_text()).items() if k != "_name_or_path"}
        path.write_text(json.dumps(values, indent=2) + "\n")


def random_parts(architecture, seed: int):
    """Untrained modules with nothing at zero, so that a test on them sees every weight."""
    torch.manual_seed(seed)
    transformer, text_encoder = architecture.make_transformer(), architecture.make_text_encoder()
    mean, std = torch.randn(architecture.LATENT_CHANNELS) * 0.3, torch.rand(architecture.LATENT_CHANNELS) + 0.5
    vae = architecture.make_vae(mean.tolist(), std.tolist())
    architecture.initialise_transformer(transformer)
    architecture.unsettle(transformer)
    for module in (transformer, text_encoder, vae):
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1 or "gamma" in name:
                parameter.data.add_(0.05 * torch.randn_like(parameter))
    return transformer, text_encoder, vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    architectures.add_argument(parser)
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--random", action="store_true", help="untrained weights")
    parser.add_argument("--state", type=pathlib.Path, help="the training state's folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flow-shift", type=float)
    arguments = parser.parse_args()
    if arguments.random == (arguments.state is not None):
        parser.error("give either --random or --state")
    architecture = architectures.load(arguments.model)
    if arguments.random:
        parts = random_parts(architecture, arguments.seed)
    else:
        from .state import load_parts

        parts = load_parts(architecture, arguments.state)
    export(architecture, arguments.output, *parts, flow_shift=arguments.flow_shift)
    size = sum(p.stat().st_size for p in arguments.output.rglob("*.safetensors"))
    print(f"{arguments.output}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
