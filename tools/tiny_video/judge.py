"""Does a video show what its prompt asked for? Colour, shape, motion and background, by geometry and statistics.

  python -m tools.tiny_video.judge --videos DIR [--labels heldout_prompts.json] [-o FILE.json]
  python -m tools.tiny_video.judge --validate [--count 540] [-o FILE.json]

DIR holds one video per label, named by its index: 00.mp4 (or .webm, .mkv, .npy with uint8 [T, H, W, 3], or a folder
00/ of PNG frames). The object is segmented against its background (judge_segment), its shape compared with templates
(judge_shape), its track named (judge_motion), the texture matched (judge_background). Each verdict names one value of
those in scene.py without looking at the label, then compares; the label is used only to ignore a second object's colour
and to take out a camera pan that the prompt asked for. No torch; about a quarter of a second a clip on one core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pathlib
import sys

import cv2
import numpy as np

from . import judge_background, judge_motion, judge_segment, judge_shape
from .scene import BACKGROUNDS, COLORS, MOTIONS, SHAPES

ASPECTS = ("colour", "shape", "motion", "background")
LOOKED_AT = 33  # frames of a clip, evenly spread: half of training's 65, twice as many as the VAE's latent frames
MIN_FOUND = 0.8  # share of the frames in which the object must be seen
MIN_AGREEMENT = 0.6  # share of the object's pixels (colour) or frames (shape) that must say the same
DEFAULT_LABELS = pathlib.Path("models/tiny-wan/prompts/heldout_prompts.json")


def judge(video: np.ndarray, labels: dict) -> dict:
    """video: uint8 [T, H, W, 3], sRGB. labels: shape, color, motion, background, optionally pan and second.

    Returns {"colour", "shape", "motion", "background": bool, "detail": what was seen and how sure}.
    """
    seen = observe(video, labels)
    return {
        "colour": seen["color"] == labels["color"],
        "shape": seen["shape"] == labels["shape"],
        "motion": seen["motion"] == labels["motion"],
        "background": seen["background"] == labels["background"],
        "detail": seen,
    }


def observe(video: np.ndarray, labels: dict) -> dict:
    """What a video shows: "color", "shape", "motion", "background" ("none" where nothing is recognised), and why."""
    if video.ndim != 4 or video.shape[-1] != 3 or video.dtype != np.uint8 or len(video) < 9:
        raise ValueError(
            f"a video of at least 9 frames as uint8 [T, H, W, 3] is needed, got {video.dtype} {video.shape}"
        )
    video = _to_size(video[:: max(1, (len(video) - 1) // (LOOKED_AT - 1))])
    second = labels.get("second")
    parts = judge_segment.segment(video, second["color"] if second else None)
    seen: dict = {"color": "none", "shape": "none", "motion": "none", "background": "none"}

    frames = np.linspace(0, len(video) - 1, 5).round().astype(int).tolist()
    scores = judge_background.texture_scores(parts.lightness, parts.foreground, frames)
    seen["background"] = judge_background.classify(scores)
    seen["texture_scores"] = scores

    seen["found"] = float(parts.found.mean())
    if seen["found"] < MIN_FOUND:
        return seen
    votes = parts.votes / np.maximum(parts.votes.sum(1, keepdims=True), 1)  # every frame counts the same
    votes = votes[parts.found].mean(0)
    if votes.max() >= MIN_AGREEMENT:
        seen["color"] = judge_segment.COLOR_NAMES[int(votes.argmax())]
    seen["color_votes"] = {name: float(v) for name, v in zip(judge_segment.COLOR_NAMES, votes) if v >= 0.02}
    seen["lab"] = [float(v) for v in np.nanmedian(parts.color, 0)]

    times = np.nonzero(parts.found)[0]
    rows = [judge_shape.polar(parts.mask[t]) for t in times]
    fits = [judge_shape.overlaps(grid) for grid, *_ in rows]
    x, y, area = (np.array([row[i] for row in rows]) for i in (1, 2, 3))
    overlap = np.stack([fit[0] for fit in fits])  # [frames, shapes]
    large = area >= 0.35 * area.max()  # the outline of a shrunken object says less
    mean_overlap = overlap[large].mean(0)
    shape = SHAPES[int(mean_overlap.argmax())]
    seen["shape_votes"] = float((overlap[large].argmax(1) == mean_overlap.argmax()).mean())
    if mean_overlap.max() >= judge_shape.MIN_OVERLAP and seen["shape_votes"] >= MIN_AGREEMENT:
        seen["shape"] = shape
    seen["shape_overlaps"] = dict(zip(SHAPES, mean_overlap.tolist()))

    angle = judge_motion.unwrap(np.array([fit[1][SHAPES.index(shape)] for fit in fits]), shape)
    if labels.get("pan", "none") != "none":
        slid = judge_background.pan_track(parts.lightness, parts.foreground)
        x = x - (slid[times] - slid.mean())
        seen["pan"] = float(slid[-1])  # pixels; a camera that pans left slides the background to the right
    facts = judge_motion.measure(times.astype(float), x, y, area, angle)
    seen["motion"] = judge_motion.classify(facts)
    seen["track"] = facts
    return seen


def _to_size(video: np.ndarray, size: int = 256) -> np.ndarray:
    """Thresholds are in pixels of 256x256 frames; other sizes are scaled to that."""
    if video.shape[1:3] == (size, size):
        return video
    return np.stack([cv2.resize(frame, (size, size), interpolation=cv2.INTER_AREA) for frame in video])


def read_video(path: pathlib.Path) -> np.ndarray:
    """uint8 [T, H, W, 3] from a video file, a .npy file or a folder of PNG frames in alphabetical order."""
    if path.is_dir():
        frames = [cv2.imread(str(file)) for file in sorted(path.glob("*.png"))]
    elif path.suffix == ".npy":
        return np.load(path)
    else:
        capture, frames = cv2.VideoCapture(str(path)), []
        while True:
            more, frame = capture.read()
            if not more:
                break
            frames.append(frame)
        capture.release()
    if not frames or any(frame is None for frame in frames):
        raise ValueError(f"{path}: no readable frames")
    return np.ascontiguousarray(np.stack(frames)[..., ::-1])


def find_video(folder: pathlib.Path, index: int) -> pathlib.Path | None:
    """The video with a number: 00.mp4, 000.npy, 0.webm, 00/ and the like."""
    for digits in (2, 3, 4, 1):
        stem = f"{index:0{digits}d}"
        for suffix in (".mp4", ".webm", ".mkv", ".npy", ""):
            path = folder / (stem + suffix)
            if path.exists():
                return path
    return None


def summarise(verdicts: list[dict], labels: list[dict]) -> dict:
    """Accuracy in percent: per aspect, all four at once, and per value of each aspect."""
    total = len(verdicts)
    summary: dict = {"videos": total}
    for aspect in ASPECTS:
        summary[aspect] = round(100 * sum(v[aspect] for v in verdicts) / total, 2)
    summary["all"] = round(100 * sum(all(v[a] for a in ASPECTS) for v in verdicts) / total, 2)
    for aspect, key, values in zip(
        ASPECTS, ("color", "shape", "motion", "background"), (COLORS, SHAPES, MOTIONS, BACKGROUNDS)
    ):
        table = {}
        for value in values:
            right = [v[aspect] for v, label in zip(verdicts, labels) if label[key] == value]
            if right:
                table[value] = f"{sum(right)}/{len(right)}"
        summary[f"by_{key}"] = table
    return summary


def _judge_path(job: tuple[pathlib.Path, dict]) -> dict:
    cv2.setNumThreads(1)
    return judge(read_video(job[0]), job[1])


def judge_folder(folder: pathlib.Path, labels: list[dict], workers: int) -> tuple[list[dict], list[dict]]:
    """Verdicts and the labels they belong to; labels without a video are left out."""
    jobs = []
    for position, label in enumerate(labels):
        path = find_video(folder, label.get("index", position))
        if path is not None:
            jobs.append((path, label))
    if not jobs:
        raise FileNotFoundError(f"{folder}: no video named like 00.mp4, 00.npy or 00/")
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        return pool.map(_judge_path, jobs, chunksize=1), [label for _, label in jobs]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=pathlib.Path, help="folder of videos")
    parser.add_argument("--labels", type=pathlib.Path, default=DEFAULT_LABELS)
    parser.add_argument("--validate", action="store_true", help="judge clips whose truth is known")
    parser.add_argument("--count", type=int, default=540, help="clips to validate with")
    parser.add_argument("-o", "--output", type=pathlib.Path)
    parser.add_argument("--workers", type=int, default=min(8, multiprocessing.cpu_count()))
    arguments = parser.parse_args(argv)
    if arguments.validate:
        from .judge_validate import validate

        report = validate(arguments.count, arguments.workers)
    elif arguments.videos:
        labels = json.loads(arguments.labels.read_text())
        verdicts, labels = judge_folder(arguments.videos, labels, arguments.workers)
        report = summarise(verdicts, labels)
        print(json.dumps(report, indent=1))
        if len(verdicts) < len(json.loads(arguments.labels.read_text())):
            print(f"only {len(verdicts)} videos found", file=sys.stderr)
        keep = ("index", "prompt", "shape", "color", "motion", "background", "pan")
        report["verdicts"] = [
            {**{k: label[k] for k in keep if k in label}, "verdict": v} for v, label in zip(verdicts, labels)
        ]
    else:
        parser.error("give --videos DIR or --validate")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
