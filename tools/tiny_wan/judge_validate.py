"""Validates the judge on rendered clips, whose truth is known: clean, and damaged in the ways that generated clips are."""

from __future__ import annotations

import json
import multiprocessing
import random
import time

import cv2
import numpy as np

from .scene import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Scene, can_move, place_scene


def _blur(video: np.ndarray, sigma: float) -> np.ndarray:
    return np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in video])


def _noise(video: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, video.shape).astype(np.float32)
    return (video + noise).round().clip(0, 255).astype(np.uint8)


def _jpeg(video: np.ndarray, quality: int) -> np.ndarray:
    """Block transform coding with chroma at half resolution, as H.264 does within a frame."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return np.stack([cv2.imdecode(cv2.imencode(".jpg", frame, settings)[1], cv2.IMREAD_COLOR) for frame in video])


def _shift_color(video: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    gain, offset = rng.uniform(0.9, 1.1, 3), rng.uniform(-10, 10, 3)
    return (video * gain + offset).round().clip(0, 255).astype(np.uint8)


def _soft(video: np.ndarray, seed: int) -> np.ndarray:
    """What a small model's clips look like: an eighth of the detail, smeared in time, wavering edges, paler colours."""
    rng = np.random.default_rng(seed)
    height, width = video.shape[1:3]
    waver = cv2.resize(rng.normal(0, 2.0, (len(video) // 4 + 1, 8 * 8 * 2)).astype(np.float32), (128, len(video)))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    frames = []
    for t in range(len(video)):
        near = video[max(0, t - 1) : t + 2].astype(np.float32).mean(0)
        small = cv2.resize(near, (width // 4, height // 4), interpolation=cv2.INTER_AREA)
        frame = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        moved = cv2.resize(waver[t].reshape(8, 8, 2), (width, height), interpolation=cv2.INTER_CUBIC)
        frame = cv2.remap(frame, columns + moved[..., 0], rows + moved[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        frames.append(0.85 * frame + 0.15 * frame.mean())
    return np.stack(frames).round().clip(0, 255).astype(np.uint8)


DAMAGES = {
    "clean": lambda video, seed: video,
    "blur": lambda video, seed: _blur(video, 1.5),
    "noise": lambda video, seed: _noise(video, 10.0, seed),
    "coded": lambda video, seed: _jpeg(video, 20),
    "colour shift": _shift_color,
    "soft": _soft,
}


def scenes(count: int) -> list[Scene]:
    """Every motion, shape, colour and background about equally often; one object; a pan in one of five where it can be."""
    rng = random.Random(99)
    result = []
    for index in range(count):
        motion = MOTIONS[index % len(MOTIONS)]
        shape = rng.choice([shape for shape in SHAPES if can_move(shape, motion)])
        result.append(place_scene(rng, shape, rng.choice(list(COLORS)), motion, rng.choice(BACKGROUNDS), pan_share=0.3))
    return result


def _check(job: tuple[int, dict]) -> dict:
    """All verdicts on one scene, by damage."""
    import torch

    from .judge import judge
    from .render import render

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    index, values = job
    video = render([Scene.from_dict(values)])[0].numpy()
    result, seconds = {}, 0.0
    for name, damage in DAMAGES.items():
        damaged = damage(video, index)
        start = time.perf_counter()
        result[name] = judge(damaged, values)
        seconds += time.perf_counter() - start
    result["seconds"] = seconds / len(DAMAGES)
    return result


def validate(count: int, workers: int) -> dict:
    from .judge import ASPECTS, summarise

    labels = [scene.to_dict() for scene in scenes(count)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        results = pool.map(_check, list(enumerate(labels)), chunksize=4)
    report: dict = {"clips": count, "seconds_per_clip": round(float(np.median([r["seconds"] for r in results])), 3)}
    print(f"{'':14}" + "".join(f"{aspect:>12}" for aspect in ASPECTS))
    for name in DAMAGES:
        summary = summarise([r[name] for r in results], labels)
        report[name] = summary
        print(f"{name:14}" + "".join(f"{summary[aspect]:12.2f}" for aspect in ASPECTS))
    report["mistakes"] = [
        {"clip": i, "damage": name, "aspect": aspect, "label": labels[i]["color" if aspect == "colour" else aspect],
         "seen": r[name]["detail"]["color" if aspect == "colour" else aspect]}  # fmt: skip
        for i, r in enumerate(results)
        for name in DAMAGES
        for aspect in ASPECTS
        if not r[name][aspect]
    ]
    print(json.dumps({"mistakes": len(report["mistakes"]), "seconds_per_clip": report["seconds_per_clip"]}))
    return report
