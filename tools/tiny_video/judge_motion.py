"""Names a motion from an object's track: position, area and angle over the frames of a clip."""

from __future__ import annotations

import math

import numpy as np

from .scene import SYMMETRY

MIN_TRAVEL = 40.0  # pixels, of a straight motion (training's are 112 or more)
MIN_GROWTH = 2.0  # final over first area (training's are about 6)
MIN_TURN = math.radians(80)  # of a rotation (training's is 180 degrees)
MIN_SWING = 25.0  # pixels, height of a bounce (training's are 96 or more)


def unwrap(angles: np.ndarray, shape: str) -> np.ndarray:
    """Angles known up to the shape's symmetry, made continuous."""
    period = SYMMETRY.get(shape)
    if period is None:
        return np.zeros_like(angles)
    return np.unwrap(angles, period=period)


def _line(times: np.ndarray, values: np.ndarray) -> float:
    """Change over the whole clip of the straight line through the values."""
    return float(np.polyfit(times, values, 1)[0] * (times[-1] - times[0]))


def _smooth(values: np.ndarray) -> np.ndarray:
    padded = np.pad(values, 2, mode="edge")
    return np.convolve(padded, np.ones(5) / 5, mode="valid")


def _swings(values: np.ndarray) -> list[float]:
    """Signed moves between turning points, ignoring those smaller than MIN_SWING."""
    turning = [float(values[0])]
    direction = 0
    for value in values[1:]:
        step = float(value) - turning[-1]
        if direction == 0:
            if abs(step) >= MIN_SWING:
                direction = 1 if step > 0 else -1
                turning.append(float(value))
        elif step * direction > 0:
            turning[-1] = float(value)
        elif -step * direction >= MIN_SWING:
            direction = -direction
            turning.append(float(value))
    return list(np.diff(turning))


def measure(times: np.ndarray, x: np.ndarray, y: np.ndarray, area: np.ndarray, angle: np.ndarray) -> dict:
    """What the track does. times: seconds or frames, rising; x, y pixels; area pixels; angle radians, continuous."""
    x, y = _smooth(x), _smooth(y)
    center_x, center_y = (x.max() + x.min()) / 2, (y.max() + y.min()) / 2
    distance = np.hypot(x - center_x, y - center_y)
    around = np.unwrap(np.arctan2(y - center_y, x - center_x))
    return {
        "dx": _line(times, x),
        "dy": _line(times, y),
        "range_x": float(np.ptp(x)),
        "range_y": float(np.ptp(y)),
        "growth": math.exp(_line(times, np.log(area))),
        "turn": _line(times, angle),
        "around": float(around[-1] - around[0]),
        "roundness": float(distance.std() / max(distance.mean(), 1e-6)),
        "swings": len(_swings(y)),
    }


def classify(facts: dict) -> str:
    """One of scene.MOTIONS, or "none"."""
    if facts["growth"] >= MIN_GROWTH:
        return "grow"
    if facts["growth"] <= 1 / MIN_GROWTH:
        return "shrink"
    small, large = sorted((facts["range_x"], facts["range_y"]))
    if small >= 40 and small >= 0.55 * large and abs(facts["around"]) >= 1.3 * math.pi and facts["roundness"] < 0.35:
        return "orbit"
    if facts["swings"] >= 2 and facts["range_x"] <= 0.6 * facts["range_y"]:
        return "bounce"
    across, along = sorted((abs(facts["dx"]), abs(facts["dy"])))
    if along >= MIN_TRAVEL and across <= 0.5 * along:
        if abs(facts["dx"]) > abs(facts["dy"]):
            return "right" if facts["dx"] > 0 else "left"
        return "down" if facts["dy"] > 0 else "up"
    if abs(facts["turn"]) >= MIN_TURN:
        return "rotate"
    return "none"
