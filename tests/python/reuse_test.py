"""Plans by which some steps run no forward, in diffusers' pipes."""

import json
import pathlib

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from apply_test import F32_TOLERANCE, blocks_of
from combined_test import compile_blocks, compile_whole, compile_wrapped, graphs_of
from conftest import CALLS, PROMPT, PROMPTS, ROOT, SETTINGS, flags, latents_of, relative, run_program, setting_flags, with_reuse
from PIL import Image

import calibatt

#: Of the steps of CALLS: every way, twice in a row, from one step and from two.
REUSE = {"wan": ["forward", "forward", "linear", "residual"], "mochi": ["forward", "hold", "forward", "linear", "forward", "residual", "residual"]}


def num_forwards(model):
    """A guided Wan calls its transformer twice in a step, Mochi once."""
    return REUSE[model].count("forward") * (2 if model == "wan" else 1)


@pytest.fixture(scope="session")
def reusing(plans, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reusing")
    return {name: with_reuse(path, folder / f"{name}.safetensors", REUSE[name]) for name, path in plans.items()}


class Forwards:
    """Counts the calls of a pipe's first block."""

    def __init__(self, pipe):
        self.count = 0
        blocks_of(pipe)[0].register_forward_pre_hook(self)

    def __call__(self, *_):
        self.count += 1


def command_lines_frames(folder, tmp_path, plan, *more):
    run_program("generate", "-m", folder, "-p", PROMPT, "--plan", plan, "-s", 3, "--dtype", "fp32", "-o", tmp_path / "f.png", *more)
    return np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("f_*.png"))])


def psnr(frames, expected):
    assert frames.shape == expected.shape
    return 10 * np.log10(255**2 / max(np.mean((np.round(frames * 255) - expected) ** 2), 1e-9))


def test_video_is_the_command_lines(pipe, model, plans, reusing, tmp_path):
    forwards = Forwards(pipe)
    calibatt.apply(pipe, reusing[model])
    frames = pipe(prompt=PROMPT, generator=torch.Generator().manual_seed(3), output_type="np", **CALLS[model]).frames[0]
    expected = command_lines_frames(ROOT / f"models/tiny-{model}", tmp_path, reusing[model], *flags(CALLS[model]))
    assert psnr(frames, expected) >= 60
    assert forwards.count == num_forwards(model)
    calibatt.apply(pipe, plans[model])
    frames = pipe(prompt=PROMPT, generator=torch.Generator().manual_seed(3), output_type="np", **CALLS[model]).frames[0]
    assert psnr(frames, expected) < 50


def test_summary_counts_forwards_and_reused_steps(pipe, model, reusing):
    calibatt.apply(pipe, reusing[model])
    assert calibatt.summary(pipe).step_reuse == {} and calibatt.summary(pipe).forwards == 0
    densities = []
    for _ in range(2):
        latents_of(pipe, CALLS[model])
        summary = calibatt.summary(pipe)
        assert summary.forwards == num_forwards(model)
        assert summary.step_reuse == {step: way for step, way in enumerate(REUSE[model]) if way != "forward"}
        assert summary.calls == 2 * REUSE[model].count("forward") * len(blocks_of(pipe)) and summary.dense_fallback_calls == 0
        densities.append(summary.density_of_run)
    assert densities[0] == pytest.approx(densities[1]) and densities[0] < 1
    expected = {"wan": "2 of 4 without a forward (1 linear, 1 residual), 4 forwards", "mochi": "4 of 7 without a forward (1 hold, 1 linear, 2 residual), 3 forwards"}
    assert expected[model] in str(summary)


def test_pipes_are_given_back_bit_for_bit(pipe, model, reusing):
    dense = latents_of(pipe, CALLS[model])
    calibatt.apply(pipe, reusing[model])
    planned = latents_of(pipe, CALLS[model])
    with calibatt.disabled(pipe):
        assert torch.equal(latents_of(pipe, CALLS[model]), dense)
    assert torch.equal(latents_of(pipe, CALLS[model]), planned)
    calibatt.restore(pipe)
    assert "_compiled_call_impl" not in pipe.transformer.__dict__
    assert torch.equal(latents_of(pipe, CALLS[model]), dense)


def test_runs_leave_nothing_to_the_next(pipe, model, reusing):
    """One that ends in the middle, one of another seed, guidance or number of prompts."""
    calibatt.apply(pipe, reusing[model])
    planned = latents_of(pipe, CALLS[model])

    def stop(pipe, step, timestep, tensors):
        if step == 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        latents_of(pipe, CALLS[model], callback_on_step_end=stop)
    assert "_compiled_call_impl" not in pipe.transformer.__dict__
    assert torch.equal(latents_of(pipe, CALLS[model]), planned)
    latents_of(pipe, CALLS[model], seed=4)
    with pytest.warns(calibatt.CalibattWarning, match="guidance"):
        latents_of(pipe, {**CALLS[model], "guidance_scale": 1.0})
    assert calibatt.summary(pipe).forwards == REUSE[model].count("forward")
    assert torch.equal(latents_of(pipe, CALLS[model]), planned)
    pair = pipe([PROMPT, "a blue star"], generator=[torch.Generator().manual_seed(seed) for seed in (3, 4)], output_type="latent", **CALLS[model]).frames
    assert relative(pair[:1], planned) < F32_TOLERANCE
    assert not pipe.transformer.__dict__.get("_compiled_call_impl") and not calibatt._apply.runtime_of(pipe).predictor._kept


@pytest.mark.parametrize("compiled", [compile_blocks, compile_whole, compile_wrapped])
def test_compiled_pipes(pipe, model, reusing, compiled):
    torch._dynamo.reset()
    eager = latents_of(calibatt.apply(pipe, reusing[model]), CALLS[model])
    expected_graphs = compiled(pipe)
    calibatt.apply(pipe, reusing[model])
    result, graphs, breaks = graphs_of(lambda: latents_of(pipe, CALLS[model]))
    assert (graphs, breaks) == (expected_graphs, 0) and relative(result, eager) < F32_TOLERANCE
    assert calibatt.summary(pipe).forwards == num_forwards(model)
    result, graphs, _ = graphs_of(lambda: latents_of(pipe, CALLS[model]))
    assert graphs == 0 and relative(result, eager) < F32_TOLERANCE


@pytest.mark.parametrize("first", ["offload", "apply"])
def test_reused_steps_stream_nothing(wan, reusing, first, monkeypatch):
    """Sequential offloading brings each layer's weights; it is asked in the steps that run, and in no other."""
    asked = []
    real = accelerate.hooks.AlignDevicesHook.pre_forward
    monkeypatch.setattr(accelerate.hooks.AlignDevicesHook, "pre_forward", lambda self, module, *a, **k: (asked.append(module), real(self, module, *a, **k))[1])
    expected = latents_of(calibatt.apply(wan, reusing["wan"]), CALLS["wan"])
    if first == "offload":
        calibatt.restore(wan)
        accelerate.cpu_offload(wan.transformer, "cpu")
        calibatt.apply(wan, reusing["wan"])
    else:
        accelerate.cpu_offload(wan.transformer, "cpu")
    asked.clear()
    per_step = []
    latents = latents_of(wan, CALLS["wan"], callback_on_step_end=lambda pipe, step, *_: per_step.append(len(asked)) or {})
    assert relative(latents, expected) < F32_TOLERANCE
    assert per_step[0] > 0 and per_step[1] == 2 * per_step[0] and per_step[1:] == per_step[1:2] * 3


def test_other_steps_are_mapped(wan, reusing):
    calibatt.apply(wan, reusing["wan"])
    with pytest.warns(calibatt.CalibattWarning, match="steps"):
        latents_of(wan, {**CALLS["wan"], "num_inference_steps": 9})
    summary = calibatt.summary(wan)
    assert summary.forwards == 2 * (9 - len(summary.step_reuse)) and 0 < len(summary.step_reuse)
    assert f"this run {len(summary.step_reuse)} (hardly farther in noise level than the plan)" in str(summary)


def test_step_caches_are_refused_by_name(wan, reusing):
    calibatt.apply(wan, reusing["wan"])
    wan.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1))
    for refused in (lambda: latents_of(wan, CALLS["wan"]), lambda: calibatt.apply(wan, reusing["wan"])):
        with pytest.raises(calibatt.Unsupported, match="FirstBlockCacheConfig.*disable_cache"):
            refused()
    wan.transformer.disable_cache()
    wan.transformer._is_cached = True
    with pytest.raises(calibatt.Unsupported, match="cache-dit"):
        calibatt.apply(wan, reusing["wan"])
    del wan.transformer._is_cached
    latents_of(calibatt.apply(wan, reusing["wan"]), CALLS["wan"])


def test_calls_beside_the_pipe_are_refused(wan, reusing):
    calibatt.apply(wan, reusing["wan"])
    latents_of(wan, CALLS["wan"])
    inputs = dict(hidden_states=torch.randn(1, 16, 5, 12, 14), timestep=torch.tensor([900.0]), encoder_hidden_states=torch.randn(1, 512, 256))
    wan.scheduler.set_timesteps(4)
    with wan.transformer.cache_context("cond", step_index=2), pytest.raises(calibatt.Unsupported, match="step 2 .* is made from step 1, which did not run"):
        wan.transformer(**inputs)
    with wan.transformer.cache_context("cond", step_index=2), pytest.raises(calibatt.Unsupported, match="step 2 runs no forward"):
        wan.transformer.forward(**inputs)
    for step in range(4):
        with wan.transformer.cache_context("cond", step_index=step):
            output = wan.transformer(**inputs).sample
    assert torch.isfinite(output).all()


def test_plans_of_a_speed_are_made_of_the_command_lines_profile(wan, plans, tmp_path):
    """It saw what steps predict and how their errors grow; a profile of density alone did not."""
    call = {**CALLS["wan"], "num_inference_steps": 8}
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    run_program("calibrate", "-m", ROOT / "models/tiny-wan", "--prompts", tmp_path / "prompts.txt", "-o", tmp_path / "plan.safetensors", "--dtype", "fp32",
                "--speedup", 1.5, *flags(call), *setting_flags(SETTINGS))  # fmt: skip
    theirs = calibatt.Plan(tmp_path / "plan.safetensors")
    plans_of = {speedup: calibatt.compile(f"{theirs.path}.profile", tmp_path / f"{speedup}.safetensors", speedup=speedup) for speedup in (1.5, 3.0)}
    assert plans_of[1.5].step_reuse == theirs.step_reuse and plans_of[1.5].density_map == theirs.density_map
    assert plans_of[3.0].step_reuse.count("forward") < 8
    latents_of(calibatt.apply(wan, plans_of[3.0]), call)
    assert calibatt.summary(wan).forwards == 2 * plans_of[3.0].step_reuse.count("forward")
    with pytest.raises(calibatt.UsageError, match="was not measured"):
        calibatt.compile(f"{plans['wan']}.profile", tmp_path / "none.safetensors", speedup=1.5)
    # What it may have in 8 bits is told as on the command line, and must have been measured.
    told = {"speedup": 1.5, "eight_bit_layers_from": 3}
    with pytest.warns(UserWarning, match="change is without the plan's linear layers in 8 bits; weights_dtype int8 .* once `calibatt calibrate` has measured"):
        calibatt.compile(f"{theirs.path}.profile", tmp_path / "told.safetensors", **told)
    with pytest.raises(calibatt.UsageError, match="weights_dtype int8: .* does not know what these 8 bits do; measure it with `calibatt calibrate`"):
        calibatt.compile(f"{theirs.path}.profile", tmp_path / "told.safetensors", weights_dtype="int8", **told)
    with pytest.raises(calibatt.UsageError, match="weights_dtype int4: choose fp8"):
        calibatt.compile(f"{theirs.path}.profile", tmp_path / "told.safetensors", weights_dtype="int4")
    path = pathlib.Path(f"{theirs.path}.profile/step_growth.json")
    growth = json.loads(path.read_text())
    growth.update(layers="int8", layer_arithmetic=2, layer_changes=[{"step": 0, "change": 0.5}, {"step": 7, "change": 0.5}])
    del growth["checksum"]
    path.write_text(json.dumps(growth))
    plan = calibatt.compile(f"{theirs.path}.profile", tmp_path / "told.safetensors", weights_dtype="int8", **told)
    assert plan.eight_bits == ["none"] * 3 + ["layers"] * 5 and "weights-dtype int8" in plan.describe()
    # Versions before measured two of few steps, which says nothing of the others.
    assert [factor["step"] for factor in growth["factors"]] == [1, 2, 3, 4, 5, 6]
    growth["factors"] = [factor for factor in growth["factors"] if factor["step"] in (3, 6)]
    path.write_text(json.dumps(growth))
    with pytest.raises(calibatt.UsageError, match="by an earlier version in too few steps; .* compile with `calibatt calibrate`, which measures it"):
        calibatt.compile(f"{theirs.path}.profile", tmp_path / "old.safetensors", speedup=1.5)


def test_pipes_that_share_a_transformer(wan, reusing):
    """And its scheduler; one of them through a wrapper of torch.compile, of which the plan's pipe knows nothing."""
    planned = latents_of(calibatt.apply(wan, reusing["wan"]), CALLS["wan"])
    for transformer in (wan.transformer, torch.compile(wan.transformer, backend="eager")):
        other = type(wan)(**{**wan.components, "transformer": transformer})
        other.set_progress_bar_config(disable=True)
        result, graphs, _ = graphs_of(lambda: latents_of(other, CALLS["wan"]))
        assert relative(result, planned) < F32_TOLERANCE and graphs <= 1
        assert calibatt.summary(wan).forwards == num_forwards("wan")
    assert torch.equal(latents_of(wan, CALLS["wan"]), planned)
