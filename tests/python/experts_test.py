"""Wan 2.2: two transformers by noise level (T2V-A14B), and one timestep for each token (TI2V-5B), as small random models."""

import diffusers
import numpy as np
import pytest
import torch
from apply_test import F32_TOLERANCE
from conftest import PROMPT, PROMPTS, ROOT, copied, latents_of, relative, run_program, with_reuse
from PIL import Image

import calibatt

DATA = ROOT / "tests/golden/data"
CALL = dict(height=96, width=112, num_frames=9, num_inference_steps=6, guidance_scale=4.0, guidance_scale_2=3.0)
FLAGS = ["--height", 96, "--width", 112, "--video-frames", 9, "--steps", 6, "--cfg-scale", 4, "--cfg-scale-2", 3, "--dtype", "fp32"]
SETTINGS = {"token_order": "tiles:3x2x2", "block_q": 16, "block_k": 16}


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    """A small Wan 2.2 T2V-A14B in diffusers' layout."""
    pair = {name: diffusers.WanTransformer3DModel.from_pretrained(DATA / "experts" / name, dtype=torch.float32) for name in ("transformer", "transformer_2")}
    pipe = diffusers.WanPipeline(**{**loaded["wan"].components, **pair}, boundary_ratio=0.875)
    path = tmp_path_factory.mktemp("experts") / "tiny-a14b"
    pipe.save_pretrained(path)
    return path


@pytest.fixture
def pair(folder):
    pipe = diffusers.WanPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_two_transformers(pair, folder, tmp_path):
    """Calibrated in the pipe; the command line goes on with the profile, and makes the same video with the plan."""
    dense = latents_of(pair, CALL)
    plan = calibatt.calibrate(pair, PROMPTS, tmp_path / "plan.safetensors", density=0.5, settings=SETTINGS, **CALL)
    assert set(plan.step_transformer) == {0, 1} and plan.step_transformer == sorted(plan.step_transformer)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    report = run_program("calibrate", "-m", folder, "--prompts", tmp_path / "prompts.txt", "--profile", tmp_path / "plan.safetensors.profile", "-o",
                         tmp_path / "theirs.safetensors", "--density", 0.5, *FLAGS, *[x for n, v in SETTINGS.items() for x in ("--" + n.replace("_", "-"), v)])  # fmt: skip
    assert "(2 from the saved profile)" in report
    calibatt.apply(pair, tmp_path / "theirs.safetensors")
    frames = pair(prompt=PROMPT, generator=torch.Generator().manual_seed(3), output_type="np", **CALL).frames[0]
    summary = calibatt.summary(pair)
    assert summary.weights == {"transformer": "the same", "transformer_2": "the same"} and summary.calls == 6 * 2 * 2
    run_program("generate", "-m", folder, "-p", PROMPT, "--plan", plan.path, "-s", 3, "-o", tmp_path / "f.png", *FLAGS)
    expected = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("f_*.png"))])
    assert 10 * np.log10(255**2 / max(np.mean((np.round(frames * 255) - expected) ** 2), 1e-9)) >= 60
    calibatt.restore(pair)
    assert torch.equal(latents_of(pair, CALL), dense)


def test_steps_are_never_made_from_the_other_transformers(pair, folder, tmp_path):
    """Steps without a forward on both sides of the boundary, at the plan's steps and at finer ones; the command line makes the same video."""
    call, flags = {**CALL, "num_inference_steps": 9}, [text if text != 6 else 9 for text in FLAGS]
    measured = calibatt.calibrate(pair, PROMPTS[:1], tmp_path / "plan.safetensors", density=0.5, settings=SETTINGS, **call)
    low = measured.step_transformer.index(1)
    assert 3 <= low <= 5
    reuse = ["forward"] * 9
    reuse[low - 1], reuse[low + 1], reuse[low + 3] = "linear", "residual", "linear"
    plan = calibatt.Plan(with_reuse(measured.path, tmp_path / "reusing.safetensors", reuse))
    calibatt.apply(pair, plan)
    frames = pair(prompt=PROMPT, generator=torch.Generator().manual_seed(3), output_type="np", **call).frames[0]
    summary = calibatt.summary(pair)
    assert summary.step_reuse == {low - 1: "linear", low + 1: "residual", low + 3: "linear"} and summary.forwards == 2 * 6
    run_program("generate", "-m", folder, "-p", PROMPT, "--plan", plan.path, "-s", 3, "-o", tmp_path / "f.png", *flags)
    expected = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("f_*.png"))])
    assert 10 * np.log10(255**2 / max(np.mean((np.round(frames * 255) - expected) ** 2), 1e-9)) >= 60
    with pytest.warns(calibatt.CalibattWarning, match="steps"):
        latents_of(pair, {**call, "num_inference_steps": 21})
    run, reused = calibatt.summary(pair).run, calibatt.summary(pair).step_reuse
    first_of_low = run.step_transformer.index(1)
    assert first_of_low not in reused and any(step < first_of_low for step in reused) and any(step > first_of_low for step in reused)


def test_two_transformers_compile_to_one_graph(pair, tmp_path):
    from torch._dynamo.utils import counters

    plan = calibatt.calibrate(pair, PROMPTS[:1], tmp_path / "plan.safetensors", density=0.5, settings=SETTINGS, **CALL)
    calibatt.apply(pair, plan)
    eager = latents_of(pair, CALL)
    for transformer in (pair.transformer, pair.transformer_2):
        transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    counters.clear()
    assert relative(latents_of(pair, CALL), eager) < F32_TOLERANCE
    assert counters["stats"]["unique_graphs"] == 1


def test_boundary_and_number_of_transformers(pair, loaded, plans, tmp_path):
    with pytest.raises(calibatt.Mismatch):
        calibatt.apply(pair, plans["wan"])
    plan = calibatt.calibrate(pair, PROMPTS[:1], tmp_path / "plan.safetensors", density=0.5, settings=SETTINGS, **CALL)
    with pytest.raises(calibatt.Mismatch):
        calibatt.apply(copied(loaded["wan"]), plan)
    calibatt.apply(pair, plan)
    pair.register_to_config(boundary_ratio=None)
    with pytest.raises(calibatt.Unsupported, match="boundary_ratio"):
        latents_of(pair, {**CALL, "guidance_scale_2": None})


def test_a_timestep_for_each_token(loaded, tmp_path):
    """Wan 2.2 TI2V-5B's pipe gives every token its timestep; from text they are all the same."""
    transformer = diffusers.WanTransformer3DModel.from_pretrained(DATA / "experts/transformer", dtype=torch.float32)
    pipe = diffusers.WanPipeline(**{**loaded["wan"].components, "transformer": transformer}, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    call = {name: value for name, value in CALL.items() if name != "guidance_scale_2"}
    dense = latents_of(pipe, call)
    calibatt.calibrate(pipe, PROMPTS, tmp_path / "plan.safetensors", density=0.5, settings=SETTINGS, **call)
    pipe.register_to_config(expand_timesteps=False)
    calibatt.calibrate(pipe, PROMPTS, tmp_path / "alike.safetensors", density=0.5, settings=SETTINGS, **call)
    pipe.register_to_config(expand_timesteps=True)
    plan, alike = calibatt.Plan(tmp_path / "plan.safetensors"), calibatt.Plan(tmp_path / "alike.safetensors")
    assert np.allclose(plan.density_map, alike.density_map, atol=0.02)
    calibatt.apply(pipe, calibatt.compile(tmp_path / "plan.safetensors.profile", tmp_path / "all.safetensors", density=1.0))
    assert relative(latents_of(pipe, call), dense) < F32_TOLERANCE
