"""Names a shape at any size and angle: overlap with templates in polar coordinates about the centroid.

A mask is scaled to a fixed area, read on a polar grid, and laid over each template turned by every angle (one FFT). The
overlap (intersection over union) is averaged over frames; the best angle per frame gives the rotation.
"""

from __future__ import annotations

import functools
import math

import cv2
import numpy as np

from .scene import SHAPES

ANGLES = 180  # 2 degrees
RADII = 30
REACH = 2.0  # the grid's outer radius, in radii of a disc of the same area
MIN_OVERLAP = 0.78  # below this no template is recognised


def _outline(shape: str) -> list[np.ndarray]:
    """The shape's polygons (outer, then holes) around the origin, x to the right, y downwards."""
    if shape in ("circle", "ring"):
        turn = np.linspace(0, 2 * math.pi, 200, endpoint=False)
        circle = np.stack([np.cos(turn), np.sin(turn)], 1)
        return [circle] if shape == "circle" else [1.08 * circle, 0.54 * circle]
    if shape == "square":
        return [np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)]
    if shape == "triangle":
        turn = np.arange(3) * 2 * math.pi / 3 - math.pi / 2
        return [np.stack([np.cos(turn), np.sin(turn)], 1)]
    if shape == "star":
        turn = np.arange(10) * math.pi / 5 - math.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, 1.3, 0.58)
        return [np.stack([radius * np.cos(turn), radius * np.sin(turn)], 1)]
    # Heart: half discs on the upper sides of a square that stands on its corner.
    half = math.sqrt(0.125)
    turn = np.linspace(-3 * math.pi / 4, math.pi / 4, 60)
    right = np.stack([half + 0.5 * np.cos(turn), -half + 0.5 * np.sin(turn)], 1)
    left = right[::-1] * [-1, 1]
    return [np.concatenate([right, [[0, 2 * half]], left])]


def _draw(polygons: list[np.ndarray], size: int = 256) -> np.ndarray:
    scale = 0.35 * size
    fixed = [np.round((polygon * scale + size / 2) * 16).astype(np.int32) for polygon in polygons]
    picture = np.zeros((size, size), np.uint8)
    cv2.fillPoly(picture, fixed, 1, shift=4)  # even-odd: the second polygon is a hole
    return picture > 0


def polar(mask: np.ndarray) -> tuple[np.ndarray, float, float, float]:
    """A mask (bool [H, W], not empty) as float [RADII, ANGLES], its centroid (x, y) and area in pixels."""
    ys, xs = np.nonzero(mask)
    x, y, area = float(xs.mean()), float(ys.mean()), float(len(xs))
    radius = (np.arange(RADII) + 0.5) / RADII * REACH * math.sqrt(area / math.pi)
    turn = np.arange(ANGLES) * (2 * math.pi / ANGLES)
    map_x = (x + radius[:, None] * np.cos(turn)).astype(np.float32)
    map_y = (y + radius[:, None] * np.sin(turn)).astype(np.float32)
    return cv2.remap(mask.astype(np.float32), map_x, map_y, cv2.INTER_LINEAR), x, y, area


@functools.lru_cache(maxsize=None)
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """Spectra over the angle [shapes, RADII, ANGLES/2+1], and areas [shapes], both weighted by radius."""
    weights = np.arange(RADII)[:, None] + 0.5
    pictures = np.stack([polar(_draw(_outline(shape)))[0] for shape in SHAPES])
    return np.fft.rfft(pictures * weights, axis=-1), (pictures * weights).sum((1, 2))


def overlaps(grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Overlap of a polar mask with every template, and the angle of best fit (radians, clockwise); [shapes] each."""
    spectra, areas = _templates()
    weights = np.arange(RADII)[:, None] + 0.5
    own = np.fft.rfft(grid, axis=-1)
    common = np.fft.irfft((own * np.conj(spectra)).sum(1), n=ANGLES, axis=-1)  # [shapes, ANGLES]
    best = common.argmax(-1)
    rows = np.arange(len(best))
    middle = common[rows, best]
    before, after = common[rows, best - 1], common[rows, (best + 1) % ANGLES]
    curvature = before - 2 * middle + after
    fraction = np.where(np.abs(curvature) > 1e-6, 0.5 * (before - after) / np.where(curvature == 0, 1, curvature), 0)
    area = float((grid * weights).sum())
    return middle / (area + areas - middle), (best + fraction) * (2 * math.pi / ANGLES)
