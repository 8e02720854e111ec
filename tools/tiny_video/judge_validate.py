"""Validates the judge on rendered clips, whose truth is known: clean, and damaged as generated clips are."""

from __future__ import annotations

import multiprocessing
import random
import sys
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
        frame = cv2.remap(
            frame, columns + moved[..., 0], rows + moved[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        frames.append(0.85 * frame + 0.15 * frame.mean())
    return np.stack(frames).round().clip(0, 255).astype(np.uint8)


# What is done to a clip, by name.
DAMAGES = {
    "blur": lambda video, seed: _blur(video, 1.5),
    "noise": lambda video, seed: _noise(video, 10.0, seed),
    "coded": lambda video, seed: _jpeg(video, 20),
    "colour shift": _shift_color,
    "soft": _soft,
}


def scenes(count: int) -> list[Scene]:
    """Every motion, shape, colour and background about equally often; one object; a pan in some where it can be."""
    rng = random.Random(99)
    result = []
    for index in range(count):
        motion = MOTIONS[index % len(MOTIONS)]
        shape = rng.choice([shape for shape in SHAPES if can_move(shape, motion)])
        result.append(place_scene(rng, shape, rng.choice(list(COLORS)), motion, rng.choice(BACKGROUNDS), pan_share=0.3))
    return result


def _check(job: tuple[int, dict]) -> dict:
    """Verdicts on one scene: clean, and with one damage, each scene the next one in turn."""
    import torch

    from .judge import judge
    from .render import render

    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    index, values = job
    video = render([Scene.from_dict(values)])[0].numpy()
    name = list(DAMAGES)[index % len(DAMAGES)]
    damaged = DAMAGES[name](video, index)
    start = time.process_time()
    return {
        "clean": judge(video, values),
        "damaged": judge(damaged, values),
        "damage": name,
        "seconds": (time.process_time() - start) / 2,
    }


def validate(count: int, workers: int) -> dict:
    """Accuracy on `count` clips clean, on the same damaged, and by damage. Prints a table, returns all of it."""
    from .judge import ASPECTS, summarise

    labels = [scene.to_dict() for scene in scenes(count)]
    results = []
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for result in pool.imap(_check, list(enumerate(labels)), chunksize=4):
            results.append(result)
            print(f"\r{len(results)}/{count}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    every = list(range(count))
    groups = {"clean": ("clean", every), "damaged": ("damaged", every)}
    groups |= {name: ("damaged", [i for i in every if results[i]["damage"] == name]) for name in DAMAGES}
    report: dict = {"cpu_seconds_per_clip": round(float(np.median([r["seconds"] for r in results])), 3)}
    print(f"{'':14}{'clips':>6}" + "".join(f"{aspect:>12}" for aspect in ASPECTS))
    for name, (kind, chosen) in groups.items():
        if not chosen:
            continue
        summary = summarise([results[i][kind] for i in chosen], [labels[i] for i in chosen])
        report[name] = (
            summary if name in ("clean", "damaged") else {key: summary[key] for key in ("videos", *ASPECTS, "all")}
        )
        print(f"{name:14}{len(chosen):6}" + "".join(f"{summary[aspect]:12.2f}" for aspect in ASPECTS))
    report["mistakes"] = []
    for i, result in enumerate(results):
        for kind in ("clean", "damaged"):
            for aspect in ASPECTS:
                key = "color" if aspect == "colour" else aspect
                if not result[kind][aspect]:
                    damage = result["damage"] if kind == "damaged" else "none"
                    seen = result[kind]["detail"][key]
                    report["mistakes"].append({"clip": i, "damage": damage, "truth": labels[i][key], "seen": seen})
    print(f"{len(report['mistakes'])} mistakes, {report['cpu_seconds_per_clip']} CPU seconds a clip")
    return report
