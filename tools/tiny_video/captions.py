"""Says in varied English what a scene shows: always shape, colour, motion with its direction, and background."""

from __future__ import annotations

import random

from .scene import Scene

SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box"),
    "triangle": ("triangle",),
    "star": ("star", "star", "five-pointed star"),
    "heart": ("heart", "heart", "heart shape"),
    "ring": ("ring", "ring", "hoop"),
}

COLOR_PREFIXES = ("", "", "", "", "bright ", "vivid ")

# Third person ("a red ball {0}") and participle ("a red ball {1}").
MOTION_WORDS = {
    "left": (
        ("moves to the left", "moving to the left"),
        ("slides left", "sliding left"),
        ("moves from right to left", "moving from right to left"),
        ("drifts to the left", "drifting to the left"),
        ("glides from the right side to the left side", "gliding from the right side to the left side"),
    ),
    "right": (
        ("moves to the right", "moving to the right"),
        ("slides right", "sliding right"),
        ("moves from left to right", "moving from left to right"),
        ("drifts to the right", "drifting to the right"),
        ("glides from the left side to the right side", "gliding from the left side to the right side"),
    ),
    "up": (
        ("moves up", "moving up"),
        ("rises", "rising"),
        ("moves from the bottom to the top", "moving from the bottom to the top"),
        ("floats upwards", "floating upwards"),
        ("slides up", "sliding up"),
    ),
    "down": (
        ("moves down", "moving down"),
        ("sinks slowly", "sinking slowly"),
        ("moves from the top to the bottom", "moving from the top to the bottom"),
        ("floats downwards", "floating downwards"),
        ("slides down", "sliding down"),
    ),
    "bounce": (
        ("bounces", "bouncing"),
        ("bounces up and down", "bouncing up and down"),
        ("keeps bouncing", "bouncing again and again"),
        ("hops up and down", "hopping up and down"),
    ),
    "orbit": (
        ("moves in a circle", "moving in a circle"),
        ("goes round in a circle", "going round in a circle"),
        ("circles around", "circling around"),
        ("follows a circular path", "following a circular path"),
    ),
    "grow": (
        ("grows", "growing"),
        ("gets bigger", "getting bigger"),
        ("grows larger", "growing larger"),
        ("expands", "expanding"),
    ),
    "shrink": (
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("becomes smaller and smaller", "becoming smaller and smaller"),
        ("contracts", "contracting"),
    ),
    "rotate": (
        ("rotates", "rotating"),
        ("spins", "spinning"),
        ("turns clockwise", "turning clockwise"),
        ("rotates clockwise in place", "rotating clockwise in place"),
    ),
}

# The first words of each also fit "... in the background".
BACKGROUND_WORDS = {
    "checkerboard": (("a checkerboard", "a gray checkerboard", "a checkerboard pattern"), ("a checkered background",)),
    "stripes": (("diagonal stripes", "beige stripes", "a pattern of diagonal stripes"), ("a striped background",)),
    "dots": (("polka dots", "gray polka dots", "a pattern of dots"), ("a dotted background",)),
    "waves": (("waves", "gray blue waves", "a pattern of waves"), ("a wavy background",)),
    "bricks": (("a brick wall", "bricks", "a wall of bricks"), ("a brick background",)),
    "clouds": (("clouds", "soft gray clouds", "a cloudy sky"), ("a cloudy background",)),
}

BACKGROUND_LINKS = ("in front of", "on", "over", "against")

PAN_WORDS = (
    "while the camera pans {0}",
    "as the camera moves {0}",
    "with the camera panning to the {0}",
)

PLACE_WORDS = {
    "above": ("above it", "at the top"),
    "below": ("below it", "at the bottom"),
    "left": ("to its left", "on the left"),
    "right": ("to its right", "on the right"),
}

# {a}: the object; {does}, {doing}: its motion; {behind}: the background with its link; {ground}: without.
TEMPLATES = (
    "{a} {does} {behind}",
    "{a} {does} {behind}",
    "{a} {doing} {behind}",
    "{a} {doing} {behind}",
    "{behind}, {a} {does}",
    "a video of {a} {doing} {behind}",
    "{a} that {does}, {ground} in the background",
    "{ground} in the background, {a} {does}",
)


def _object(color: str, shape: str, rng: random.Random) -> str:
    text = rng.choice(COLOR_PREFIXES) + color + " " + rng.choice(SHAPE_WORDS[shape])
    return ("an " if text[0] in "aeiou" else "a ") + text


def caption(scene: Scene, rng: random.Random) -> str:
    """One of many sentences for a scene, at most about 35 words."""
    does, doing = rng.choice(MOTION_WORDS[scene.motion])
    things, adjectives = BACKGROUND_WORDS[scene.background]
    ground = rng.choice(things)
    behind = rng.choice(BACKGROUND_LINKS) + " " + rng.choice(things + adjectives)
    a = _object(scene.color, scene.shape, rng)
    second = scene.second
    if second is not None and second.place == "center":
        other = _object(second.color, second.shape, rng)
        does, doing = rng.choice(
            ((f"circles around {other}", f"circling around {other}"), (f"orbits {other}", f"orbiting {other}"))
        )
    text = rng.choice(TEMPLATES).format(a=a, does=does, doing=doing, ground=ground, behind=behind)
    if second is not None and second.place != "center":
        other = _object(second.color, second.shape, rng)
        place = rng.choice(PLACE_WORDS[second.place])
        text += ", " + rng.choice((f"with {other} {place}", f"and {other} stands still {place}"))
    if scene.pan != "none":
        text += " " + rng.choice(PAN_WORDS).format(scene.pan)
    style = rng.random()
    if style < 0.5:
        text = text[0].upper() + text[1:]
    if style < 0.4:
        text += "."
    return text
