"""Draws scenes as video, batched on any torch device. The same scene gives the same pixels on the same device.

Shapes are signed distance functions (negative inside, pixels) turned into coverage over about 1.5 pixels; textures are
smooth functions of position, drawn once per clip on a canvas as wide as the camera's way.
"""

from __future__ import annotations

import math
from collections import defaultdict

import torch
import torch.nn.functional as F

from .scene import COLORS, NUM_FRAMES, SIZE, Scene, pan_offset, pose

EDGE = 1.5  # pixels over which an object's border fades
SOFT = 3.0  # the same for textures

# Two sRGB colours per texture: muted, of similar lightness, so that objects stand out and the VAE keeps them.
PALETTES = {
    "checkerboard": ((112, 114, 118), (152, 154, 158)),
    "stripes": ((146, 136, 122), (182, 173, 158)),
    "dots": ((94, 102, 112), (150, 158, 166)),
    "waves": ((104, 118, 126), (148, 162, 168)),
    "bricks": ((126, 106, 98), (176, 166, 158)),
    "clouds": ((112, 122, 134), (196, 200, 204)),
}


# ---- shapes: signed distance in pixels for positions (x, y) relative to the centre, of size r ----


def _circle(x, y, r):
    return torch.hypot(x, y) - r


def _square(x, y, r):
    corner = 0.1 * r
    half = 0.88 * r - corner
    dx, dy = x.abs() - half, y.abs() - half
    return torch.hypot(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0) - corner


def _triangle(x, y, r):
    inner = 0.65 * r  # radius of the inscribed circle: the corners reach 1.3 r
    slanted = math.sqrt(0.75) * x.abs() - 0.5 * y - inner
    return torch.maximum(slanted, y - inner)


def _star(x, y, r):
    tip, notch = 1.3 * r, 0.58 * r
    sector = math.pi / 5
    angle = torch.atan2(x, -y)  # zero at the top
    angle = (torch.remainder(angle + sector, 2 * sector) - sector).abs()
    length = torch.hypot(x, y)
    along, across = length * torch.cos(angle), length * torch.sin(angle)
    # The border of one half-sector runs from the tip (tip, 0) to the notch.
    edge_x, edge_y = notch * math.cos(sector) - tip, notch * math.sin(sector)
    return (edge_y * (along - tip) - edge_x * across) / torch.sqrt(edge_x * edge_x + edge_y * edge_y)


def _heart(x, y, r):
    side = 1.32 * r  # a square on its corner, and a disc on each of its upper sides
    y = y - 0.0735 * side  # centres the bounding box
    diamond = (x.abs() + y.abs()) * math.sqrt(0.5) - side / 2
    disc = torch.hypot(x.abs() - side * math.sqrt(0.125), y + side * math.sqrt(0.125)) - side / 2
    return torch.minimum(diamond, disc)


def _ring(x, y, r):
    return (torch.hypot(x, y) - 0.81 * r).abs() - 0.27 * r


SHAPE_DISTANCE = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "ring": _ring,
}


# ---- textures: values in [0, 1] for positions in pixels ----


def _step(distance: torch.Tensor) -> torch.Tensor:
    return (0.5 + distance / SOFT).clamp(0, 1)


def _wave_distance(t: torch.Tensor, period: float) -> torch.Tensor:
    """A square wave's signed distance to its nearest edge, pixels."""
    return period / 4 - (torch.remainder(t, period) - period / 2).abs()


def _checkerboard(x, y):
    a, b = _step(_wave_distance(x, 64)), _step(_wave_distance(y, 64))
    return a * b + (1 - a) * (1 - b)


def _stripes(x, y):
    return _step(_wave_distance((x + y) * math.sqrt(0.5), 44))


def _dots(x, y):
    row = torch.floor(y / 36)
    dx = torch.remainder(x + 18 * torch.remainder(row, 2), 36) - 18
    dy = torch.remainder(y, 36) - 18
    return _step(10 - torch.hypot(dx, dy))


def _waves(x, y):
    return _step(_wave_distance(y + 10 * torch.sin(x * (2 * math.pi / 96)), 40) * 0.8)


def _bricks(x, y):
    row = torch.floor(y / 32)
    dx = (torch.remainder(x + 32 * torch.remainder(row, 2), 64) - 32).abs()
    dy = (torch.remainder(y, 32) - 16).abs()
    return _step(torch.maximum(dx - 29, dy - 13))


TEXTURES = {"checkerboard": _checkerboard, "stripes": _stripes, "dots": _dots, "waves": _waves, "bricks": _bricks}


def _clouds(seed: int, height: int, width: int, device) -> torch.Tensor:
    """Two octaves of smooth noise. The lattice comes from the CPU's generator, hence is the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(height, width, device=device)
    for cell, weight in ((64, 0.7), (32, 0.3)):
        rows, columns = height // cell + 3, width // cell + 3
        lattice = torch.rand(1, 1, rows, columns, generator=generator).to(device)
        fine = F.interpolate(lattice, scale_factor=cell, mode="bicubic", align_corners=False)
        total += weight * fine[0, 0, cell : cell + height, cell : cell + width]
    return ((total - 0.5) * 1.6 + 0.5).clamp(0, 1)


def texture(scene: Scene, width: int, height: int, device) -> torch.Tensor:
    """The background's values in [0, 1], [height, width], before its palette."""
    if scene.background == "clouds":
        return _clouds(scene.seed, height, width, device)
    x = torch.arange(width, device=device, dtype=torch.float32) + scene.texture_x
    y = torch.arange(height, device=device, dtype=torch.float32) + scene.texture_y
    return TEXTURES[scene.background](x[None, :], y[:, None])


def _canvas(scene: Scene, width: int, height: int, device) -> torch.Tensor:
    """The background in sRGB, float [height, width, 3]."""
    dark, light = (torch.tensor(c, dtype=torch.float32, device=device) + scene.tint for c in PALETTES[scene.background])
    return torch.lerp(dark, light, texture(scene, width, height, device)[..., None])


# ---- frames ----


def _coverage(shape: str, poses: torch.Tensor, size: int, turned: bool = False) -> torch.Tensor:
    """How much of each pixel an object covers: poses [N, 4] (x, y, size, angle) -> [N, H, W] in [0, 1].

    `turned`: whether any angle is not zero, known to the caller without asking the device.
    """
    x, y, r, angle = (poses[:, i, None, None] for i in range(4))
    grid = torch.arange(size, device=poses.device, dtype=torch.float32) + 0.5
    dx, dy = grid[None, None, :] - x, grid[None, :, None] - y
    if turned:
        cos, sin = torch.cos(angle), torch.sin(angle)
        dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
    return (0.5 - SHAPE_DISTANCE[shape](dx, dy, r) / EDGE).clamp(0, 1)


def _rgb(color: str, shift, device) -> torch.Tensor:
    values = [min(255, max(0, base + delta)) for base, delta in zip(COLORS[color], shift)]
    return torch.tensor(values, dtype=torch.float32, device=device)


def _poses(scene: Scene, num_frames: int, scale: float) -> list[list[float]]:
    rows = []
    for t in range(num_frames):
        x, y, r, angle = pose(scene, t / max(1, num_frames - 1))
        rows.append([x * scale, y * scale, r * scale, angle])
    return rows


def _background(scene: Scene, num_frames: int, size: int, scale: float, device) -> torch.Tensor:
    """[1 or T, H, W, 3]: a view of one picture, shifted by whole pixels when the camera pans (one a frame of 65)."""
    if scene.pan == "none":
        return _canvas(scene, size, size, device)[None]
    slid = [pan_offset(scene.pan, t / max(1, num_frames - 1)) * scale for t in range(num_frames)]  # to the right
    span = math.ceil(max(slid) - min(slid))
    canvas = _canvas(scene, size + span, size, device)
    starts = [min(span, max(0, round(max(slid) - offset))) for offset in slid]
    return torch.stack([canvas[:, start : start + size] for start in starts])


@torch.no_grad()
def render(scenes: list[Scene], device="cpu", num_frames: int = NUM_FRAMES, size: int = SIZE) -> torch.Tensor:
    """Draws scenes: uint8 [B, T, H, W, 3], sRGB. Sizes other than 256 scale the objects, not the textures.

    The clip's motion is spread over `num_frames`, so fewer frames are a faster clip. Peak memory beyond the result is
    about 20 bytes per pixel of a handful of clips.
    """
    out = torch.empty(len(scenes), num_frames, size, size, 3, dtype=torch.uint8, device=device)
    scale = size / SIZE
    by_shape: dict[str, list[int]] = defaultdict(list)
    for index, scene in enumerate(scenes):
        by_shape[scene.shape].append(index)
    at_once = 4  # clips per batch of distances
    for shape, indices in by_shape.items():
        for first in range(0, len(indices), at_once):
            chosen = indices[first : first + at_once]
            poses = torch.tensor([_poses(scenes[i], num_frames, scale) for i in chosen], device=device)
            turned = any(scenes[i].motion == "rotate" for i in chosen)
            coverage = _coverage(shape, poses.flatten(0, 1), size, turned).view(len(chosen), num_frames, size, size)
            for row, i in enumerate(chosen):
                _paint(scenes[i], coverage[row], out[i], scale, device)
    return out


def _paint(scene: Scene, coverage: torch.Tensor, out: torch.Tensor, scale: float, device) -> None:
    """Writes one clip: background, then the still object, then the moving one."""
    num_frames, size = coverage.shape[:2]
    picture = _background(scene, num_frames, size, scale, device)
    if scene.second is not None:
        still = scene.second
        where = torch.tensor([[still.x * scale, still.y * scale, still.radius * scale, 0.0]], device=device)
        picture = torch.lerp(
            picture, _rgb(still.color, (0, 0, 0), device), _coverage(still.shape, where, size)[..., None]
        )
    picture = torch.lerp(picture, _rgb(scene.color, scene.color_shift, device), coverage[..., None])
    out.copy_(picture.add_(0.5))  # the conversion to uint8 cuts the fraction off


def to_video(clips: torch.Tensor) -> torch.Tensor:
    """uint8 [B, T, H, W, 3] -> float [B, 3, T, H, W] in [-1, 1]."""
    return clips.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def to_clips(video: torch.Tensor) -> torch.Tensor:
    """float [B, 3, T, H, W] in [-1, 1] -> uint8 [B, T, H, W, 3], rounded as diffusers' video processor does."""
    return video.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
