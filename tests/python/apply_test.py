"""Plans on pipes: what they compute, what they leave behind, what they refuse."""

import copy
import gc
import os
import threading
import weakref

import diffusers
import numpy as np
import pytest
import torch
from conftest import CALLS, PROMPT, ROOT, add_lora, copied, flags, latents_of, relative, run_program, with_said
from PIL import Image

import calibatt
from calibatt import _apply

# float32 sums in another order (1e-6 of an attention's output), through 4 steps with guidance of a small model; the order of tokens
# wrong, or one block left out, is 1e-1.
F32_TOLERANCE = 1e-4


@pytest.fixture(scope="session")
def everything(plans, tmp_path_factory):
    """Plans that keep every block."""
    folder = tmp_path_factory.mktemp("everything")
    return {name: calibatt.compile(str(path) + ".profile", folder / f"{name}.safetensors", density=1.0) for name, path in plans.items()}


def test_restored_pipe_is_the_old_one_bit_for_bit(pipe, model, plans):
    dense = latents_of(pipe, CALLS[model])
    before = {name: (dict(module.__dict__.get("_forward_hooks")), dict(module._forward_pre_hooks)) for name, module in pipe.transformer.named_modules()}
    processors = [block.attn1.processor for block in blocks_of(pipe)]
    assert calibatt.apply(pipe, plans[model]) is pipe
    planned = latents_of(pipe, CALLS[model])
    assert 1e-3 < relative(planned, dense) < 2
    with calibatt.disabled(pipe):
        assert torch.equal(latents_of(pipe, CALLS[model]), dense)
    assert torch.equal(latents_of(pipe, CALLS[model]), planned)
    assert calibatt.restore(pipe) is pipe
    assert torch.equal(latents_of(pipe, CALLS[model]), dense)
    assert [block.attn1.processor for block in blocks_of(pipe)] == processors
    assert "cache_context" not in pipe.transformer.__dict__
    after = {name: (dict(module._forward_hooks), dict(module._forward_pre_hooks)) for name, module in pipe.transformer.named_modules()}
    assert after == before
    calibatt.restore(pipe)  # does nothing
    with pytest.raises(calibatt.UsageError, match="calibatt.apply"):
        calibatt.summary(pipe)


def blocks_of(pipe):
    return list(getattr(pipe.transformer, "blocks", None) or pipe.transformer.transformer_blocks)


def test_plan_that_keeps_everything_is_dense(pipe, model, everything):
    assert everything[model].density == pytest.approx(1, abs=1e-9)
    dense = latents_of(pipe, CALLS[model])
    calibatt.apply(pipe, everything[model])
    assert relative(latents_of(pipe, CALLS[model]), dense) < F32_TOLERANCE


def test_low_precision_errs_as_torch_does(pipe, model, everything):
    """In bfloat16 against float32: at most 1.1 times the error of torch's own attention, over a few inputs."""
    call = {**CALLS[model], "num_inference_steps": 2}
    exact = [latents_of(pipe, call, seed) for seed in range(4)]
    pipe.text_encoder = copy.deepcopy(pipe.text_encoder).bfloat16()
    pipe.transformer.bfloat16()

    def error():
        return sum(relative(latents_of(pipe, call, seed), exact[seed]) for seed in range(4))

    of_torch = error()
    with pytest.warns(calibatt.CalibattWarning, match="2"):  # of the other number of steps
        calibatt.apply(pipe, everything[model])
        assert error() <= 1.1 * of_torch


def test_video_is_the_command_lines(pipe, model, plans, tmp_path):
    """The same plan, prompt and seed give the same frames, but for float32 sums in another order (and 8 bits)."""
    calibatt.apply(pipe, plans[model])
    frames = pipe(prompt=PROMPT, generator=torch.Generator().manual_seed(3), output_type="np", **CALLS[model]).frames[0]
    run_program("generate", "-m", ROOT / f"models/tiny-{model}", "-p", PROMPT, "--plan", plans[model], "-s", 3, "--dtype", "fp32", "-o", tmp_path / "f.png",
                *flags(CALLS[model]))  # fmt: skip
    expected = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.glob("f_*.png"))])
    assert expected.shape == frames.shape
    error = np.mean((np.round(frames * 255) - expected) ** 2)
    assert 10 * np.log10(255**2 / max(error, 1e-9)) >= 60
    assert calibatt.summary(pipe).weights == {"transformer": "the same"}


def test_summary_tells_what_ran(pipe, model, plans):
    calibatt.apply(pipe, plans[model])
    assert "no attention ran yet" in str(calibatt.summary(pipe))
    call = CALLS[model]
    latents_of(pipe, call)
    summary = calibatt.summary(pipe)
    assert summary.calls == 2 * call["num_inference_steps"] * len(blocks_of(pipe)) and summary.dense_fallback_calls == 0
    assert summary.plan == str(plans[model]) and summary.run.video == (call["num_frames"], call["height"], call["width"])
    tolerance = 1e-9 if model == "wan" else 0.2  # Mochi's text is always computed
    assert summary.density_of_run == pytest.approx(summary.density, abs=tolerance)
    sessions = dict(calibatt._apply.runtime_of(pipe).sessions)
    latents_of(pipe, call)
    again = calibatt.summary(pipe)
    assert again.calls == summary.calls and again.density_of_run == pytest.approx(summary.density_of_run)
    assert calibatt._apply.runtime_of(pipe).sessions == sessions  # which serve runs that are alike
    assert "weights of transformer: the same" in str(summary)


def test_steps_in_8_bits_are_said_and_not_done(pipe, model, plans, tmp_path):
    calibatt.apply(pipe, plans[model])
    expected = latents_of(pipe, CALLS[model])
    assert "8 bits" not in str(calibatt.summary(pipe)) and calibatt.Plan(plans[model]).eight_bits == []
    steps = CALLS[model]["num_inference_steps"]
    planned = ["none"] + (len(calibatt.Plan(plans[model]).sigmas) - 1) * ["attention+layers"]
    plan = calibatt.Plan(with_said(plans[model], tmp_path / "bits.safetensors", eight_bits=planned))
    assert plan.eight_bits == planned
    calibatt.apply(pipe, plan)
    assert torch.equal(latents_of(pipe, CALLS[model]), expected)
    assert f"8 bits: the plan has them in {steps - 1} steps; in a pipe all is computed in the model's own types" in str(calibatt.summary(pipe))


def test_prompts_of_a_batch_are_each_their_own(pipe, model, plans):
    """Step by step, from the same latents. Torch rounds products otherwise in another batch (1e-7 of the latents; attention gives equal bits for equal
    inputs), and a run with masks may enlarge that some hundred times until its end, as it does any change of its noise. So each step is compared by
    itself, which enlarges it to 4e-6 at most; with the texts of the two exchanged it is 8e-3.
    """
    calibatt.apply(pipe, plans[model])
    prompts = [PROMPT, "a star"]
    noise = [torch.randn(latents_of(pipe, CALLS[model]).shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]

    def run(prompt, noise, after_step):
        pipe(prompt=prompt, latents=noise, output_type="latent", callback_on_step_end=after_step, **CALLS[model])

    alone = [[], []]
    for index, prompt in enumerate(prompts):
        run(prompt, noise[index], lambda _, step, time, tensors: alone[index].append(tensors["latents"].clone()) or {})
    steps = []

    def compare(_, step, time, tensors):
        steps.append(step)
        for index in range(len(prompts)):
            assert relative(tensors["latents"][index : index + 1], alone[index][step]) < F32_TOLERANCE
        return {"latents": torch.cat([of_prompt[step] for of_prompt in alone])}

    run(prompts, torch.cat(noise), compare)
    assert len(steps) == len(alone[0]) == CALLS[model]["num_inference_steps"]


def test_without_guidance(pipe, model, plans, everything):
    call = {**CALLS[model], "guidance_scale": 1.0}
    dense = latents_of(pipe, call)
    with pytest.warns(calibatt.CalibattWarning, match="guidance"):
        calibatt.apply(pipe, everything[model])
        assert relative(latents_of(pipe, call), dense) < F32_TOLERANCE
    assert calibatt.summary(pipe).calls == call["num_inference_steps"] * len(blocks_of(pipe))


def test_other_numbers_of_steps_use_the_nearest(wan, plans):
    calibatt.apply(wan, plans["wan"])
    with pytest.warns(calibatt.CalibattWarning, match="4 steps"):
        latents_of(wan, {**CALLS["wan"], "num_inference_steps": 7})
    assert "7 steps" in calibatt.summary(wan).reports[0]["step_mapping"]
    wan.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    with pytest.warns(calibatt.CalibattWarning, match="euler"):
        latents_of(wan, {**CALLS["wan"], "num_inference_steps": 3})
    wan.scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    with pytest.raises(calibatt.Unsupported, match="FlowMatchHeunDiscreteScheduler"):
        latents_of(wan, CALLS["wan"])


def test_another_size_is_refused_or_dense(pipe, model, plans):
    turned = {**CALLS[model], "height": CALLS[model]["width"], "width": CALLS[model]["height"]}  # as many tokens
    dense = latents_of(pipe, turned)
    calibatt.apply(pipe, plans[model])
    with pytest.raises(calibatt.Mismatch, match="112×96"):
        latents_of(pipe, turned)
    latents_of(pipe, CALLS[model])  # works again
    calibatt.apply(pipe, plans[model], on_mismatch="dense")
    with pytest.warns(calibatt.CalibattWarning, match="dense"):
        assert relative(latents_of(pipe, turned), dense) < F32_TOLERANCE
    summary = calibatt.summary(pipe)
    assert summary.dense_fallback_calls == summary.calls > 0 and summary.density_of_run == 1


def test_other_weights_are_refused_warned_of_or_not_compared(loaded, plans, tmp_path):
    pipe = copied(loaded["wan"])
    pipe.transformer.proj_out.weight[0, 0] += 1
    pipe.transformer.save_pretrained(tmp_path / "transformer")
    pipe.transformer = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "transformer")
    with pytest.raises(calibatt.Mismatch, match="values1:"):
        calibatt.apply(pipe, plans["wan"])
    calibatt.apply(pipe, plans["wan"], on_mismatch="warn")
    with pytest.warns(calibatt.CalibattWarning, match="other weights"):
        latents_of(pipe, CALLS["wan"])
    assert calibatt.summary(pipe).weights["transformer"].startswith("other")
    calibatt.apply(pipe, plans["wan"], check_weights=False)
    assert calibatt.summary(pipe).weights == {"transformer": "not compared: not asked for"}
    pipe.transformer.register_to_config(_name_or_path=None)
    pipe.register_to_config(_name_or_path=None)
    calibatt.apply(pipe, plans["wan"])
    assert "not known" in calibatt.summary(pipe).weights["transformer"]
    with pytest.raises(calibatt.Unsupported, match="check_weights"):
        calibatt.apply(pipe, plans["wan"], check_weights=True)


def test_weights_that_were_changed_in_memory_are_not_compared(loaded, plans):
    """What users do: cast, fuse a LoRA, load other values by hand, quantise."""
    for change, same in (
        (lambda t: t.bfloat16(), True),
        (lambda t: t.half().float(), True),
        (lambda t: t.bfloat16().half(), True),
        (lambda t: t.blocks[5].attn2.to_k.weight.add_(1e-3), False),
        (lambda t: t.load_state_dict({name: value * 1.01 for name, value in t.state_dict().items()}), False),
        (lambda t: t.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32), True),
    ):
        pipe = copied(loaded["wan"])
        change(pipe.transformer)
        calibatt.apply(pipe, plans["wan"])
        state = calibatt.summary(pipe).weights["transformer"]
        assert state == "the same" if same else "were changed in memory" in state
        calibatt.restore(pipe)
        if not same:
            with pytest.raises(calibatt.Unsupported, match="changed in memory"):
                calibatt.apply(pipe, plans["wan"], check_weights=True)
    pipe = copied(loaded["wan"])
    add_lora(pipe)
    pipe.fuse_lora(components=["transformer"])
    pipe.transformer.unload_lora()
    pipe._merged_adapters = set()  # as where the transformer was fused before it was put into this pipe
    calibatt.apply(pipe, plans["wan"])
    assert "were changed in memory" in calibatt.summary(pipe).weights["transformer"]
    calibatt.restore(pipe)
    pipe.transformer.blocks[0].ffn.net[2].weight = torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.uint8), requires_grad=False)
    calibatt.apply(pipe, plans["wan"])
    assert calibatt.summary(pipe).weights == {"transformer": "not compared: they are quantised"}


def test_fingerprints_are_kept_until_files_change(loaded, plans, tmp_path, monkeypatch):
    from calibatt import _library, _weights

    loaded["wan"].transformer.save_pretrained(tmp_path)
    like = calibatt.Plan(plans["wan"]).transformers[0]["fingerprint"]
    assert _weights.fingerprint(tmp_path) == like  # as calibrate asks
    asked = []
    real = _library.loaded().fingerprint
    monkeypatch.setattr(_library.loaded(), "fingerprint", lambda *a: (asked.append(a), real(*a)))
    assert _weights.fingerprint(tmp_path, like) == like and not asked
    file = next(tmp_path.glob("*.safetensors"))
    os.utime(file, ns=(1, 1))
    assert _weights.fingerprint(tmp_path, like) == like and len(asked) == 1


def test_what_cannot_be_combined_is_refused_by_name(pipe, model, plans):
    class Foreign(type(blocks_of(pipe)[0].attn1.processor)):
        pass

    original = blocks_of(pipe)[2].attn1.processor
    blocks_of(pipe)[2].attn1.processor = Foreign()
    with pytest.raises(calibatt.Unsupported, match="layer 2 .*Foreign"):
        calibatt.apply(pipe, plans[model])
    blocks_of(pipe)[2].attn1.processor = original
    pipe.transformer._parallel_config = object()
    with pytest.raises(calibatt.Unsupported, match="several devices"):
        calibatt.apply(pipe, plans[model])
    pipe.transformer._parallel_config = None
    with pytest.raises(calibatt.UsageError, match="'never'"):
        calibatt.apply(pipe, plans[model], on_mismatch="never")
    with pytest.raises(calibatt.UsageError, match="give one of 'refuse', 'warn', 'dense'"):
        calibatt.apply(pipe, plans[model], on_mismatch=None)
    calibatt.restore(calibatt.apply(pipe, plans[model], on_mismatch="error"))  # what "refuse" was called
    other = {"wan": "mochi", "mochi": "wan"}[model]
    with pytest.raises(calibatt.Mismatch):
        calibatt.apply(pipe, plans[other])
    with pytest.raises(calibatt.Unsupported, match="WanPipeline and MochiPipeline"):
        calibatt.apply(object(), plans[model])
    calibatt.apply(pipe, plans[model])
    blocks_of(pipe)[0].attn1.processor._parallel_config = object()
    with pytest.raises(calibatt.Unsupported, match="parallelism"):
        latents_of(pipe, CALLS[model])
    blocks_of(pipe)[0].attn1.processor._parallel_config = None
    calibatt.apply(pipe, plans[model])
    with pytest.raises(calibatt.Unsupported, match="float64"):
        pipe.text_encoder = copy.deepcopy(pipe.text_encoder).double()
        pipe.transformer.double()
        latents_of(pipe, CALLS[model])


def test_steps_have_to_be_known(wan, plans):
    calibatt.apply(wan, plans["wan"])
    latents = torch.randn(1, 16, 5, 12, 14)
    wan.scheduler.set_timesteps(4)
    inputs = dict(hidden_states=latents, timestep=torch.tensor([900.0]), encoder_hidden_states=torch.randn(1, 512, 256), return_dict=False)
    with pytest.raises(calibatt.Unsupported, match="cache_context"):
        wan.transformer(**inputs)
    with wan.transformer.cache_context("cond", step_index=1):
        assert torch.isfinite(wan.transformer(**inputs)[0]).all()
    with wan.transformer.cache_context("cond", step_index=4), pytest.raises(calibatt.Mismatch, match="step 4"):
        wan.transformer(**inputs)
    with pytest.raises(calibatt.Unsupported, match="mask"):
        wan.transformer.blocks[0].attn1(torch.randn(1, 210, 256), attention_mask=torch.ones(1, 210))


def sibling(pipe):
    """Another pipe of the same transformer, with a scheduler of its own."""
    other = type(pipe)(**{**pipe.components, "scheduler": type(pipe.scheduler).from_config(pipe.scheduler.config)})
    other.set_progress_bar_config(disable=True)
    return other


def test_pipes_of_one_transformer_never_mix_their_steps(pipe, model, plans):
    calibatt.apply(pipe, plans[model])
    planned = latents_of(pipe, CALLS[model])
    other = sibling(pipe)
    with pytest.raises(calibatt.Mismatch, match="this is (step|a run of 3 steps)"):
        latents_of(other, {**CALLS[model], "num_inference_steps": CALLS[model]["num_inference_steps"] - 1})
    assert torch.equal(latents_of(pipe, CALLS[model]), planned)
    calibatt.apply(other, plans[model])
    assert torch.equal(latents_of(other, CALLS[model]), planned)


def test_a_pipe_that_never_ran_says_that_another_does(pipe, model, plans):
    calibatt.apply(pipe, plans[model])
    other = sibling(pipe)
    with pytest.raises(calibatt.Mismatch, match="another pipe with a scheduler of its own .*calibatt.apply"):
        latents_of(other, CALLS[model])
    calibatt.apply(other, plans[model])
    planned = latents_of(other, CALLS[model])
    if model == "wan":  # whose pipe tells how many steps there are
        pipe.scheduler.set_timesteps(6)
        calibatt.apply(pipe, plans[model])
        with pytest.raises(calibatt.Mismatch, match="a run of 4 steps, .* is set to 6: another pipe"):
            latents_of(other, CALLS[model])
    calibatt.restore(pipe)
    calibatt.apply(other, plans[model])
    assert torch.equal(latents_of(other, CALLS[model]), planned)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("steps", [0, 2])
def test_a_pipe_that_was_stopped_says_that_another_runs(pipe, model, plans, steps):
    """Its scheduler stays at the step where it was, and Mochi's pipe tells its transformer none."""
    left = [steps * (1 if model == "mochi" else 2)]  # forwards

    def stop(*_):
        if not left[0]:
            raise Stopped
        left[0] -= 1

    calibatt.apply(pipe, plans[model])
    hook = pipe.transformer.register_forward_pre_hook(stop)
    with pytest.raises(Stopped):
        latents_of(pipe, CALLS[model])
    hook.remove()
    with pytest.raises(calibatt.Mismatch, match="this is .* is at step .* another pipe"):
        latents_of(sibling(pipe), CALLS[model])
    latents_of(pipe, CALLS[model])


def test_attention_backends_that_are_set_meanwhile_stay(pipe, model, plans):
    """They are of diffusers' own processors, which run where the plan is switched off or taken away."""
    from diffusers.models.attention_dispatch import AttentionBackendName

    originals = [block.attn1.processor for block in blocks_of(pipe)]
    calibatt.apply(pipe, plans[model])
    pipe.transformer.set_attention_backend("native")
    assert all(original._attention_backend == AttentionBackendName.NATIVE for original in originals)
    assert all(block.attn1.processor._attention_backend == AttentionBackendName.NATIVE for block in blocks_of(pipe))
    calibatt.restore(pipe)
    assert [block.attn1.processor for block in blocks_of(pipe)] == originals
    assert all(original._attention_backend == AttentionBackendName.NATIVE for original in originals)
    calibatt.apply(pipe, plans[model])
    pipe.transformer.reset_attention_backend()
    assert all(original._attention_backend is None for original in originals)


def test_threads_that_share_a_transformer_are_refused(pipe, model, plans):
    calibatt.apply(pipe, plans[model])
    planned = latents_of(pipe, CALLS[model])
    raised = []

    def run_beside():
        try:
            latents_of(sibling(pipe), CALLS[model])
        except calibatt.Error as error:
            raised.append(error)

    def start_other(*_):
        if not raised:
            thread = threading.Thread(target=run_beside)
            thread.start()
            thread.join()

    hook = pipe.transformer.register_forward_pre_hook(start_other)
    assert torch.equal(latents_of(pipe, CALLS[model]), planned)
    hook.remove()
    assert isinstance(raised[0], calibatt.Unsupported) and "two threads" in str(raised[0])
    assert torch.equal(latents_of(pipe, CALLS[model]), planned)


def test_copies_are_refused(pipe, model, plans):
    calibatt.apply(pipe, plans[model])
    latents_of(pipe, CALLS[model])
    for part in (pipe.transformer, blocks_of(pipe)[0]):
        with pytest.raises(calibatt.Unsupported, match="calibatt.restore"):
            copy.deepcopy(part)
    calibatt.restore(pipe)
    copy.deepcopy(pipe.transformer)


def test_a_pipe_that_is_gone_leaves_nothing(loaded, plans):
    pipe = copied(loaded["wan"])
    calibatt.apply(pipe, plans["wan"])
    latents_of(pipe, CALLS["wan"])
    gone = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert gone() is None


def test_memory_comes_back_with_the_pipe(pipe, model, plans):
    """As it does without calibatt: at once, and not when Python next looks for cycles."""
    gc.collect()
    gc.disable()
    try:
        calibatt.apply(pipe, plans[model])
        gone = weakref.ref(pipe.transformer)
        other, pipe.transformer = pipe.transformer, None
        del other
        assert gone() is None
    finally:
        gc.enable()


def test_sessions_end_with_the_pipe(loaded, model, plans):
    pipe = copied(loaded[model])
    calibatt.apply(pipe, plans[model])
    latents_of(pipe, CALLS[model])
    transformer, sessions = pipe.transformer, list(_apply.runtime_of(pipe).sessions.values())
    assert all(session._handle for session in sessions)
    del pipe
    assert not any(session._handle for session in sessions)
    assert transformer is not None
