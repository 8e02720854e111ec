"""The judge sees what was drawn, and does not see what was not. The full validation is `judge --validate`."""

import random

import cv2
import numpy as np
import pytest

from tools.tiny_video import judge_background, judge_motion, judge_segment, judge_shape
from tools.tiny_video.clips import BACKGROUNDS, MOTIONS, SHAPES, place_scene, render
from tools.tiny_video.judge import judge, judge_folder, observe, summarise

FRAMES = 33


def clip(shape, color, motion, background, seed=0, **changes):
    scene = place_scene(random.Random(seed), shape, color, motion, background)
    for name, value in changes.items():
        setattr(scene, name, value)
    return render([scene], num_frames=FRAMES)[0].numpy(), scene.to_dict()


@pytest.mark.parametrize("index, motion", list(enumerate(MOTIONS)))
def test_a_clip_is_recognised(index, motion):
    shape = ("heart", "square", "triangle", "star")[index % 4] if motion == "rotate" else SHAPES[index % len(SHAPES)]
    color = list(judge_segment.COLOR_NAMES)[index % 8]
    video, labels = clip(shape, color, motion, BACKGROUNDS[index % len(BACKGROUNDS)])
    verdict = judge(video, labels)
    assert verdict["colour"] and verdict["shape"] and verdict["motion"] and verdict["background"], verdict
    wrong = {**labels, "shape": "hexagon", "color": "brown", "motion": "zigzag", "background": "grass"}
    verdict = judge(video, wrong)
    assert not any(verdict[aspect] for aspect in ("colour", "shape", "motion", "background"))


def test_a_pan_is_taken_out_and_measured():
    video, labels = clip("ring", "purple", "up", "waves", pan="left")
    verdict = judge(video, labels)
    assert verdict["motion"] and verdict["background"]
    assert abs(verdict["detail"]["pan"] - 64) < 8


def test_a_second_object_is_ignored_by_its_colour():
    scene = place_scene(random.Random(3), "star", "red", "up", "dots", second_share=1.0)
    video = render([scene], num_frames=FRAMES)[0].numpy()
    verdict = judge(video, scene.to_dict())
    assert verdict["colour"] and verdict["shape"] and verdict["motion"]


def test_nothing_there_is_seen_as_nothing():
    video, labels = clip("circle", "red", "left", "bricks", radius=0.5)
    seen = observe(video, labels)
    assert (seen["color"], seen["shape"], seen["motion"], seen["background"]) == ("none", "none", "none", "bricks")
    noise = np.random.default_rng(0).integers(0, 256, video.shape).astype(np.uint8)
    seen = observe(noise, labels)
    assert seen["shape"] == "none" and seen["background"] == "none" and seen["color"] == "none"


def test_an_object_that_stands_still_has_no_motion():
    video, labels = clip("heart", "pink", "rotate", "waves")
    still = np.repeat(video[:1], FRAMES, axis=0)
    assert observe(still, labels)["motion"] == "none"
    backwards = observe(clip("square", "blue", "left", "dots")[0][::-1].copy(), labels)
    assert backwards["motion"] == "right"


def test_a_colour_or_shape_that_changes_halfway_is_not_accepted():
    first, labels = clip("square", "red", "grow", "clouds")
    second, _ = clip("square", "green", "grow", "clouds")
    mixed = np.concatenate([first[: FRAMES // 2], second[FRAMES // 2 :]])
    assert observe(mixed, labels)["color"] == "none"
    left, labels = clip("star", "blue", "up", "clouds")
    right, _ = clip("ring", "blue", "up", "clouds")
    mixed = np.concatenate([left[: FRAMES // 2], right[FRAMES // 2 :]])
    assert observe(mixed, labels)["shape"] == "none"


def test_a_shapeless_blob_is_not_a_shape():
    rows, columns = np.mgrid[0:256, 0:256] - 128.0
    turn = np.arctan2(rows, columns)
    blob = np.hypot(rows, columns) < 50 * (
        1 + 0.35 * np.cos(2 * turn + 1) + 0.3 * np.cos(3 * turn) + 0.2 * np.sin(7 * turn)
    )
    assert judge_shape.overlaps(judge_shape.polar(blob)[0])[0].max() < judge_shape.MIN_OVERLAP


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_told_apart_at_any_angle(shape):
    picture = judge_shape._draw(judge_shape._outline(shape)).astype(np.uint8)
    for degrees in (0, 17, 100, 233):
        turned = cv2.warpAffine(picture, cv2.getRotationMatrix2D((128, 128), -degrees, 0.5), (256, 256)) > 0
        overlap, angle = judge_shape.overlaps(judge_shape.polar(turned)[0])
        own = SHAPES.index(shape)
        assert overlap.argmax() == own and overlap[own] > 0.9
        assert np.partition(overlap, -2)[-2] < 0.9
        period = judge_motion.SYMMETRY.get(shape)
        if period is not None:
            error = (angle[own] - np.radians(degrees) + period / 2) % period - period / 2
            assert abs(error) < np.radians(3)


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_textures_are_told_apart_without_colour(name):
    video, labels = clip("circle", "red", "left", name, seed=8)
    lightness = np.stack([cv2.GaussianBlur(judge_segment.lab(frame)[..., 0], (0, 0), 2.5) for frame in video[:3]])
    foreground = np.zeros(lightness.shape, bool)
    foreground[:, :, 130:] = True
    scores = judge_background.texture_scores(lightness, foreground, [0, 2])
    assert judge_background.classify(scores) == name, scores


def test_a_folder_of_coded_videos_is_judged(tmp_path):
    wanted = [clip("star", "orange", "left", "stripes"), clip("circle", "cyan", "bounce", "bricks")]
    for index, (video, _) in enumerate(wanted):
        writer = cv2.VideoWriter(str(tmp_path / f"{index:02d}.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 16, (256, 256))
        for frame in video:
            writer.write(frame[..., ::-1])
        writer.release()
    labels = [{"index": i, **label} for i, (_, label) in enumerate(wanted)] + [{"index": 7, **wanted[0][1]}]
    verdicts, found = judge_folder(tmp_path, labels, workers=1)
    summary = summarise(verdicts, found)
    assert summary["videos"] == 2 and summary["all"] == 100.0
    with pytest.raises(FileNotFoundError):
        judge_folder(tmp_path / "missing", labels, workers=1)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="uint8"):
        observe(np.zeros((65, 256, 256, 3), np.float32), {})
