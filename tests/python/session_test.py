"""Sessions of the C library against the same in torch: every step, layer and head of plans by the command line, with text and without."""

import copy
import gc
import os
import pickle

import pytest
import torch
from conftest import CALLS
from stand_in import StandInPlan, StandInSession

import calibatt
from calibatt import _library
from calibatt._session import RunFacts, Session


def facts_of(plan, **more):
    count = len(plan.transformers)
    facts = dict(grid=plan.grid, num_heads=plan.num_heads, head_dim=plan.head_dim, num_layers=plan.num_layers, sigmas=tuple(plan.sigmas),
                 transformer_names=("",) * count, fingerprints=(None,) * count)  # fmt: skip
    return RunFacts(**{**facts, **more})


def random_heads(plan, text, dtype, batch=1):
    tokens = plan.grid[0] * plan.grid[1] * plan.grid[2] + text
    return [torch.randn(batch, tokens, plan.num_heads, plan.head_dim).to(dtype) for _ in range(3)]


# float32: sums in another order. Low precision: each of a row's outputs is rounded once, and its weights before.
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("model, text", [("wan", 0), ("mochi", 0), ("mochi", 5), ("mochi", 19)])
def test_planned_attention_is_the_oracles(plans, model, text, dtype, tolerance):
    torch.manual_seed(1)
    plan = StandInPlan(plans[model])
    run = facts_of(plan)
    session, oracle = Session.open(calibatt.Plan(plans[model]), run, torch.device("cpu")), StandInSession(plan, run, "error")
    assert torch.equal(session.token_order(plan.read.num_tokens), oracle.token_order(plan.read.num_tokens))
    for step in range(len(plan.sigmas)):
        for each in (session, oracle):
            each.begin_forward(step, _library.CONDITIONAL)
        for layer in range(plan.num_layers):
            q, k, v = random_heads(plan, text, dtype)
            out, expected = torch.full_like(q, float("nan")), torch.empty_like(q)
            session.attend(layer, q, k, v, out)
            oracle.attend(layer, q, k, v, expected)
            assert (out.double() - expected.double()).norm() <= tolerance * expected.double().norm(), (step, layer)
    report = session.report()
    assert report["calls"] == len(plan.sigmas) * plan.num_layers
    if not text:
        assert report["density"] == pytest.approx(plan.density, abs=1e-9)


def test_strides_and_batches(plans):
    """q, k and v may be parts of one tensor, the output rows of a longer one."""
    plan = calibatt.Plan(plans["wan"])
    session = Session.open(plan, facts_of(plan), torch.device("cpu"))
    session.begin_forward(1, _library.CONDITIONAL)
    tokens = plan.grid[0] * plan.grid[1] * plan.grid[2]
    fused = torch.randn(2, tokens, 3, plan.num_heads, plan.head_dim)
    q, k, v = fused.unbind(2)
    wide = torch.full((2, tokens + 7, plan.num_heads, plan.head_dim), 5.0)
    session.attend(2, q, k, v, wide[:, :tokens])
    assert bool((wide[:, tokens:] == 5).all())
    for sample in range(2):
        alone = torch.empty(1, tokens, plan.num_heads, plan.head_dim)
        session.attend(2, *(x[sample : sample + 1].contiguous() for x in (q, k, v)), alone)
        assert torch.equal(alone[0], wide[sample, :tokens])


def test_errors_name_what_is_wrong(plans, tmp_path):
    with pytest.raises(calibatt.NotFound, match="nowhere.safetensors"):
        calibatt.Plan(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError):  # as Python's own
        calibatt.Plan(tmp_path / "nowhere.safetensors")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(plans["wan"].read_bytes()[:500])
    with pytest.raises(calibatt.FormatError, match="damaged.safetensors"):
        calibatt.Plan(damaged)
    plan = calibatt.Plan(plans["wan"])
    for change, name in [(dict(grid=(5, 7, 6)), "5×7×6"), (dict(num_layers=9), "9"), (dict(fingerprints=("values1:0",)), "values1:0")]:
        with pytest.raises(calibatt.Mismatch, match=name) as raised:
            Session.open(plan, facts_of(plan, **change), torch.device("cpu"))
        assert "\n" not in str(raised.value)
    with pytest.raises(calibatt.Mismatch, match="with on_mismatch warn"):  # an argument here, no flag
        Session.open(plan, facts_of(plan, fingerprints=("values1:0",)), torch.device("cpu"))
    session = Session.open(plan, facts_of(plan), torch.device("cpu"))
    with pytest.raises(calibatt.UsageError):
        session.begin_forward(len(plan.sigmas), _library.CONDITIONAL)


def test_plan_describes_itself(plans):
    plan, read = calibatt.Plan(plans["wan"]), StandInPlan(plans["wan"])
    assert plan.grid == read.grid == (5, 6, 7) and plan.video == (17, 96, 112)
    assert plan.density == pytest.approx(read.density, abs=1e-9)
    assert plan.sigmas == read.sigmas and plan.transformers == read.transformers
    assert (plan.num_layers, plan.num_heads, plan.head_dim) == (8, 4, 64)
    assert len(plan.density_map) == CALLS["wan"]["num_inference_steps"] and len(plan.density_map[0]) == 8
    assert "17 frames" in plan.describe() and str(plans["wan"]) in repr(plan)


def test_copies_of_a_plan_are_the_plan(plans):
    plan = calibatt.Plan(plans["wan"])
    for copied in (copy.copy(plan), copy.deepcopy([plan])[0], pickle.loads(pickle.dumps(plan))):
        assert copied.facts == plan.facts
        del copied
    gc.collect()
    assert plan.describe() == calibatt.Plan(os.fsencode(plans["wan"])).describe()


def test_compile_makes_another_plan_of_a_profile(plans, tmp_path):
    stages = []
    plan = calibatt.compile(str(plans["wan"]) + ".profile", tmp_path / "denser.safetensors", density=0.7, progress=lambda *told: stages.append(told))
    assert plan.density == pytest.approx(0.7, abs=0.02) and stages and stages[-1][1] == stages[-1][2]
    with pytest.raises(calibatt.UsageError, match="speed"):
        calibatt.compile(str(plans["wan"]) + ".profile", tmp_path / "x.safetensors", speed="high")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibatt.compile(str(plans["wan"]) + ".profile", tmp_path / "stopped.safetensors", density=0.7, progress=stop)
    assert not (tmp_path / "stopped.safetensors").exists()
