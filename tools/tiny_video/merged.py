"""The four-step model as one folder: models/tiny-wan with the LoRA of models/tiny-wan-4step merged, and that folder's settings.

  python -m tools.tiny_video.merged -o DIR
"""

from __future__ import annotations

import argparse
import pathlib
import shutil

from .low_rank import merge_file
from .state import load_exported

FOLDER = pathlib.Path("models/tiny-wan-4step")
BASE = pathlib.Path("models/tiny-wan")


def write(folder: pathlib.Path, output: pathlib.Path, base: pathlib.Path = BASE) -> None:
    """folder: the LoRA and what differs in settings. base: everything else. The output must not be there yet."""
    import torch

    transformer, *_ = load_exported(base)
    merge_file(transformer, folder / "lora.safetensors")
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("*.md", "*.jpg", "lora.safetensors"))
    for part in ("text_encoder", "tokenizer", "vae"):
        shutil.copytree(base / part, output / part)
    transformer.to(torch.bfloat16).save_pretrained(output / "transformer")
    shutil.copy(base / "transformer" / "config.json", output / "transformer" / "config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER, help="of the LoRA; default: the committed one")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
