"""What one training clip shows, as plain data: shapes, colours, motions, backgrounds, and the held-out rule.

Coordinates are pixels of a 256x256 frame, x to the right, y downwards, angles in radians clockwise on the screen.
A clip lasts 65 frames at 16 fps; `u` below is the time in [0, 1] from the first frame to the last.
"""

from __future__ import annotations

import math
import random
from dataclasses import asdict, dataclass

SIZE = 256
NUM_FRAMES = 65
FPS = 16

SHAPES = ("circle", "square", "triangle", "star", "heart", "ring")

# sRGB. Chosen far apart in Lab; every one has a chroma of 40 or more, every background stays below 12.
COLORS = {
    "red": (224, 24, 36),
    "orange": (255, 138, 10),
    "yellow": (252, 232, 40),
    "green": (30, 160, 60),
    "cyan": (40, 216, 230),
    "blue": (36, 70, 225),
    "purple": (128, 40, 186),
    "pink": (255, 128, 196),
}

MOTIONS = ("left", "right", "up", "down", "bounce", "orbit", "grow", "shrink", "rotate")

BACKGROUNDS = ("checkerboard", "stripes", "dots", "waves", "bricks", "clouds")

PANS = ("none", "left", "right")

# One pixel per frame, so that a panned background is an exact copy of a wider picture and never flickers.
PAN_PIXELS_PER_FRAME = 1

# How far a shape of size 1 reaches from its centre (see render.py), for keeping it inside the frame.
REACH = {"circle": 1.0, "square": 1.25, "triangle": 1.3, "star": 1.3, "heart": 1.15, "ring": 1.08}

# Angle after which a rotated shape looks the same; circle and ring are not asked to rotate.
SYMMETRY = {"square": math.pi / 2, "triangle": 2 * math.pi / 3, "star": 2 * math.pi / 5, "heart": 2 * math.pi}

BOUNCE_PERIODS = 2  # top to top, twice in a clip
ROTATION_TURN = math.pi  # half a turn clockwise in a clip: 11 degrees per latent frame, no aliasing even for the star


@dataclass
class Still:
    """The second object of a two-object scene. It never moves."""

    shape: str
    color: str
    x: float
    y: float
    radius: float
    place: str  # where it is, seen from the main object: "above", "below", "left", "right", "center"


@dataclass
class Scene:
    shape: str
    color: str
    motion: str
    background: str
    pan: str = "none"  # the camera's direction; what is in the picture slides the other way
    x: float = 128.0  # middle of the path, pixels
    y: float = 128.0
    radius: float = 42.0  # size of the shape; at the end of the clip when it grows, at the start when it shrinks
    extent: float = 0.0  # straight: path length; bounce: height; orbit: radius; grow, shrink: the smaller size
    phase: float = 0.0  # orbit: angle at the start
    color_shift: tuple[int, int, int] = (0, 0, 0)  # added to the colour's sRGB values
    texture_x: float = 0.0  # offset of the texture, pixels
    texture_y: float = 0.0
    tint: int = 0  # added to the background's sRGB values
    seed: int = 0  # of the clouds
    second: Still | None = None

    def to_dict(self) -> dict:
        return asdict(self)

    @staticmethod
    def from_dict(values: dict) -> Scene:
        values = dict(values)
        second = values.get("second")
        values["second"] = Still(**second) if second else None
        values["color_shift"] = tuple(values.get("color_shift", (0, 0, 0)))
        return Scene(**values)


def can_move(shape: str, motion: str) -> bool:
    """A rotating circle or ring would look still."""
    return motion != "rotate" or shape in SYMMETRY


def is_held_out(shape: str, color: str, motion: str) -> bool:
    """One (shape, colour, motion) triple in seven is never shown in training; each of its pairs is."""
    index = SHAPES.index(shape) + 3 * list(COLORS).index(color) + 2 * MOTIONS.index(motion)
    return index % 7 == 0


def combinations(split: str) -> list[tuple[str, str, str]]:
    """All (shape, colour, motion) triples of a split ("train" or "heldout")."""
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split {split!r}: use 'train' or 'heldout'")
    return [
        (shape, color, motion)
        for shape in SHAPES
        for color in COLORS
        for motion in MOTIONS
        if can_move(shape, motion) and is_held_out(shape, color, motion) == (split == "heldout")
    ]


_COMBINATIONS: dict[str, dict[str, list[tuple[str, str, str]]]] = {}


def _by_motion(split: str) -> dict[str, list[tuple[str, str, str]]]:
    if split not in _COMBINATIONS:
        table: dict[str, list[tuple[str, str, str]]] = {motion: [] for motion in MOTIONS}
        for triple in combinations(split):
            table[triple[2]].append(triple)
        _COMBINATIONS[split] = table
    return _COMBINATIONS[split]


def sample_scene(
    rng: random.Random, split: str = "train", second_share: float = 0.15, pan_share: float = 0.25
) -> Scene:
    """A random scene of a split. Motions are equally likely. Every clip is described fully by what this returns."""
    motion = rng.choice(MOTIONS)
    shape, color, motion = rng.choice(_by_motion(split)[motion])
    return place_scene(rng, shape, color, motion, rng.choice(BACKGROUNDS), second_share, pan_share)


def place_scene(
    rng: random.Random,
    shape: str,
    color: str,
    motion: str,
    background: str,
    second_share: float = 0.0,
    pan_share: float = 0.0,
) -> Scene:
    """Chooses every number of a scene whose labels are given."""
    scene = Scene(shape, color, motion, background)
    scene.color_shift = tuple(rng.randint(-6, 6) for _ in range(3))
    scene.texture_x = rng.uniform(0, 128)
    scene.texture_y = rng.uniform(0, 128)
    scene.tint = rng.randint(-6, 6)
    scene.seed = rng.randrange(1 << 31)
    has_second = rng.random() < second_share
    # A pan is left out where it would hide the motion (left, right) or push the object out of the frame (orbit).
    if not has_second and motion not in ("left", "right", "orbit") and rng.random() < pan_share:
        scene.pan = rng.choice(("left", "right"))
    if has_second:
        _place_pair(rng, scene)
    else:
        _place_single(rng, scene)
    return scene


def _place_single(rng: random.Random, scene: Scene) -> None:
    reach = REACH[scene.shape]
    motion = scene.motion
    drift = PAN_PIXELS_PER_FRAME * (NUM_FRAMES - 1) / 2 if scene.pan != "none" else 0.0

    def anywhere(half: float) -> float:
        """A coordinate that keeps something of half-width `half` at least 5 pixels inside, near the middle."""
        slack = max(0.0, min(44.0, SIZE / 2 - 5 - half))
        return SIZE / 2 + rng.uniform(-slack, slack)

    if motion in ("left", "right", "up", "down"):
        scene.radius = rng.uniform(36, 48)
        size = scene.radius * reach
        scene.extent = min(rng.uniform(112, 136), SIZE - 2 * size - 10)
        along, across = anywhere(size + scene.extent / 2), anywhere(size + drift)
        scene.x, scene.y = (along, across) if motion in ("left", "right") else (across, along)
    elif motion == "bounce":
        scene.radius = rng.uniform(34, 42)
        size = scene.radius * reach
        scene.extent = min(rng.uniform(96, 116), SIZE - 2 * size - 10)
        scene.x, scene.y = anywhere(size + drift), anywhere(size + scene.extent / 2)
    elif motion == "orbit":
        scene.radius = rng.uniform(32, 38)
        size = scene.radius * reach
        scene.extent = min(rng.uniform(56, 66), SIZE / 2 - 5 - size)
        scene.phase = rng.uniform(0, 2 * math.pi)
        scene.x, scene.y = anywhere(size + scene.extent), anywhere(size + scene.extent)
    elif motion in ("grow", "shrink"):
        scene.radius = rng.uniform(58, 66)
        scene.extent = rng.uniform(22, 26)
        scene.x, scene.y = anywhere(scene.radius * reach + drift), anywhere(scene.radius * reach)
    else:
        scene.radius = rng.uniform(46, 56)
        scene.x, scene.y = anywhere(scene.radius * reach + drift), anywhere(scene.radius * reach)


def _place_pair(rng: random.Random, scene: Scene) -> None:
    """A smaller main object, and a still one that it never touches."""
    shape, color = rng.choice(SHAPES), rng.choice([name for name in COLORS if name != scene.color])
    reach, still_reach = REACH[scene.shape], REACH[shape]
    motion = scene.motion
    if motion == "orbit":
        still = Still(shape, color, 128.0, 128.0, 28 / still_reach, "center")
        scene.radius = 30 / reach
        scene.extent = rng.uniform(72, 84)
        scene.phase = rng.uniform(0, 2 * math.pi)
        scene.x = scene.y = 128.0
        scene.second = still
        return
    # The frame is cut into two halves: the main object acts in one, the still one stands in the other.
    side = rng.choice(("above", "below") if motion in ("left", "right") else ("left", "right"))
    main = 72.0 if side in ("below", "right") else 184.0
    other = SIZE - main
    middle = SIZE / 2 + rng.uniform(-12, 12)
    scene.radius = rng.uniform(42, 46) / reach
    scene.extent = rng.uniform(112, 132)
    if motion in ("grow", "shrink"):
        scene.radius = 58 / reach
        scene.extent = 22 / reach
    elif motion == "rotate":
        scene.radius = 56 / reach
    where = rng.uniform(96, 160)
    still_radius = rng.uniform(40, 46) / still_reach
    if side in ("above", "below"):
        scene.x, scene.y = middle, main
        scene.second = Still(shape, color, where, other, still_radius, side)
    else:
        scene.x, scene.y = main, middle
        scene.second = Still(shape, color, other, where, still_radius, side)


def pose(scene: Scene, u: float) -> tuple[float, float, float, float]:
    """Where the main object is at time u in [0, 1]: x, y, size, angle (pixels, radians clockwise)."""
    x, y, size, angle = scene.x, scene.y, scene.radius, 0.0
    if scene.motion in ("left", "right"):
        x += scene.extent * (u - 0.5) * (1 if scene.motion == "right" else -1)
    elif scene.motion in ("up", "down"):
        y += scene.extent * (u - 0.5) * (1 if scene.motion == "down" else -1)
    elif scene.motion == "bounce":
        # Falls from the top under gravity, is thrown back up by the floor without loss.
        through = 2 * ((u * BOUNCE_PERIODS + 0.5) % 1.0) - 1
        y += scene.extent * (0.5 - (1 - through * through))
    elif scene.motion == "orbit":
        x += scene.extent * math.cos(scene.phase + 2 * math.pi * u)
        y += scene.extent * math.sin(scene.phase + 2 * math.pi * u)
    elif scene.motion == "grow":
        size = scene.extent + (scene.radius - scene.extent) * u
    elif scene.motion == "shrink":
        size = scene.radius + (scene.extent - scene.radius) * u
    elif scene.motion == "rotate":
        angle = ROTATION_TURN * u
    return x + pan_offset(scene.pan, u), y, size, angle


def pan_offset(pan: str, u: float) -> float:
    """How far the world has slid along x at time u, zero in mid-clip. A camera that pans left moves it right."""
    if pan == "none":
        return 0.0
    span = PAN_PIXELS_PER_FRAME * (NUM_FRAMES - 1)
    return span * (u - 0.5) * (1 if pan == "left" else -1)
