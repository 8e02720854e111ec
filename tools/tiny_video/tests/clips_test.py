"""Scenes, captions, pictures and prompt files say the same thing, always."""

import json
import pathlib
import random

import numpy as np
import pytest
import torch

from tools.tiny_video import prompts
from tools.tiny_video.captions import BACKGROUND_WORDS, MOTION_WORDS, SHAPE_WORDS
from tools.tiny_video.clips import (
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    NUM_FRAMES,
    SHAPES,
    Scene,
    caption,
    combinations,
    is_held_out,
    place_scene,
    render,
    sample_scene,
)
from tools.tiny_video.scene import REACH, can_move, pose


def scenes(count, split="train", seed=0, **shares):
    rng = random.Random(seed)
    return [sample_scene(rng, split, **shares) for _ in range(count)]


def test_held_out_combinations_are_never_trained_but_their_pairs_are():
    train, held_out = set(combinations("train")), set(combinations("heldout"))
    assert not train & held_out
    assert len(train | held_out) == sum(can_move(s, m) for s in SHAPES for m in MOTIONS) * len(COLORS)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert {(t[a], t[b]) for t in held_out} <= {(t[a], t[b]) for t in train}
    assert all(not is_held_out(s.shape, s.color, s.motion) for s in scenes(2000))
    assert all(is_held_out(s.shape, s.color, s.motion) for s in scenes(200, "heldout"))
    with pytest.raises(ValueError, match="validation"):
        combinations("validation")


def test_sampling_covers_every_value_and_few_have_two_objects():
    many = scenes(3000)
    assert {s.shape for s in many} == set(SHAPES)
    assert {s.color for s in many} == set(COLORS)
    assert {s.motion for s in many} == set(MOTIONS)
    assert {s.background for s in many} == set(BACKGROUNDS)
    assert 0.1 < sum(s.second is not None for s in many) / len(many) <= 0.2
    assert {s.pan for s in many} == {"none", "left", "right"}


def test_a_scene_survives_json():
    for scene in scenes(50):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene


def test_objects_stay_in_the_frame_and_apart():
    for scene in scenes(2000, seed=5):
        for u in np.linspace(0, 1, 9):
            x, y, radius, _ = pose(scene, float(u))
            reach = radius * REACH[scene.shape]
            assert min(x, y) >= reach - 4 and max(x, y) <= 256 - reach + 4, scene
            if scene.second is not None:
                gap = np.hypot(x - scene.second.x, y - scene.second.y)
                assert gap > reach + scene.second.radius * REACH[scene.second.shape] - 2, scene


def test_a_caption_names_everything_in_few_words():
    rng = random.Random(1)
    for scene in scenes(3000, seed=2):
        text = caption(scene, rng)
        lower = text.lower()
        assert len(text.split()) <= 34
        assert any(f"{scene.color} {word}" in lower for word in SHAPE_WORDS[scene.shape])
        assert any(word in lower for group in BACKGROUND_WORDS[scene.background] for word in group), text
        if scene.motion != "orbit" or scene.second is None:
            assert any(word in lower for pair in MOTION_WORDS[scene.motion] for word in pair), text
        if scene.pan != "none":
            assert scene.pan in lower and "camera" in lower
        if scene.second is not None:
            assert any(f"{scene.second.color} {word}" in lower for word in SHAPE_WORDS[scene.second.shape]), text
    assert len({caption(scenes(1)[0], rng) for _ in range(100)}) > 60


def test_rendering_is_deterministic_and_does_not_depend_on_the_batch():
    chosen = scenes(6, seed=3)
    together = render(chosen, num_frames=5)
    assert together.shape == (6, 5, 256, 256, 3) and together.dtype == torch.uint8
    for index, scene in enumerate(chosen):
        assert torch.equal(render([scene], num_frames=5)[0], together[index])


@pytest.mark.parametrize("motion", MOTIONS)
def test_the_object_is_where_its_pose_says(motion):
    scene = place_scene(random.Random(4), "square", "red", motion, "clouds")
    video = render([scene], num_frames=9)[0].numpy().astype(int)
    for t in range(9):
        x, y, radius, _ = pose(scene, t / 8)
        ys, xs = np.nonzero(video[t, ..., 0] - video[t, ..., 1] > 90)
        assert abs(xs.mean() + 0.5 - x) < 0.7 and abs(ys.mean() + 0.5 - y) < 0.7
        assert abs(len(xs) / (3.1 * radius**2) - 1) < 0.06


def test_a_panned_background_slides_one_pixel_a_frame():
    scene = place_scene(random.Random(4), "star", "blue", "rotate", "bricks")
    for pan, direction in (("left", 1), ("right", -1)):
        scene.pan = pan
        video = render([scene])[0]
        top = video[:, :20].roll(0)  # the star does not reach the first rows
        for t in (1, 30, NUM_FRAMES - 1):
            moved = top[t].roll(-direction * t, dims=1)
            valid = slice(0, 256 - t) if direction > 0 else slice(t, 256)
            assert torch.equal(moved[:, valid], top[0][:, valid])


def test_prompt_files_are_those_that_the_code_writes():
    folder = pathlib.Path(__file__).parents[3] / prompts.DEFAULT_FOLDER
    records = json.loads((folder / "heldout_prompts.json").read_text())
    assert records == json.loads(json.dumps(prompts.entries(prompts.held_out_scenes(), seed=1)))
    assert len(records) == 64
    assert all(is_held_out(r["shape"], r["color"], r["motion"]) and r["second"] is None for r in records)
    assert (folder / "heldout.txt").read_text().splitlines() == [r["prompt"] for r in records]
    assert len(set(r["prompt"] for r in records)) == 64
    assert len((folder / "calibration_prompts.txt").read_text().splitlines()) == 16
