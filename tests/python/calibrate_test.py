"""Calibration in the pipe: the same profile as the command line's, either goes on with the other's, and what is refused."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import CALLS, DENSITY, PROMPTS, ROOT, SETTINGS, add_lora, copied, flags, latents_of, relative, run_program, setting_flags
from safetensors import safe_open
from stand_in import plan_reader

import calibatt


def calibrate(pipe, model, output, **more):
    arguments = {"density": DENSITY, "settings": SETTINGS, **CALLS[model], **more}
    return calibatt.calibrate(pipe, arguments.pop("prompts", PROMPTS), output, **arguments)


def tensors_of(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_profile_is_the_command_lines(pipe, model, plans, tmp_path):
    before = latents_of(pipe, CALLS[model])
    plan = calibrate(pipe, model, tmp_path / "plan.safetensors")
    assert torch.equal(latents_of(pipe, CALLS[model]), before)  # nothing is left behind
    theirs = sorted((plans[model].parent / f"{model}.safetensors.profile").glob("*.safetensors"))
    ours = sorted((tmp_path / "plan.safetensors.profile").glob("*.safetensors"))
    assert [path.name for path in ours] == [path.name for path in theirs] and len(ours) == len(PROMPTS)
    for our_path, their_path in zip(ours, theirs):
        (our, our_facts), (their, their_facts) = tensors_of(our_path), tensors_of(their_path)
        names = {name for name in their_facts if name not in ("checksum", "step_checksum", "attention_seconds", "run_seconds", "sigmas")}
        levels = [[float(level) for level in facts["sigmas"].split(",")] for facts in (our_facts, their_facts)]
        assert np.allclose(*levels, rtol=0, atol=1e-7)
        assert {name: our_facts.get(name) for name in names} == {name: their_facts[name] for name in names}
        assert our.keys() == their.keys() - {"step_products", "solver_weights"}  # the command line alone sees what steps predict
        for name in ("energy", "level_error", "copy_error", "similarity"):
            # float32 sums in another order, seen through half precision; errors are of few queries, ranked by near ties
            assert relative(our[name], their[name]) < (2e-3 if name in ("energy", "similarity") else 0.05), name
    assert plan.density == pytest.approx(DENSITY, abs=0.02)
    same, total = agreement(plan.path, plans[model])
    assert same > 0.97 * total


def agreement(path, other):
    """How many (step, layer, head) densities are the same."""
    plans = [plan_reader.read_plan(str(each)) for each in (path, other)]
    pairs = [[plan.token_pairs(e, layer, head) for e in range(plan.num_entries) for layer in range(plan.num_layers) for head in range(plan.num_heads)]
             for plan in plans]  # fmt: skip
    return sum(abs(a - b) <= 0.1 * max(a, b) for a, b in zip(*pairs)), len(pairs[0])


def test_either_goes_on_with_the_others_profile(pipe, model, plans, tmp_path):
    """One prompt by the pipe, the other by the command line, which then compiles; and the pipe finds everything there."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    assert calibrate(pipe, model, tmp_path / "plan.safetensors", prompt_range=(0, 1)) is None
    assert not (tmp_path / "plan.safetensors").exists()
    report = tmp_path / "report.json"
    run_program("calibrate", "-m", ROOT / f"models/tiny-{model}", "--prompts", prompts, "-o", tmp_path / "plan.safetensors", "--dtype", "fp32", "--density",
                DENSITY, "--report", report, *flags(CALLS[model]), *setting_flags(SETTINGS))  # fmt: skip
    told = json.loads(report.read_text())
    assert (told["prompts_recorded"], told["prompts_resumed"]) == (1, 1)
    runs = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: runs.append(1))
    plan = calibrate(pipe, model, tmp_path / "again.safetensors", profile=tmp_path / "plan.safetensors.profile")
    hook.remove()
    assert len(runs) == 1  # the look at how the pipe runs; nothing is measured again
    assert plan.density == pytest.approx(DENSITY, abs=0.02)


def test_stopped_calibrations_go_on(wan, tmp_path):
    class Stop(Exception):
        pass

    calls = []

    def stop_in_second_prompt(*_):
        calls.append(1)
        if len(calls) == 1 + 8 + 5:  # the look, the first prompt, part of the second
            raise Stop

    hook = wan.transformer.register_forward_pre_hook(stop_in_second_prompt)
    with pytest.raises(Stop):
        calibrate(wan, "wan", tmp_path / "plan.safetensors")
    hook.remove()
    assert "cache_context" not in wan.transformer.__dict__
    first = list((tmp_path / "plan.safetensors.profile").glob("*.safetensors"))
    assert len(first) == 1 and not (tmp_path / "plan.safetensors").exists()
    content = first[0].read_bytes()
    plan = calibrate(wan, "wan", tmp_path / "plan.safetensors")
    assert first[0].read_bytes() == content and plan.facts["density"] == plan.density
    calibatt.apply(wan, plan)
    latents_of(wan, CALLS["wan"])


def test_lora_is_part_of_what_is_measured(wan, tmp_path):
    """W_o with its LoRA, as peft computes it, gives the profile of the pipe into which the LoRA is merged."""
    add_lora(wan)
    calibrate(wan, "wan", tmp_path / "loaded.safetensors", prompts=PROMPTS[:1])
    wan.fuse_lora(components=["transformer"])
    wan.transformer.unload_lora()
    calibrate(wan, "wan", tmp_path / "fused.safetensors", prompts=PROMPTS[:1])
    loaded, fused = (tensors_of(next((tmp_path / f"{name}.safetensors.profile").glob("*.safetensors")))[0] for name in ("loaded", "fused"))
    for name in ("energy", "copy_error", "similarity"):
        assert relative(loaded[name], fused[name]) < 2e-3, name
    assert calibatt.Plan(tmp_path / "loaded.safetensors").transformers[0]["fingerprint"] == ""


def copied_profile(plans, folder, model="wan"):
    shutil.copytree(str(plans[model]) + ".profile", folder)
    return folder


def test_plans_are_of_the_listed_prompts_alone(wan, plans, tmp_path):
    profile = copied_profile(plans, tmp_path / "profile")
    one = calibrate(wan, "wan", tmp_path / "one.safetensors", prompts=PROMPTS[:1], profile=profile)
    assert one.facts["num_prompts"] == 1 and one.facts["held_out"] is False
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(profile / "prompt_0000.safetensors", alone)
    again = calibrate(wan, "wan", tmp_path / "again.safetensors", prompts=PROMPTS[:1], profile=alone)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "one.safetensors").read_bytes() and again.density == one.density
    other = calibrate(wan, "wan", tmp_path / "other.safetensors", prompts=["a star"], profile=profile)
    assert other.facts["num_prompts"] == 1 and len(list(profile.glob("*.safetensors"))) == 3
    assert (tmp_path / "other.safetensors").read_bytes() != (tmp_path / "one.safetensors").read_bytes()
    with pytest.raises(calibatt.UsageError, match="3 prompts of more than one calibration"):
        calibatt.compile(profile, tmp_path / "all.safetensors", density=DENSITY)
    assert not (tmp_path / "all.safetensors").exists()


def test_settings_that_nothing_reads_are_named(wan, plans, tmp_path):
    with pytest.warns(UserWarning, match="^gamma changes nothing here: only repetition similarity"):
        calibatt.compile(str(plans["wan"]) + ".profile", tmp_path / "other.safetensors", density=DENSITY, gamma=0.9)
    with pytest.warns(UserWarning, match="schedule_c"):
        calibrate(wan, "wan", tmp_path / "again.safetensors", profile=str(plans["wan"]) + ".profile", settings={**SETTINGS, "schedule_c": 0.9})


def steps_run(pipe, calibrated):
    """How many forwards the calibration made; the first is its look at how the pipe runs."""
    runs = []
    hook = pipe.transformer.register_forward_pre_hook(lambda *_: runs.append(1))
    try:
        calibrated()
    finally:
        hook.remove()
    return len(runs)


def test_other_arguments_of_the_pipe_are_another_calibration(wan, plans, tmp_path):
    profile = copied_profile(plans, tmp_path / "profile")
    assert steps_run(wan, lambda: calibrate(wan, "wan", tmp_path / "p.safetensors", profile=profile, max_sequence_length=512, attention_kwargs=None)) == 1
    for more, message in ((dict(max_sequence_length=77), "max_sequence_length: 77"), (dict(attention_kwargs={"scale": 0.5}), "attention_kwargs: {'scale': 0.5}")):
        with pytest.raises(calibatt.Mismatch, match=message):
            calibrate(wan, "wan", tmp_path / "p.safetensors", profile=profile, **more)


def test_other_weights_are_another_calibration(wan, plans, tmp_path):
    def with_lora(pipe, seed=5, scale=1.0, name="style"):
        add_lora(pipe, seed, name)
        for module in pipe.transformer.modules():
            if isinstance(getattr(module, "scaling", None), dict):
                module.scaling[name] *= scale

    def resume():
        return calibrate(wan, "wan", tmp_path / "lora.safetensors", prompts=PROMPTS[:1])

    with_lora(wan)
    assert steps_run(wan, resume) == 1 + 8
    wan.transformer.delete_adapters("style")
    for other in (lambda: with_lora(wan, scale=0.5), lambda: with_lora(wan, seed=6), lambda: None):
        other()
        with pytest.raises(calibatt.Mismatch, match="lora.safetensors.profile"):
            resume()
        if getattr(wan.transformer, "peft_config", None):
            wan.transformer.delete_adapters("style")
    with_lora(wan, name="another_name")
    assert steps_run(wan, resume) == 1  # the same again
    calibatt.apply(wan, tmp_path / "lora.safetensors", check_weights=True)
    assert calibatt.summary(wan).weights == {"transformer": "the same as in memory when the plan was measured"}
    calibatt.restore(wan)
    wan.transformer.set_adapters("another_name", 0.7)
    calibatt.apply(wan, tmp_path / "lora.safetensors")
    assert calibatt.summary(wan).weights["transformer"].startswith("not compared")
    calibatt.restore(wan)
    wan.transformer.delete_adapters("another_name")
    wan.transformer.blocks[3].attn1.to_out[0].weight.mul_(1.2)
    with pytest.raises(calibatt.Mismatch, match="fingerprint values1:.*fingerprint not known"):
        calibrate(wan, "wan", tmp_path / "p.safetensors", profile=copied_profile(plans, tmp_path / "profile"))
    with pytest.raises(calibatt.Mismatch, match="lora.safetensors.profile"):
        resume()


def test_another_text_encoder_is_another_calibration(pipe, model, plans, tmp_path):
    profile = copied_profile(plans, tmp_path / "profile", model)
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder)
    steps_run(pipe, lambda: calibrate(pipe, model, tmp_path / "p.safetensors", profile=profile))  # a copy is the same
    pipe.text_encoder.encoder.block[1].layer[0].SelfAttention.q.weight.mul_(1.2)
    with pytest.raises(calibatt.Mismatch, match="conditions = .* has weights of text_encoder"):
        calibrate(pipe, model, tmp_path / "p.safetensors", profile=profile)


def test_steps_and_layers_that_are_left_out_are_told_at_once(wan, tmp_path):
    def calibrated():
        with pytest.raises(calibatt.Unsupported, match="cache") as raised:
            calibrate(wan, "wan", tmp_path / "plan.safetensors")
        return raised

    wan.transformer._is_cached = True  # as cache-dit says it
    assert steps_run(wan, lambda: calibrated().match("cache_dit.disable_cache")) == 0
    del wan.transformer._is_cached
    block, calls = wan.transformer.blocks[2], []
    forward = block.forward

    def sometimes(hidden_states, *arguments, **named):
        calls.append(1)
        return hidden_states if len(calls) == 4 else forward(hidden_states, *arguments, **named)

    block.forward = sometimes
    assert steps_run(wan, lambda: calibrated().match("7 of 8 self-attentions")) <= 6
    block.forward = forward
    whole, steps = wan.transformer.forward, []

    def seldom(*arguments, **named):
        steps.append(whole(*arguments, **named) if len(steps) not in (4, 5) else steps[-1])
        return steps[-1]

    wan.transformer.forward = seldom
    assert steps_run(wan, lambda: calibrated().match("step 2 was left out")) <= 8
    assert not list((tmp_path / "plan.safetensors.profile").glob("*.safetensors"))


def test_compiled_and_offloaded_pipes_are_calibrated(loaded, plans, tmp_path):
    import accelerate

    for number, prepare in enumerate([lambda pipe: pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager"),
                                      lambda pipe: accelerate.cpu_offload(pipe.transformer, "cpu")]):  # fmt: skip
        pipe = copied(loaded["wan"])
        prepare(pipe)
        plan = calibrate(pipe, "wan", tmp_path / f"{number}.safetensors")
        same, total = agreement(plan.path, plans["wan"])
        assert same > 0.97 * total


def test_prompts_may_be_anything_that_lists_texts(wan, plans, tmp_path):
    profile = copied_profile(plans, tmp_path / "profile")
    for prompts in (tuple(PROMPTS), iter(PROMPTS), np.array(PROMPTS)):
        assert steps_run(wan, lambda: calibrate(wan, "wan", tmp_path / "p.safetensors", prompts=prompts, profile=profile)) == 1  # noqa: B023


def test_what_cannot_be_calibrated_is_refused_by_name(wan, plans, tmp_path):
    output = tmp_path / "plan.safetensors"
    for more, message in [
        (dict(prompts="one text"), "list of texts"),
        (dict(prompts=[]), "list of texts"),
        (dict(generator=torch.Generator()), "give seed"),
        (dict(output_type="np"), "output_type"),
        (dict(nonsense=3), "nonsense is no argument of WanPipeline"),
        (dict(settings={"nonsense": 3}), "nonsense"),
        (dict(settings={"token_order": "spiral"}), "spiral"),
        (dict(density=7), "7"),
        (dict(prompts=["a\0b"]), "NUL"),  # of which C would read "a"
        (dict(seed=1.5), "seed is 1.5"),
        (dict(seed=2**64), "seed is 18446744073709551616"),  # of which C would read 0
        (dict(seed=-1), "seed is -1"),
        (dict(prompt_range=(0, 0)), "prompt_range is"),  # which is all of them in C
        (dict(prompt_range=3), "prompt_range is 3"),
        (dict(settings=3), "settings is 3"),
        (dict(settings={3: 3}), "3 is no name"),
        (dict(settings={"density": 0.4}), "given twice"),
    ]:
        with pytest.raises(calibatt.UsageError, match=message):
            calibrate(wan, "wan", output, **more)
    calibatt.apply(wan, plans["wan"])
    with pytest.raises(calibatt.UsageError, match="restore"):
        calibrate(wan, "wan", output)
    calibatt.restore(wan)
    shutil.copytree(str(plans["wan"]) + ".profile", tmp_path / "other")
    with pytest.raises(calibatt.Mismatch, match="guidance_scale"):
        calibrate(wan, "wan", output, profile=tmp_path / "other", guidance_scale=2.0)
    assert not output.exists()
