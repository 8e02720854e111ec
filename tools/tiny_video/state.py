"""The training state on disk, and the log.

vae.pt              the finished autoencoder (bf16), its latents' mean and deviation
vae_training.pt     f32 weights and optimiser, to go on training it
dit_training.pt     f32 weights, average and optimiser of the transformer and the text encoder, to go on exactly
average.pt          their averaged weights (bf16): what is exported
live.pt             their live weights (bf16): with average.pt enough for a warm start where dit_training.pt did not travel
*.jsonl             logs
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pathlib
import sys

import torch



def save(path: pathlib.Path, values) -> None:
    """Appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(values, partial)
    os.replace(partial, path)


def load(path: pathlib.Path, device="cpu"):
    return torch.load(path, map_location=device, weights_only=True) if path.exists() else None


def halved(values: dict) -> dict:
    """A state dict in bf16 on the CPU."""
    return {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in values.items()}


def load_vae(architecture, folder: pathlib.Path):
    """The finished autoencoder, f32."""
    saved = load(folder / "vae.pt")
    if saved is None:
        raise SystemExit(f"{folder / 'vae.pt'} is missing: run train_vae first")
    vae = architecture.make_vae(saved["mean"], saved["std"])
    vae.load_state_dict({k: v.float() for k, v in saved["vae"].items()})
    return vae.eval().requires_grad_(False)


def load_parts(architecture, folder: pathlib.Path):
    """Transformer, text encoder (averaged weights) and autoencoder, ready to export."""
    saved = load(folder / "average.pt")
    if saved is None:
        raise SystemExit(f"{folder / 'average.pt'} is missing: run train_dit first")
    transformer, text_encoder = architecture.make_transformer(), architecture.make_text_encoder()
    transformer.load_state_dict({k: v.float() for k, v in saved["transformer"].items()})
    text_encoder.load_state_dict({k: v.float() for k, v in saved["text_encoder"].items()})
    return transformer.eval(), text_encoder.eval(), load_vae(architecture, folder)


def load_exported(model: pathlib.Path):
    """Transformer, text encoder and autoencoder of an exported model, f32."""
    index = json.loads((model / "model_index.json").read_text())
    names = ("transformer", "text_encoder", "vae")
    classes = (getattr(importlib.import_module(index[name][0]), index[name][1]) for name in names)
    return tuple(part.from_pretrained(model / name).float().eval() for name, part in zip(names, classes))


def from_model(model: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes a state to go on from out of an exported model: vae.pt and average.pt. The optimiser starts anew."""
    transformer, text_encoder, vae = load_exported(model)
    save(folder / "vae.pt", {"vae": halved(vae.state_dict()), "mean": list(vae.config.latents_mean), "std": list(vae.config.latents_std)})
    save(folder / "average.pt", {"transformer": halved(transformer.state_dict()), "text_encoder": halved(text_encoder.state_dict())})


class Log:
    """JSON lines, appended; also printed."""

    def __init__(self, path: pathlib.Path, **always):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.always = path, always

    def write(self, **values) -> None:
        line = json.dumps({**self.always, **values})
        with open(self.path, "a") as file:
            file.write(line + "\n")
        print(line, file=sys.stderr, flush=True)


def split(path: pathlib.Path, folder: pathlib.Path, limit: int = 15 << 20) -> None:
    """Copies a file into pieces path.name.00, .01, ... for channels that carry small files only."""
    with open(path, "rb") as file:
        for index, piece in enumerate(iter(lambda: file.read(limit), b"")):
            (folder / f"{path.name}.{index:02d}").write_bytes(piece)


def join(folder: pathlib.Path, output: pathlib.Path) -> None:
    """Puts the pieces in a folder together again; other files are copied."""
    output.mkdir(parents=True, exist_ok=True)
    pieces: dict[str, list[pathlib.Path]] = {}
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        name = path.name[:-3] if path.suffix[1:].isdigit() else path.name
        pieces.setdefault(name, []).append(path)
    for name, paths in pieces.items():
        (output / name).write_bytes(b"".join(path.read_bytes() for path in paths))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Makes a training state of what a stretch left, or of an exported model.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--join", type=pathlib.Path, help="the folder a stretch left, in pieces")
    source.add_argument("--from-model", type=pathlib.Path, help="models/tiny-wan and the like, for a warm start")
    parser.add_argument("--state", required=True, type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.join:
        join(arguments.join, arguments.state)
    else:
        from_model(arguments.from_model, arguments.state)
