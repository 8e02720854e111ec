"""Writes the prompt files under models/tiny-wan/prompts: fixed seeds, so the same files every time.

  heldout_prompts.json, heldout.txt      64 prompts of combinations that training never sees, with what they ask for
  heldout_two_objects.json, .txt         8 more with a second object; looked at, not counted
  calibration_prompts.txt                16 prompts of training's kind, for making a plan

`python -m tools.tiny_video.prompts [-o DIR]`
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random

from .captions import caption
from .scene import BACKGROUNDS, MOTIONS, Scene, combinations, place_scene, sample_scene

DEFAULT_FOLDER = pathlib.Path("models/tiny-wan/prompts")
NUM_HELD_OUT = 64
NUM_TWO_OBJECTS = 8
NUM_CALIBRATION = 16


def held_out_scenes() -> list[Scene]:
    """Every held-out triple once, then further ones over motions; backgrounds in turn, a pan in about one in eight."""
    rng = random.Random(2026)
    triples = combinations("heldout")
    rng.shuffle(triples)
    extra = [next(triple for triple in triples if triple[2] == motion) for motion in reversed(MOTIONS)]
    triples = (triples + extra)[:NUM_HELD_OUT]
    backgrounds = [BACKGROUNDS[i % len(BACKGROUNDS)] for i in range(len(triples))]
    scenes = [place_scene(rng, *triple, background, pan_share=0.2) for triple, background in zip(triples, backgrounds)]
    rng.shuffle(scenes)
    return scenes


def entries(scenes: list[Scene], seed: int) -> list[dict]:
    """One record per prompt: the prompt, what the judge looks for, and the scene that the caption was written for."""
    rng = random.Random(seed)
    return [
        {
            "index": index,
            "prompt": caption(scene, rng),
            "shape": scene.shape,
            "color": scene.color,
            "motion": scene.motion,
            "background": scene.background,
            "pan": scene.pan,
            "second": scene.second and {"shape": scene.second.shape, "color": scene.second.color},
            "scene": scene.to_dict(),
        }
        for index, scene in enumerate(scenes)
    ]


def write(folder: pathlib.Path, json_name: str, text_name: str, records: list[dict]) -> None:
    (folder / f"{json_name}.json").write_text(json.dumps(records, indent=1) + "\n")
    (folder / f"{text_name}.txt").write_text("".join(record["prompt"] + "\n" for record in records))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=pathlib.Path, default=DEFAULT_FOLDER)
    folder = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    write(folder, "heldout_prompts", "heldout", entries(held_out_scenes(), seed=1))
    rng = random.Random(7)
    pairs = [sample_scene(rng, "heldout", second_share=1.0) for _ in range(NUM_TWO_OBJECTS)]
    write(folder, "heldout_two_objects", "heldout_two_objects", entries(pairs, seed=2))
    rng = random.Random(11)
    lines = [caption(sample_scene(rng), rng) for _ in range(NUM_CALIBRATION)]
    (folder / "calibration_prompts.txt").write_text("".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main()
