"""Names a background's texture from lightness alone, and measures how far the camera panned.

Every window of a few frames is compared with each texture at every shift (masked normalised correlation). Clouds have
no template: they are what correlates with none and is smooth.
"""

from __future__ import annotations

import functools

import cv2
import numpy as np

from .scene import BACKGROUNDS

HALF = 2  # everything is done at half resolution
WINDOW = 128 // HALF
MIN_CORRELATION = 0.55


def _square_wave(t: np.ndarray, period: float) -> np.ndarray:
    return (np.mod(t, period) < period / 2).astype(np.float32)


def _template(name: str) -> np.ndarray:
    """The texture at full resolution, wide enough for every shift of a window."""
    y, x = np.mgrid[0:320, 0:320].astype(np.float32)
    if name == "checkerboard":
        return np.abs(_square_wave(x, 64) - _square_wave(y, 64))
    if name == "stripes":
        return _square_wave(x + y, 44 * np.sqrt(2.0))
    if name == "dots":
        row = np.floor(y / 36)
        return (np.hypot(np.mod(x + 18 * (row % 2), 36) - 18, np.mod(y, 36) - 18) < 10).astype(np.float32)
    if name == "waves":
        return _square_wave(y + 10 * np.sin(x * 2 * np.pi / 96), 40)
    row = np.floor(y / 32)
    joint = np.minimum(np.mod(x + 32 * (row % 2), 64), 64 - np.mod(x + 32 * (row % 2), 64))
    return (np.minimum(joint, np.minimum(np.mod(y, 32), 32 - np.mod(y, 32))) < 3).astype(np.float32)


def _flatten(picture: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Without its slow part (a blur that ignores invalid pixels)."""
    if valid is None:
        return picture - cv2.GaussianBlur(picture, (0, 0), 16, borderType=cv2.BORDER_REFLECT)
    weight = cv2.GaussianBlur(valid, (0, 0), 16, borderType=cv2.BORDER_REFLECT)
    slow = cv2.GaussianBlur(picture * valid, (0, 0), 16, borderType=cv2.BORDER_REFLECT) / np.maximum(weight, 1e-3)
    return (picture - slow) * valid


def _half(picture: np.ndarray) -> np.ndarray:
    return cv2.resize(picture, None, fx=1 / HALF, fy=1 / HALF, interpolation=cv2.INTER_AREA)


@functools.lru_cache(maxsize=None)
def _templates() -> dict[str, np.ndarray]:
    names = [name for name in BACKGROUNDS if name != "clouds"]
    return {name: _flatten(cv2.GaussianBlur(_half(_template(name)), (0, 0), 1.0)) for name in names}


def _correlation(window: np.ndarray, valid: np.ndarray, template: np.ndarray) -> float:
    """The largest correlation of a zero-mean masked window with a template over all shifts."""
    common = cv2.matchTemplate(template, window, cv2.TM_CCORR)
    energy = cv2.matchTemplate(template * template, valid, cv2.TM_CCORR)
    mean = cv2.matchTemplate(template, valid, cv2.TM_CCORR)
    count = float(valid.sum())
    spread = np.maximum(energy - mean * mean / count, 1e-3)
    return float((common / np.sqrt(spread * float((window * window).sum()) + 1e-9)).max())


def texture_scores(lightness: np.ndarray, foreground: np.ndarray, frames: list[int]) -> dict[str, float]:
    """Mean correlation with each texture; for clouds, how much of the picture's contrast is slow (0 to 1)."""
    scores: dict[str, list[float]] = {name: [] for name in BACKGROUNDS}
    for t in frames:
        picture = _half(lightness[t])
        valid = _half((~foreground[t]).astype(np.float32))
        valid = (valid > 0.99).astype(np.float32)
        # Slow part of the variance, against all of it: near 1 for clouds, 0 for a regular pattern.
        inside = valid > 0
        if inside.sum() < 500:
            continue
        weight = np.maximum(cv2.GaussianBlur(valid, (0, 0), 6), 1e-3)
        mean = float(picture[inside].mean())
        slow = cv2.GaussianBlur((picture - mean) * valid, (0, 0), 6) / weight
        scores["clouds"].append(float(slow[inside].var() / max(picture[inside].var(), 1e-6)))
        flat = _flatten(picture, valid)
        height, width = picture.shape
        for top in range(0, height - WINDOW + 1, WINDOW):
            for left in range(0, width - WINDOW + 1, WINDOW):
                part = slice(top, top + WINDOW), slice(left, left + WINDOW)
                if valid[part].mean() < 0.35:
                    continue
                window = flat[part] - valid[part] * (flat[part].sum() / valid[part].sum())
                for name, template in _templates().items():
                    scores[name].append(_correlation(window, valid[part], template))
    return {name: float(np.mean(values)) if values else 0.0 for name, values in scores.items()}


def classify(scores: dict[str, float]) -> str:
    """One of scene.BACKGROUNDS, or "none"."""
    patterns = {name: score for name, score in scores.items() if name != "clouds"}
    best = max(patterns, key=patterns.get)
    if patterns[best] >= MIN_CORRELATION:
        return best
    return "clouds" if scores["clouds"] >= 0.5 else "none"


def pan_track(lightness: np.ndarray, foreground: np.ndarray, step: int = 4, reach: int = 14) -> np.ndarray:
    """How far the background has slid to the right since the first frame, pixels, for each frame [T].

    Compares frames `step` apart at every horizontal shift up to `reach`, where both show background.
    """
    num_frames, _, width = lightness.shape
    shifts = np.arange(-reach, reach + 1)
    known_times, known = [0], [0.0]
    for t in range(0, num_frames - step, step):
        first, second = lightness[t, ::2], lightness[t + step, ::2]
        valid_first, valid_second = ~foreground[t, ::2], ~foreground[t + step, ::2]
        errors = []
        for shift in shifts:
            a = slice(max(0, -shift), min(width, width - shift))
            b = slice(max(0, shift), min(width, width + shift))
            both = valid_first[:, a] & valid_second[:, b]
            errors.append(((first[:, a] - second[:, b])[both] ** 2).mean() if both.sum() > 500 else np.inf)
        known_times.append(t + step)
        known.append(known[-1] + float(shifts[int(np.argmin(errors))]))
    return np.interp(np.arange(num_frames), known_times, known)
