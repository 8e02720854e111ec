"""Writes the model as the folder diffusers' WanPipeline loads: bf16 safetensors and JSON.

  python -m tools.tiny_wan.export --random -o DIR          # untrained weights, exact final layout
  python -m tools.tiny_wan.export --state DIR -o models/tiny-wan
"""

from __future__ import annotations

import argparse
import json
import pathlib

import torch

from . import config, tokenizer

MODEL_INDEX = {
    "_class_name": "WanPipeline",
    "_diffusers_version": "0.42.1",
    "boundary_ratio": None,
    "expand_timesteps": False,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5Tokenizer"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def export(folder: pathlib.Path, transformer, text_encoder, vae, flow_shift: float | None = None) -> None:
    """Converts the three modules to bf16 in place and writes them; the tokenizer is left alone if it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    transformer.to(torch.bfloat16).save_pretrained(folder / "transformer")
    text_encoder.to(torch.bfloat16).save_pretrained(folder / "text_encoder")
    vae.to(torch.bfloat16).save_pretrained(folder / "vae")
    config.make_scheduler(flow_shift).save_pretrained(folder / "scheduler")
    if not (folder / "tokenizer" / "spiece.model").exists():
        tokenizer.write(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
    for component in ("transformer", "text_encoder", "vae"):
        path = folder / component / "config.json"
        values = {k: v for k, v in json.loads(path.read_text()).items() if k != "_name_or_path"}
        path.write_text(json.dumps(values, indent=2) + "\n")


def random_parts(seed: int):
    """Untrained modules with nothing at zero, so that a test on them sees every weight."""
    torch.manual_seed(seed)
    transformer, text_encoder = config.make_transformer(), config.make_text_encoder()
    mean, std = torch.randn(config.LATENT_CHANNELS) * 0.3, torch.rand(config.LATENT_CHANNELS) + 0.5
    vae = config.make_vae(mean.tolist(), std.tolist())
    config.initialise_transformer(transformer)
    torch.nn.init.xavier_uniform_(transformer.proj_out.weight)
    torch.nn.init.normal_(transformer.condition_embedder.time_proj.weight, std=0.02)
    for module in (transformer, text_encoder, vae):
        for name, parameter in module.named_parameters():
            if parameter.dim() == 1 or "gamma" in name:
                parameter.data.add_(0.05 * torch.randn_like(parameter))
    return transformer, text_encoder, vae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--random", action="store_true", help="untrained weights")
    parser.add_argument("--state", type=pathlib.Path, help="the training state's folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flow-shift", type=float)
    arguments = parser.parse_args()
    if arguments.random == (arguments.state is not None):
        parser.error("give either --random or --state")
    if arguments.random:
        parts = random_parts(arguments.seed)
    else:
        from .state import load_parts

        parts = load_parts(arguments.state)
    export(arguments.output, *parts, flow_shift=arguments.flow_shift)
    size = sum(p.stat().st_size for p in arguments.output.rglob("*.safetensors"))
    print(f"{arguments.output}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
