"""python -m pytest tools/peers/tests"""

import types

import pytest
import torch

from tools.peers import steps
from tools.peers.caches import RULES, EasyCache, FewerSteps, MagCache, TeaCache
from tools.reuse_tradeoff import forward_cost

STEPS = 20


class FakeModel:
    """Predictions that turn slowly with the latents, each prompt's at its own speed; counts what is computed."""

    def __init__(self, speeds):
        self.speeds, self.steps, self.forwards = torch.tensor(speeds), STEPS, 0

    def branches(self, latents, step, reuse=False, rows=None):
        if reuse:
            return self.last
        speeds = (self.speeds if rows is None else self.speeds[rows])[:, None]
        self.forwards += 2 * len(latents)
        out = torch.sin(latents + speeds * step)
        self.last = [out, 0.5 * out]
        return self.last

    def run(self, rule, prompts=None):
        self.forwards, self.steps = 0, rule.steps or STEPS
        latents = torch.linspace(-1, 1, 12).repeat(len(self.speeds), 1)
        rule.begin(self)
        for step in range(self.steps):
            conditional, unconditional = rule.predict(self, latents, step)
            latents = latents - 0.05 * (2 * conditional - unconditional)
        return latents, self.forwards / len(self.speeds)


@pytest.fixture
def notes():
    generator = torch.Generator().manual_seed(1)
    time = torch.linspace(0, 1, STEPS)
    return {
        "embeddings": [torch.tensor([[1 + t * t, 2 - t]]) for t in time],
        "outputs": [1 + t**3 + 0.01 * torch.rand(3, 8, generator=generator) for t in time],
        "magnitudes": [1 + 0.3 * t * t + 0.001 * torch.rand(3, 9, generator=generator) for t in time],
    }


@pytest.mark.parametrize("kind", [TeaCache, MagCache])
@pytest.mark.parametrize("wanted", [13.33, 10, 6.67])
def test_schedules_have_the_wanted_steps_and_run_the_first_and_the_last(kind, wanted, notes):
    rule = kind()
    rule.measure(notes)
    rule.tune(None, wanted, None)
    assert abs(rule.skips.count(False) - wanted) <= 0.5
    assert not any(rule.skips[: rule.first_steps]) and not rule.skips[-1]
    model = FakeModel([0.01])
    assert model.run(rule)[1] == 2 * rule.skips.count(False), "what is skipped is not computed"


def test_easycache_decides_for_each_prompt_as_if_it_were_alone():
    speeds = [0.01, 0.3, 0.03]
    rule = EasyCache()
    rule.knob = 0.1
    together, _ = FakeModel(speeds).run(rule)
    alone = [FakeModel([speed]).run(rule) for speed in speeds]
    assert torch.equal(together, torch.cat([latents for latents, _ in alone]))
    assert FakeModel(speeds).run(rule)[1] == pytest.approx(sum(forwards for _, forwards in alone) / 3)
    assert alone[0][1] < alone[1][1], "what changes faster is computed more often"


def test_easycache_is_dense_without_a_threshold_and_tuned_to_what_is_wanted():
    model, dense = FakeModel([0.05, 0.1]), FakeModel([0.05, 0.1])
    rule = EasyCache()
    rule.knob = 0.0
    assert model.run(rule)[1] == 2 * STEPS
    assert torch.equal(model.run(rule)[0], dense.run(steps.Ours())[0])
    rule.tune(model, 12, None)
    assert abs(model.run(rule)[1] / 2 - 12) <= 1


def test_fewer_steps_are_whole_ones():
    rule = FewerSteps()
    rule.tune(None, 13.33, None)
    assert FakeModel([0.1]).run(rule)[1] == 26


def test_combinations_cost_what_is_asked_for(monkeypatch):
    monkeypatch.setattr(steps, "density_of", {"a": 0.812, "b": 0.56}.get)
    args = types.SimpleNamespace(speedups="2,3", masks=["none", "a", "b"], steps=STEPS, share=0.82)
    found = [(speedup, plan and str(plan), count) for speedup, plan, count in steps.combinations(args)]
    assert [each[:2] for each in found] == [(2, None), (2, "a"), (3, None)]
    for speedup, plan, count in found:
        assert count / STEPS * forward_cost({None: 1.0, "a": 0.812}[plan], 0.82) == pytest.approx(1 / speedup)


def test_the_dense_run_is_the_pipes():
    """Text, noise, guidance and steps are the pipe's own: else everything is measured against other videos."""
    pytest.importorskip("diffusers")
    model = steps.Model("cpu", torch.float32, 2, 5, 64, 2)
    model.pipe.set_progress_bar_config(disable=True)
    prompts = [("a red ball", 3), ("a blue star that moves", 4)]
    ours, forwards = model.run(None, prompts)
    theirs = model.pipe([text for text, _ in prompts], negative_prompt="", height=64, width=64, num_frames=5, num_inference_steps=2, output_type="latent",
                        guidance_scale=steps.GUIDANCE, generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in prompts]).frames  # fmt: skip
    assert forwards == 4
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_rule_can_be_tuned(notes):
    for kind in RULES.values():
        rule = kind()
        rule.measure(notes)
        rule.tune(FakeModel([0.05]), 10, None)
        assert rule.knob is not None
