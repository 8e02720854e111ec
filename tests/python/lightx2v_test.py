"""integrations/lightx2v on a stand-in: the registry, the operator's base class, and a scheduler, with LightX2V's names."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import with_reuse
from stand_in import StandInPlan, order_of, planned_head

import calibatt

ROOT = Path(__file__).resolve().parents[2]
GRID, HEADS, DIM, LAYERS = (3, 4, 2), 2, 16, 2
NUM_TOKENS = 24


class Register(dict):
    def __call__(self, name):
        return lambda target: self.setdefault(name, target)


class Template:
    def set_config(self, config=None):
        self.config = config


class Logger:
    def __init__(self):
        self.lines = []

    def info(self, text, *arguments):
        self.lines.append(text.format(*arguments))


class MaskedSession:
    def __init__(self, plan, facts, device, on_mismatch):
        self.facts, self.fallback, self.closed, self.forwards = facts, plan.fallback, False, []
        random = torch.Generator().manual_seed(5)
        self.order = torch.arange(NUM_TOKENS) if plan.raster else torch.randperm(NUM_TOKENS, generator=random)
        self.masks = torch.rand(len(facts.sigmas), LAYERS, HEADS, NUM_TOKENS, NUM_TOKENS, generator=random) < 0.4
        self.masks |= torch.eye(NUM_TOKENS, dtype=torch.bool)

    def token_order(self, num_tokens):
        return self.order

    def begin_forward(self, step, branch):
        self.forwards.append((step, branch))

    def attend(self, layer, q, k, v, out):
        mask = self.masks[self.forwards[-1][0], layer]
        out.copy_(attention(q, k, v, mask))

    def report(self):
        return {"fallback_reason": self.fallback, "density": 0.4}

    def close(self):
        self.closed = True


def attention(q, k, v, mask=None):
    return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask).transpose(1, 2)


@pytest.fixture
def module(monkeypatch):
    """calibatt_lightx2v as LightX2V's process would import it; its log and its registry are attributes of it here."""
    register, log = Register(), Logger()
    for name, module in {
        "loguru": types.SimpleNamespace(logger=log),
        "lightx2v": types.ModuleType("lightx2v"),
        "lightx2v.utils": types.ModuleType("lightx2v.utils"),
        "lightx2v.utils.registry_factory": types.SimpleNamespace(ATTN_WEIGHT_REGISTER=register),
        "lightx2v.common": types.ModuleType("lightx2v.common"),
        "lightx2v.common.ops": types.ModuleType("lightx2v.common.ops"),
        "lightx2v.common.ops.attn": types.ModuleType("lightx2v.common.ops.attn"),
        "lightx2v.common.ops.attn.template": types.SimpleNamespace(AttnWeightTemplate=Template),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("calibatt_lightx2v", ROOT / "integrations/lightx2v/calibatt_lightx2v.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "calibatt_lightx2v", module)
    spec.loader.exec_module(module)
    module.register, module.log = register, log.lines
    yield module
    module.RUN.close()


@pytest.fixture
def operator(module, monkeypatch):
    """The operator on sessions in torch, and what it opened."""
    plan = types.SimpleNamespace(
        transformers=[{}], sigmas=[1.0, 0.8, 0.5], step_transformer=[0, 0, 1], fallback="", raster=False, describe=lambda: "a plan"
    )
    opened = []
    monkeypatch.setattr(module.Session, "open", staticmethod(lambda *arguments: opened.append(MaskedSession(*arguments)) or opened[-1]))
    monkeypatch.setattr(module.calibatt, "Plan", lambda path: plan)
    monkeypatch.setenv("CALIBATT_PLAN", "plan.safetensors")
    return types.SimpleNamespace(make=module.register["calibatt"], opened=opened, plan=plan, log=module.log, run=module.RUN)


def make_scheduler(config=None):
    config = config or {"num_heads": HEADS, "dim": HEADS * DIM, "num_layers": LAYERS, "patch_size": (1, 2, 2)}
    return types.SimpleNamespace(
        config=config, sigmas=torch.tensor([1.0, 0.8, 0.5, 0.0]), infer_steps=3, latents=torch.zeros(16, 3, 8, 4), step_index=0, infer_condition=True
    )


def heads(seed, tokens=NUM_TOKENS):
    return torch.randn(3, tokens, HEADS, DIM, generator=torch.Generator().manual_seed(seed)).unbind(0)


def call(operator, scheduler, block, q, k, v, **more):
    lengths = torch.tensor([0, q.shape[0]], dtype=torch.int32)
    weight = operator.make()
    return weight.apply(q=q, k=k, v=v, cu_seqlens_q=lengths, cu_seqlens_kv=lengths, max_seqlen_q=q.shape[0], max_seqlen_kv=k.shape[0],
                        model_cls="wan2.1", scheduler=scheduler, block_idx=block, **more)  # fmt: skip


def denoise(operator, scheduler):
    """Each call's inputs and output."""
    calls = []
    for step in range(3):
        scheduler.step_index = step
        for scheduler.infer_condition in (True, False):
            for block in range(LAYERS):
                q, k, v = heads(len(calls))
                calls.append((step, block, (q, k, v), call(operator, scheduler, block, q, k, v)))
    return calls


@pytest.mark.parametrize("raster", [False, True])
def test_masks_of_step_and_block_in_the_plans_token_order(operator, raster):
    operator.plan.raster = raster
    calls = denoise(operator, make_scheduler())
    (session,) = operator.opened
    assert session.forwards == [(step, branch) for step in range(3) for branch in (0, 1)]
    facts = session.facts
    assert (facts.grid, facts.num_heads, facts.head_dim, facts.num_layers, facts.sigmas) == (
        GRID,
        2,
        16,
        2,
        tuple(torch.tensor([1.0, 0.8, 0.5]).tolist()),
    )
    position = session.order.argsort()
    for step, block, inputs, out in calls:
        mask = session.masks[step, block][:, position][:, :, position]
        expected = attention(*(x.unsqueeze(0) for x in inputs), mask)[0].flatten(1)
        assert out.shape == (NUM_TOKENS, HEADS * DIM)
        assert float((out - expected).abs().max()) < 1e-5
        assert float((out - attention(*(x.unsqueeze(0) for x in inputs))[0].flatten(1)).abs().max()) > 1e-2


def test_one_session_for_runs_alike_and_another_for_another_size(operator):
    scheduler = make_scheduler()
    denoise(operator, scheduler)
    denoise(operator, make_scheduler())
    assert len(operator.opened) == 1 and operator.opened[0].forwards[6] == (0, 0)
    scheduler.sigmas = torch.tensor([1.0, 0.7, 0.4, 0.0])
    denoise(operator, scheduler)
    assert len(operator.opened) == 2 and operator.opened[0].closed and not operator.opened[1].closed
    operator.run.close()
    assert operator.opened[1].closed
    assert operator.log == ["calibatt: a plan", "calibatt: density 0.400", "calibatt: a plan", "calibatt: density 0.400"]


def test_a_configuration_that_is_an_object_and_a_batch(operator):
    scheduler = make_scheduler(types.SimpleNamespace(num_heads=HEADS, dim=HEADS * DIM, num_layers=LAYERS, patch_size=(1, 2, 2)))
    q, k, v = (torch.stack(pair) for pair in zip(heads(1), heads(2)))
    both = call(operator, scheduler, 0, q, k, v)
    assert both.shape == (2 * NUM_TOKENS, HEADS * DIM)
    assert torch.allclose(both[NUM_TOKENS:], call(operator, scheduler, 0, *heads(2)), atol=1e-6)


def test_two_transformers_are_told_apart_by_noise_level(operator):
    operator.plan.transformers = [{}, {}]
    call(operator, make_scheduler(), 0, *heads(0))
    assert operator.opened[0].facts.step_transformer == (0, 0, 1) and len(operator.opened[0].facts.fingerprints) == 2


def test_dense_where_the_plan_does_not_fit(operator, monkeypatch):
    operator.plan.fallback = "it was made for 5 frames"
    monkeypatch.setenv("CALIBATT_ON_MISMATCH", "dense")
    q, k, v = heads(0)
    out = call(operator, make_scheduler(), 0, q, k, v)
    assert torch.allclose(out, attention(*(x.unsqueeze(0) for x in (q, k, v)))[0].flatten(1), atol=1e-6)
    assert operator.log == ["calibatt: dense: it was made for 5 frames"] and operator.opened[0].forwards == []


def test_what_does_not_combine_is_refused_by_name(operator, monkeypatch):
    scheduler = make_scheduler()
    q, k, v = heads(0)
    with pytest.raises(calibatt.Unsupported, match='24 queries and 7 keys.*only "self_attn_1_type" may be "calibatt"'):
        call(operator, scheduler, 0, q, *heads(0, 7)[1:])
    with pytest.raises(calibatt.Unsupported, match="1 of the model's 2 heads"):
        call(operator, scheduler, 0, q[:, :1], k[:, :1], v[:, :1])
    with pytest.raises(calibatt.Unsupported, match="torch.float64"):
        call(operator, scheduler, 0, q.double(), k.double(), v.double())
    with pytest.raises(calibatt.Unsupported, match="update LightX2V"):
        operator.make().apply(q, k, v)
    with pytest.raises(calibatt.Unsupported, match="masked and causal"):
        call(operator, scheduler, 0, q, k, v, causal=True)
    operator.run.close()
    monkeypatch.setenv("CALIBATT_ON_MISMATCH", "guess")
    with pytest.raises(calibatt.UsageError, match="CALIBATT_ON_MISMATCH is 'guess'"):
        call(operator, scheduler, 0, q, k, v)
    operator.run.plan = None
    monkeypatch.delenv("CALIBATT_PLAN")
    with pytest.raises(calibatt.UsageError, match="set CALIBATT_PLAN"):
        call(operator, scheduler, 0, q, k, v)


def test_with_the_library_and_a_plan_of_the_command_line(module, monkeypatch, plans, tmp_path):
    monkeypatch.setenv("CALIBATT_PLAN", str(plans["wan"]))
    plan = StandInPlan(plans["wan"])
    config = {"num_heads": plan.num_heads, "dim": plan.num_heads * plan.head_dim, "num_layers": plan.num_layers, "patch_size": (1, 2, 2)}
    scheduler = make_scheduler(config)
    frames, height, width = plan.grid
    scheduler.latents, scheduler.infer_steps = torch.zeros(16, frames, 2 * height, 2 * width), len(plan.sigmas)
    scheduler.sigmas, scheduler.step_index = torch.tensor([*plan.sigmas, 0.0]), 2
    shape = (3, frames * height * width, plan.num_heads, plan.head_dim)
    q, k, v = torch.randn(shape, generator=torch.Generator().manual_seed(0)).unbind(0)
    out = call(types.SimpleNamespace(make=module.register["calibatt"]), scheduler, 3, q, k, v).unflatten(1, (plan.num_heads, -1))
    order = order_of(plan.read)
    for head in range(plan.num_heads):
        expected = planned_head(plan.read, plan.read.step_entry[2], 3, head, *(x[order, head] for x in (q, k, v)))
        assert float((out[order, head] - expected).norm() / expected.norm()) < 1e-5
    reusing = with_reuse(plans["wan"], tmp_path / "reusing.safetensors", ["forward", "forward", "hold", "forward"])
    monkeypatch.setenv("CALIBATT_PLAN", str(reusing))
    module.RUN.close()
    module.RUN.plan = None
    with pytest.raises(calibatt.Mismatch, match="runs no forward in 1 step, which this program cannot do"):
        call(types.SimpleNamespace(make=module.register["calibatt"]), scheduler, 3, q, k, v)
    monkeypatch.setenv("CALIBATT_PLAN", str(plans["wan"]))
    module.RUN.plan = None
    with pytest.raises(calibatt.Mismatch, match="latent grid"):
        scheduler.latents = torch.zeros(16, frames + 1, 2 * height, 2 * width)
        call(types.SimpleNamespace(make=module.register["calibatt"]), scheduler, 3, q, k, v)
