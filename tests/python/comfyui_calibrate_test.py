"""The Calibrate node on a stand-in of ComfyUI: what it hands to calibatt_record, and what becomes of runs that end otherwise."""

import functools
import types

import comfyui_host as host
import pytest
import torch

import calibatt

SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.0])
NUM_TOKENS = 24


class RecordingSession:
    """Dense attention; keeps what it was given."""

    def __init__(self):
        self.calls, self.forwards = [], []
        self.order = torch.randperm(NUM_TOKENS, generator=torch.Generator().manual_seed(3))

    def token_order(self, num_tokens):
        return self.order

    def begin_forward(self, step, branch):
        self.forwards.append((step, branch))

    def wants_output(self):
        return self.forwards[-1][0] != 1  # as where a step is not recorded

    def attend(self, layer, q, k, v, out, output=None):
        out.copy_(torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2))
        gain = output.squared_gain() if output is not None and output.squared_gain else None
        self.calls.append(types.SimpleNamespace(layer=layer, batch=q.shape[0], out=out.clone(), output=output, gain=gain))


class Library:
    """calibatt_record and calibatt_compile_prompts, by what they promise."""

    def __init__(self):
        self.measured, self.sessions, self.asked, self.compiled = [], [], [], []

    def calibration(self, facts, device, prompts, precision, settings, conditions):
        asked = types.SimpleNamespace(facts=facts, prompts=prompts, precision=precision, settings=settings, conditions=conditions)
        asked.record, asked.compile = functools.partial(self.record, asked), functools.partial(self.compile, asked)
        return asked

    def record(self, asked, profile, run_prompt):
        self.asked.append(asked)
        prompts = asked.prompts
        missing = [index for index, prompt in enumerate(prompts) if prompt not in self.measured]
        for index in missing:
            self.sessions.append(RecordingSession())
            run_prompt(index, self.sessions[-1])
            self.measured.append(prompts[index])
        return {"prompts_recorded": len(missing)}

    def compile(self, asked, profile, output, progress):
        assert all(prompt in self.measured for prompt in asked.prompts)
        self.compiled.append((profile, output, asked.settings))
        return types.SimpleNamespace(describe=lambda: "density .375")


@pytest.fixture
def library(tmp_path, monkeypatch):
    torch.manual_seed(0)
    host.install(tmp_path / "models", monkeypatch)
    import calibatt_comfyui.calibration as module

    double = Library()
    monkeypatch.setattr(module, "Calibration", double.calibration)
    double.calibrate = lambda patcher, told: module.calibrate(patcher, tmp_path / "wan.safetensors", 0.375, {"token-order": "raster"}, told.append)
    return double


def sample(patcher, together=False, prompt=0, sigmas=SIGMAS, batch=1, **options):
    random = torch.Generator().manual_seed(1)
    noise, negative = torch.randn((batch, 4, 3, 8, 4), generator=random), torch.randn(1, 5, 32, generator=random)
    positive = torch.randn(1, 5, 32, generator=random.manual_seed(100 + prompt))
    with torch.no_grad():
        return host.Guider(patcher, positive, negative, together=together, **options).sample(noise, sigmas)


class Reference:
    """What the blocks of a dense run have, by hooks of the test's own."""

    def __init__(self, patcher, attention, projection):
        self.residuals, self.modulations = [], []
        self.weights = [getattr(getattr(block, attention), projection).weight for block in patcher.model.diffusion_model.blocks]
        self.handles = [block.register_forward_pre_hook(self.enter, with_kwargs=True) for block in patcher.model.diffusion_model.blocks]

    def enter(self, _block, args, kwargs):
        self.residuals.append(args[0])
        self.modulations.append(kwargs.get("e", args[1] if len(args) > 1 else None))

    def remove(self):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("together", [False, True])
def test_the_conditional_sample_is_measured(library, together):
    patcher, told = host.ModelPatcher(host.BaseModel(host.WanModel())), []
    reference = Reference(patcher, "self_attn", "o")
    dense = sample(patcher, together)
    reference.remove()
    result = sample(library.calibrate(patcher, told), together)
    assert float((result - dense).abs().max()) < 5e-5
    (session,) = library.sessions
    assert session.forwards == [(0, 0), (1, 0), (2, 0)]
    assert [(call.layer, call.batch) for call in session.calls] == [(layer, 1) for _ in range(3) for layer in range(3)]
    for number, call in enumerate(session.calls):
        step, layer = divmod(number, 3)
        if step == 1:
            assert call.output is None
            continue
        # Forwards: the negative branch, then the positive one, or both in one batch, the positive one last.
        forward = step if together else 2 * step + 1
        block = patcher.model.diffusion_model.blocks[layer]
        residual, e = (each[forward * 3 + layer][-1] for each in (reference.residuals, reference.modulations))
        assert torch.allclose(call.output.weight, reference.weights[layer], atol=1e-6) and call.output.weight.is_contiguous()
        assert torch.allclose(call.output.gate, (block.modulation[0] + e[0])[2], atol=1e-6)
        assert call.output.residual_square_sum == pytest.approx(float(residual.square().sum()), rel=1e-4)
        assert call.gain is None
    asked = library.asked[0]
    assert (asked.precision, asked.settings, asked.facts.fingerprints) == ("f32", {"density": 0.375, "token-order": "raster"}, (None,))
    assert library.compiled[0][2]["density"] == 0.375
    assert told == ["this run measured; wan.safetensors is made of 1 run\ndensity .375"]


def test_what_a_norm_behind_the_projection_does(library):
    patcher = host.ModelPatcher(host.BaseModel(host.AsymmDiTJoint()))
    reference = Reference(patcher, "attn", "proj_x")
    dense = sample(patcher)
    reference.remove()
    assert float((sample(library.calibrate(patcher, [])) - dense).abs().max()) < 5e-5
    call = library.sessions[0].calls[1]  # step 0, layer 1
    block = patcher.model.diffusion_model.blocks[1]
    projected = block.attn.proj_x(call.out[:, :NUM_TOKENS].flatten(2))  # the video's tokens, not the text behind
    assert call.gain == pytest.approx(1 / (float(projected.square().mean()) + 1e-6), rel=1e-5)
    modulation = block.mod_x(torch.nn.functional.silu(reference.modulations[2 + 1]))
    assert torch.allclose(call.output.gate, modulation.chunk(4, 1)[1][0].tanh(), atol=1e-6)
    assert call.output.residual_square_sum == pytest.approx(float(reference.residuals[2 + 1].square().sum()), rel=1e-4)


def test_further_runs_are_added_and_known_ones_are_not_measured_again(library, tmp_path):
    patcher, told = host.ModelPatcher(host.BaseModel(host.WanModel())), []
    clone = library.calibrate(patcher, told)
    first, _ = sample(clone), sample(clone, prompt=1)
    again = sample(library.calibrate(patcher, told))  # another node, after a restart
    assert len(library.sessions) == 2 and len(library.asked[2].prompts) == 2
    assert torch.allclose(first, again, atol=5e-5)
    assert "was measured before" in told[2] and "2 runs" in told[1] and "2 runs" in told[2]

    del library.measured[0]  # its file was deleted: that run is not this one and cannot be had
    sample(clone, prompt=1)
    assert [prompt == library.measured[0] for prompt in library.asked[-1].prompts] == [True]


def test_loras_are_told_apart(library):
    """By what they are and how strong, not by what they are called."""
    patcher = host.ModelPatcher(host.BaseModel(host.WanModel()))
    adapter = lambda scale: types.SimpleNamespace(weights=(torch.ones(4, 8) * scale, torch.ones(8, 4), 4.0, None))  # noqa: E731

    def conditions(**patches):
        patcher.patches = {key.replace("_", "."): value for key, value in patches.items()}
        sample(library.calibrate(patcher, []))
        return library.asked[-1].conditions

    seen = [
        conditions(),
        conditions(q_weight=[(1.0, adapter(1), 1.0, None, None)]),
        conditions(q_weight=[(0.5, adapter(1), 1.0, None, None)]),
        conditions(q_weight=[(1.0, adapter(2), 1.0, None, None)]),
        conditions(k_weight=[(1.0, adapter(1), 1.0, None, None)]),
        conditions(q_weight=[(1.0, ("diff", (torch.ones(8, 8),)), 1.0, None, None)]),
    ]
    assert seen[0] == "" and len(set(seen)) == len(seen)
    assert conditions(q_weight=[(1.0, adapter(1), 1.0, None, lambda x: x)]) == seen[1]


def test_a_run_that_ends_early_leaves_nothing(library, tmp_path):
    patcher = host.ModelPatcher(host.BaseModel(host.WanModel()))
    clone = library.calibrate(patcher, [])

    class Stop:
        def __mul__(self, other):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(clone, arguments={"denoise_mask": Stop()})
    assert library.measured == [] and library.compiled == [] and not (tmp_path / "wan.safetensors.profile").exists()
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in patcher.model.diffusion_model.modules())
    sample(clone)
    assert len(library.measured) == 1


def test_what_cannot_be_measured_is_refused_by_name(library):
    clone = library.calibrate(host.ModelPatcher(host.BaseModel(host.WanModel())), [])
    with pytest.raises(calibatt.Unsupported, match="more than once for step 0; calibrate with one that does not, such as euler"):
        sample(clone, repeat=2)
    with pytest.raises(calibatt.Unsupported, match="batch size 1"):
        sample(clone, batch=2)
    with pytest.raises(calibatt.Unsupported, match="frames have noise levels of their own"):
        sample(clone, arguments={"denoise_mask": torch.tensor([[0.0, 1.0, 1.0]])})
    assert library.measured == []


def test_folders_that_cannot_be_gone_on_with(library, tmp_path):
    clone = library.calibrate(host.ModelPatcher(host.BaseModel(host.WanModel())), [])
    folder = tmp_path / "wan.safetensors.profile"
    folder.mkdir()
    (folder / "prompt_0000.safetensors").touch()
    with pytest.raises(calibatt.Unsupported, match="not made in ComfyUI; give the plan another name"):
        sample(clone)
    (folder / "comfyui_prompts.json").write_text('[{"text": 1}]')
    with pytest.raises(calibatt.Unsupported, match="comfyui_prompts.json is damaged"):
        sample(clone)
    assert library.asked == [] and sorted(path.name for path in folder.iterdir()) == ["comfyui_prompts.json", "prompt_0000.safetensors"]
