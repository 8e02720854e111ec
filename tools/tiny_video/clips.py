"""Training clips: what they show, how they are described, how they are drawn. The package's one entry for data.

  rng = random.Random(0)
  scene = sample_scene(rng, "train")        # plain data, scene.to_dict() / Scene.from_dict()
  text = caption(scene, rng)                # "a red star spins over a brick wall"
  video = render([scene], "cuda")           # uint8 [1, 65, 256, 256, 3]

`python -m tools.tiny_video.clips -o DIR` writes a contact sheet to look at.
"""

from __future__ import annotations

import argparse
import pathlib
import random

from .captions import caption
from .render import render, to_clips, to_video
from .scene import (
    BACKGROUNDS,
    COLORS,
    FPS,
    MOTIONS,
    NUM_FRAMES,
    PANS,
    SHAPES,
    SIZE,
    Scene,
    Still,
    combinations,
    is_held_out,
    place_scene,
    sample_scene,
)

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "FPS",
    "MOTIONS",
    "NUM_FRAMES",
    "PANS",
    "SHAPES",
    "SIZE",
    "Scene",
    "Still",
    "caption",
    "combinations",
    "is_held_out",
    "place_scene",
    "render",
    "sample_scene",
    "to_clips",
    "to_video",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", default=".", help="folder for contact_sheet.png")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    from PIL import Image

    rng = random.Random(arguments.seed)
    scenes = [sample_scene(rng) for _ in range(arguments.clips)]
    for scene in scenes:
        print(caption(scene, rng))
    frames = render(scenes, arguments.device)[:, :: (NUM_FRAMES - 1) // 5].cpu()
    sheet = frames.permute(0, 2, 1, 3, 4).flatten(0, 1).flatten(1, 2).numpy()  # a clip a row, 6 frames each
    path = pathlib.Path(arguments.output)
    path.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path / "contact_sheet.png")
    print(path / "contact_sheet.png")


if __name__ == "__main__":
    main()
