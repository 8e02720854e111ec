"""Finds the object of a clip: saturated pixels on a muted background, followed through time.

Numpy and OpenCV only. Colours are CIE Lab; (a, b) carries what tells an object from its background, lightness does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .scene import COLORS

MIN_CHROMA = 20.0  # distance in (a, b) from the background's median that makes a pixel part of an object
MIN_AREA = 150  # pixels; an object smaller than this is not seen
MIN_CORE = 0.15  # share of an object's pixels two or more pixels away from its border; less is speckle
MAX_SHARE = (
    0.5  # of the frame; more saturated pixels than this are no object on a background (training's cover up to .25)
)


def lab(rgb: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] sRGB -> float32 Lab."""
    flat = np.ascontiguousarray(rgb).reshape(-1, 1, 3).astype(np.float32) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2Lab).reshape(rgb.shape)


PALETTE = np.stack([lab(np.array([[color]], np.uint8))[0, 0] for color in COLORS.values()])
COLOR_NAMES = tuple(COLORS)


def nearest_color(values: np.ndarray) -> np.ndarray:
    """Index of the palette colour nearest to Lab values [..., 3]. Lightness counts less: shading is not a colour."""
    difference = (values[..., None, :] - PALETTE) * np.array([0.6, 1.0, 1.0], np.float32)
    return np.argmin((difference**2).sum(-1), -1)


@dataclass
class Segmentation:
    lightness: np.ndarray  # [T, H, W] float32, 0 to 100
    mask: np.ndarray  # [T, H, W] bool: the object, empty in frames where it was not found
    foreground: np.ndarray  # [T, H, W] bool: everything that is not background, generously
    color: np.ndarray  # [T, 3]: the object's median Lab, NaN where not found
    votes: np.ndarray  # [T, 8]: how many of the pixels looked at inside the object are nearest to each palette colour
    found: np.ndarray  # [T] bool


def segment(video: np.ndarray, ignored_color: str | None = None) -> Segmentation:
    """video: uint8 [T, H, W, 3]. `ignored_color`: pixels nearest to it are not the object (a second one's colour)."""
    num_frames, height, width = video.shape[:3]
    result = Segmentation(
        lightness=np.empty((num_frames, height, width), np.float32),
        mask=np.zeros((num_frames, height, width), bool),
        foreground=np.zeros((num_frames, height, width), bool),
        color=np.full((num_frames, 3), np.nan, np.float32),
        votes=np.zeros((num_frames, len(COLOR_NAMES)), np.int64),
        found=np.zeros(num_frames, bool),
    )
    widen = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (9, 9))
    for t, frame in enumerate(video):
        values = lab(frame)
        result.lightness[t] = values[..., 0]
        smooth = cv2.GaussianBlur(values, (0, 0), 1.2)
        background = np.median(smooth[::4, ::4].reshape(-1, 3), 0)
        distance = np.hypot(smooth[..., 1] - background[1], smooth[..., 2] - background[2])
        seeds = distance > MIN_CHROMA
        result.foreground[t] = cv2.dilate(seeds.astype(np.uint8), widen) > 0
        if ignored_color is not None:
            wanted = nearest_color(smooth) != COLOR_NAMES.index(ignored_color)
            seeds = _large_parts(seeds & wanted)
        core = _inside(seeds)
        if core.sum() < max(MIN_AREA / 4, MIN_CORE * seeds.sum()) or seeds.mean() > MAX_SHARE:
            continue
        color = np.median(smooth[core], 0)
        # The border is where the colour is halfway between the background's and the object's.
        axis = color[1:] - background[1:]
        share = ((smooth[..., 1:] - background[1:]) @ axis) / max(float(axis @ axis), 1e-6)
        mask = share > 0.5
        if ignored_color is not None:
            mask &= cv2.dilate(seeds.astype(np.uint8), widen) > 0
            mask &= nearest_color(smooth) != COLOR_NAMES.index(ignored_color)
        mask = _large_parts(mask)
        if mask.sum() >= MIN_AREA:
            result.mask[t], result.color[t], result.found[t] = mask, color, True
            pixels = smooth[core & mask][::4]
            result.votes[t] = np.bincount(nearest_color(pixels), minlength=len(COLOR_NAMES))
    return result


def _inside(mask: np.ndarray) -> np.ndarray:
    """A mask without its border, where colours are mixed with the background's."""
    return cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0


def _large_parts(mask: np.ndarray) -> np.ndarray:
    """Without specks: connected parts of at least a quarter of the largest one's area."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    if count <= 2:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    return (areas >= 0.25 * areas.max())[labels] & mask
