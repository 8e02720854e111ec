"""Plans by which some steps run no forward, in the ComfyUI nodes, on the stand-in of ComfyUI."""

import comfyui_host as host
import pytest
import torch
from comfyui_test import MODELS, applied, inputs, nodes, sampling, sessions  # noqa: F401 - fixtures

import calibatt
from calibatt._session import StepRule

SIGMAS = torch.tensor([1.0, 0.95, 0.85, 0.7, 0.5, 0.25, 0.0])
AHEAD = (0.85 - 0.95) / (0.95 - 1.0)
RULES = [StepRule("forward"), StepRule("forward"), StepRule("linear", (1, 0), (1 + AHEAD, -AHEAD)), StepRule("forward"),
         StepRule("residual", (3,), (1.0,), 1.0), StepRule("hold", (3,), (1.0,))]  # fmt: skip


def run(patcher, sigmas=SIGMAS, **options):
    noise, positive, negative = inputs()
    with torch.no_grad():
        return host.Guider(patcher, positive, negative, **options).sample(noise, sigmas)


def by_hand(patcher, cfg):
    """Euler's method with guided predictions v = noise − data, by decision 6's formulas. Gives the latents."""
    noise, positive, negative = inputs()
    model, x, kept = patcher.model.diffusion_model, noise, []

    def flow(x, sigma, text):
        return model(x, sigma.repeat(len(x)) * 1000, context=text, transformer_options={})

    for step, (sigma, following) in enumerate(zip(SIGMAS, SIGMAS[1:])):
        if step in (0, 1, 3):
            other = flow(x, sigma, negative)
            kept.insert(0, (other + cfg * (flow(x, sigma, positive) - other), x, sigma))
            v = kept[0][0]
        elif step == 2:
            v = kept[0][0] + (kept[0][0] - kept[1][0]) * (sigma - kept[0][2]) / (kept[0][2] - kept[1][2])
        else:
            v = kept[0][0] + (x - kept[0][1] if step == 4 else 0)
        x = x + (following - sigma) * v
    return x


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_predictions_are_those_of_the_guided_run(sampling, sessions, model, together):  # noqa: F811
    patcher, told = host.ModelPatcher(host.BaseModel(model())), []
    sessions.options = {"keep_all": True, "rules": RULES}
    forwards = []
    handle = patcher.model.diffusion_model.register_forward_pre_hook(lambda *_: forwards.append(0))
    made = run(applied(sampling, patcher, told=told).clone(), together=together)
    handle.remove()
    assert len(forwards) == 3 * (1 if together else 2)
    assert [step for step, _ in sessions.all[0].forwards] == sorted([0, 1, 3] * (1 if together else 2))
    with torch.no_grad():
        expected = by_hand(patcher, 5.0)
    dense = run(patcher)
    scale = float((expected - dense).abs().max())
    assert scale > 1e-2 and float((made - expected).abs().max()) < 1e-3 * scale
    assert "steps: 3 of 6 without a forward (1 hold, 1 linear, 1 residual)" in told[0]
    assert torch.equal(run(patcher), dense)


def test_each_run_begins_anew(sampling, sessions):  # noqa: F811
    patcher = host.ModelPatcher(host.BaseModel(host.WanModel()))
    sessions.options = {"rules": RULES}
    clone = applied(sampling, patcher)
    first = run(clone)
    assert torch.equal(run(clone), first)
    assert torch.equal(run(clone), first)


def test_what_asks_twice_or_leaves_out_steps_is_refused_by_name(sampling, sessions):  # noqa: F811
    patcher = host.ModelPatcher(host.BaseModel(host.WanModel()))
    sessions.options = {"rules": RULES}
    clone = applied(sampling, patcher)
    with pytest.raises(calibatt.Unsupported, match="more than once for step 0.*euler, uni_pc"):
        run(clone, repeat=2)
    cached = clone.clone()
    cached.add_wrapper_with_key("outer_sample", "easycache", lambda executor, *args, **kwargs: executor(*args, **kwargs))
    with pytest.raises(calibatt.Unsupported, match="the node EasyCache"):
        run(cached)
    sessions.options = {}
    assert torch.isfinite(run(cached)).all()  # a plan whose steps all run goes with it

    sessions.options = {"rules": RULES}
    skipping = clone.clone()
    skipping.wrappers["apply_model"] = {"skip": [SkipsStep(0.95)], **skipping.wrappers["apply_model"]}
    with pytest.raises(calibatt.Unsupported, match="step 2 .*made from step 1, which did not run"):
        run(skipping)
    assert torch.isfinite(run(clone)).all()


class SkipsStep:
    """A step cache of somebody's."""

    def __init__(self, sigma):
        self.sigma = sigma

    def __call__(self, executor, x, t, *args, **kwargs):
        return x if abs(float(t[0]) - self.sigma) < 1e-6 else executor(x, t, *args, **kwargs)
