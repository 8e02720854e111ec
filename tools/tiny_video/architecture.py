"""The architectures that the package trains, one module each, with the same names in it.

A module says what is its own: sizes (NUM_FRAMES, LATENT_FRAMES, FRAMES_PER_LATENT, ...), how the parts are made and
started (make_*, initialise_*), one pass of the autoencoder over a whole clip (WholeClip), the fast transformer (make_fast,
encode_text, call, timestep, target), the sampler (make_scheduler, set_timesteps), the folder that diffusers loads
(FOLDER, MODEL_INDEX) and the stages of the training (*_KINDS, *_PHASES).
"""

from __future__ import annotations

import argparse
import importlib

NAMES = ("wan", "mochi")


def load(name: str):
    """The module of an architecture."""
    if name not in NAMES:
        raise ValueError(f"unknown architecture {name!r}: use one of {', '.join(NAMES)}")
    return importlib.import_module(f".{name}", __package__)


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", choices=NAMES, default="wan", help="architecture; default: wan, models/tiny-wan")


def total_frames(architecture, latent_frames: int) -> int:
    """Frames of the clip that so many latent frames stand for."""
    return 1 + architecture.FRAMES_PER_LATENT * (latent_frames - 1)
