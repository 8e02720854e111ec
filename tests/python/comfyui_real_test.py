"""integrations/comfyui on ComfyUI itself, where COMFYUI_DIR is a checkout of it: its own models with small random weights, its own
samplers, on a CPU (or COMFYUI_DEVICE=cuda). The nodes' tests that run everywhere are comfyui_test.py and comfyui_calibrate_test.py.
"""

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from comfyui_host import random_weights
from conftest import with_reuse
from stand_in import StandInPlan, StandInSession

import calibatt

COMFYUI = os.environ.get("COMFYUI_DIR")
DEVICE = os.environ.get("COMFYUI_DEVICE", "cpu")  # or cuda: in float32 there too
pytestmark = pytest.mark.skipif(not COMFYUI, reason="COMFYUI_DIR is not set to a checkout of ComfyUI")
ROOT = Path(__file__).resolve().parents[2]
LATENT = (3, 8, 12)  # frames, rows, columns: 3×4×6 tokens
NUM_TOKENS = 72


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    """ComfyUI's modules, on the CPU, with a models folder of its own."""
    sys.path.insert(0, COMFYUI)
    import comfy.cli_args

    comfy.cli_args.args.cpu = DEVICE == "cpu"
    comfy.cli_args.args.force_fp32 = True
    comfy.cli_args.args.use_pytorch_cross_attention = True
    import comfy.sample
    import comfy.samplers
    import comfy.sd
    import folder_paths

    folder_paths.models_dir = str(tmp_path_factory.mktemp("models"))
    return comfy


@pytest.fixture(scope="module")
def sampling(comfy):
    spec = importlib.util.spec_from_file_location("calibatt_real", ROOT / "integrations/comfyui/__init__.py")
    package = importlib.util.module_from_spec(spec)
    sys.modules["calibatt_real"] = package
    spec.loader.exec_module(package)
    import calibatt_real.sampling as module

    return module


CHANNELS = {"wan": 16, "ti2v": 48, "mochi": 12}


@pytest.fixture(scope="module")
def models(comfy, tmp_path_factory):
    """Wan models are loaded from files, as ComfyUI's node loads them; that takes Mochi's size for granted."""
    import comfy.ldm.wan.model
    import comfy.model_base
    import comfy.model_patcher
    import comfy.ops
    import comfy.supported_models
    from safetensors.torch import save_file

    made = {}
    for name in ("wan", "ti2v"):
        channels = CHANNELS[name]
        module = comfy.ldm.wan.model.WanModel(
            "t2v",
            dim=256,
            ffn_dim=128,
            in_dim=channels,
            out_dim=channels,
            num_heads=2,
            num_layers=3,
            operations=comfy.ops.disable_weight_init,
            dtype=torch.float32,
        )
        path = tmp_path_factory.mktemp("wan") / "wan.safetensors"
        save_file(random_weights(module), path)
        made[name] = comfy.sd.load_diffusion_model(str(path))
    config = comfy.supported_models.GenmoMochi(
        {"image_model": "mochi_preview", "depth": 2, "patch_size": 2, "num_heads": 2, "hidden_size_x": 96, "hidden_size_y": 48, "mlp_ratio_x": 128.0,
         "mlp_ratio_y": 4.0, "learn_sigma": False, "in_channels": 12, "qk_norm": True, "qkv_bias": False, "timestep_scale": 1000.0, "use_t5": True,
         "t5_feat_dim": 64, "posenc_preserve_area": True}
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    mochi = comfy.model_base.GenmoMochi(config)
    mochi.diffusion_model.load_state_dict(random_weights(mochi.diffusion_model))
    made["mochi"] = comfy.model_patcher.ModelPatcher(mochi, load_device=torch.device(DEVICE), offload_device=torch.device("cpu"))
    return made


def conditioning(name, seed):
    random = torch.Generator().manual_seed(seed)
    if name != "mochi":
        return [[torch.randn(1, 7, 4096, generator=random), {}]]
    return [[torch.randn(1, 9, 64, generator=random), {"attention_mask": torch.arange(9).unsqueeze(0) < 4 + seed}]]  # text of two lengths


def sample(comfy, name, model, steps=3, sampler="euler", cfg=4.0, seed=2, **more):
    latent = torch.zeros(1, CHANNELS[name], *LATENT)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
    return comfy.sample.sample(model, noise, steps, cfg, sampler, "simple", conditioning(name, 1), conditioning(name, 2), latent, seed=seed, disable_pbar=True, **more)  # fmt: skip


def distance(one, other):
    return float((one - other).norm() / other.norm())


@pytest.fixture
def masked(sampling, monkeypatch):
    """Sessions of masks in torch in the place of the library's: masks are known, and tokens in an order of their own."""
    import comfyui_test as stand_in

    monkeypatch.setattr(stand_in, "NUM_TOKENS", NUM_TOKENS)
    opened, orders = [], [5]

    def open_session(plan, facts, *_, **__):
        opened.append(stand_in.MaskedSession(facts))
        opened[-1].order = torch.randperm(NUM_TOKENS, generator=torch.Generator().manual_seed(orders[-1]))
        return opened[-1]

    monkeypatch.setattr(sampling.Session, "open", staticmethod(open_session))

    def apply(patcher, order_seed=5):
        told = []
        orders.append(order_seed)
        return sampling.apply_plan(patcher, stand_in.make_plan(), None, "refuse", told.append), opened, told

    return apply


def expected(comfy, name, patcher, session, **options):
    reference = patcher.clone()
    override = Raster(session)
    reference.model_options["transformer_options"]["optimized_attention_override"] = override
    result = sample(comfy, name, reference, **options)
    assert override.count == len(session.calls)
    return result


CASES = [("wan", "euler"), ("wan", "uni_pc"), ("wan", "heun"), ("wan", "dpmpp_2m"), ("ti2v", "euler"), ("mochi", "euler")]


@pytest.mark.parametrize("name, sampler", CASES)
def test_masks_are_applied_and_removing_the_node_restores(comfy, models, masked, name, sampler):
    patcher = models[name]
    dense = sample(comfy, name, patcher, sampler=sampler)
    clone, (opened), told = masked(patcher)
    planned = sample(comfy, name, clone, sampler=sampler)
    (session,) = opened
    assert session.facts.grid == (3, 4, 6) and session.facts.head_dim == (48 if name == "mochi" else 128)
    assert session.facts.video == {"wan": (9, 64, 96), "ti2v": (9, 128, 192), "mochi": (13, 64, 96)}[name]
    assert session.facts.scheduler == {"euler": "euler", "uni_pc": "unipc"}.get(sampler)
    assert {step for step, _ in session.forwards} == {0, 1, 2}
    assert "density" in told[0] and "every call" not in told[0]
    right = expected(comfy, name, patcher, session, sampler=sampler)
    scale = float((right - dense).abs().max())
    assert scale > 1e-2
    assert float((planned - right).abs().max()) < 1e-3 * scale  # float32 sums in another order; measured: 2e-5 of it
    assert torch.equal(sample(comfy, name, patcher, sampler=sampler), dense)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in patcher.model.diffusion_model.modules())


class GuidedReuse:
    """What a plan's steps without a forward are to give, on the guided result of a dense model (set_model_sampler_post_cfg_function)."""

    def __init__(self, rules, sigmas):
        self.rules, self.sigmas, self.kept = rules, sigmas, {}

    def __call__(self, args):
        x, sigma, denoised = args["input"], float(args["sigma"].flatten()[0]), args["denoised"]
        step = min(range(len(self.rules)), key=lambda each: abs(self.sigmas[each] - sigma))
        rule, velocity = self.rules[step], (x - denoised) / sigma
        if rule.sources:
            velocity = sum(weight * self.kept[source][1] for weight, source in zip(rule.weights, rule.sources))
            velocity = velocity + rule.latents_weight * (x - self.kept[rule.sources[0]][0])
        self.kept[step] = (x, velocity)
        return x - sigma * velocity


@pytest.mark.parametrize("name, sampler", [("wan", "euler"), ("wan", "uni_pc"), ("wan", "dpmpp_2m"), ("ti2v", "euler"), ("mochi", "euler")])
def test_steps_without_a_forward(comfy, sampling, models, masked, monkeypatch, name, sampler):
    from calibatt._session import StepRule

    rules = [StepRule("forward"), StepRule("forward"), StepRule("linear", (1, 0), (1.5, -0.5)), StepRule("residual", (1,), (1.0,), 1.0),
             StepRule("forward"), StepRule("hold", (4,), (1.0,))]  # fmt: skip
    clone, opened, told = masked(models[name])
    opening = sampling.Session.open

    def open_session(*given, **named):
        session = opening(*given, **named)
        session.rules, session.masks = rules, torch.ones_like(session.masks)
        return session

    monkeypatch.setattr(sampling.Session, "open", staticmethod(open_session))
    made = sample(comfy, name, clone, steps=6, sampler=sampler)
    (session,) = opened
    assert {step for step, _ in session.forwards} == {0, 1, 4}
    assert "steps: 3 of 6 without a forward (1 hold, 1 linear, 1 residual)" in told[0]
    reference = models[name].clone()
    reference.set_model_sampler_post_cfg_function(GuidedReuse(rules, session.facts.sigmas))
    right, dense = sample(comfy, name, reference, steps=6, sampler=sampler), sample(comfy, name, models[name], steps=6, sampler=sampler)
    scale = float((right - dense).abs().max())
    assert scale > 1e-2 and float((made - right).abs().max()) < 1e-3 * scale


@pytest.mark.parametrize("sampler, node", [("heun", None), ("euler", "cached"), ("euler", "layer_skipped")])
def test_what_a_plan_that_reuses_steps_does_not_go_with(comfy, sampling, models, masked, monkeypatch, sampler, node):
    from calibatt._session import StepRule

    clone, _, _ = masked(models["wan"])
    opening = sampling.Session.open

    def open_session(*given, **named):
        session = opening(*given, **named)
        session.rules = [StepRule("forward"), StepRule("forward"), StepRule("hold", (1,), (1.0,)), StepRule("forward")]
        return session

    monkeypatch.setattr(sampling.Session, "open", staticmethod(open_session))
    if node is not None:
        clone = {"cached": cached, "layer_skipped": layer_skipped}[node](clone)
    with pytest.raises(calibatt.Unsupported, match="the node EasyCache" if node == "cached" else "more than once for step"):
        sample(comfy, "wan", clone, steps=4, sampler=sampler)


def test_image_to_video_with_a_noise_level_for_each_frame(comfy, models, masked):
    mask = torch.ones(1, 1, *LATENT)
    mask[:, :, 0] = 0
    dense = sample(comfy, "ti2v", models["ti2v"], noise_mask=mask)
    clone, opened, told = masked(models["ti2v"])
    planned = sample(comfy, "ti2v", clone, noise_mask=mask)
    assert "noise levels of their own" in told[0]
    right = expected(comfy, "ti2v", models["ti2v"], opened[0], noise_mask=mask)
    scale = float((right - dense).abs().max())
    assert scale > 1e-2 and float((planned - right).abs().max()) < 1e-3 * scale


def cached(model):
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, 3.0, 0.0, 1.0, False)[0]


def layer_skipped(model):
    from comfy_extras.nodes_slg import SkipLayerGuidanceDiT

    return SkipLayerGuidanceDiT.execute(model, 2.0, 0.0, 1.0, "1", "")[0]


@pytest.mark.parametrize("calibatt_first", [False, True])
@pytest.mark.parametrize("node", [cached, layer_skipped])
def test_steps_and_layers_that_other_nodes_leave_out(comfy, models, masked, node, calibatt_first):
    patcher = models["wan"]
    clone, opened, told = masked(patcher if calibatt_first else node(patcher))
    planned = sample(comfy, "wan", node(clone) if calibatt_first else clone, steps=5)
    (session,) = opened
    if node is cached:
        assert {step for step, _ in session.forwards} < set(range(5))
    else:  # one forward more a step, without layer 1, in which the other node's patches are given the tokens
        plain = [layer for _, layer in session.calls].count(1)
        assert [layer for _, layer in session.calls].count(0) == [layer for _, layer in session.calls].count(2) == plain + 5
        assert "patches the model's blocks" in told[0]
    right = expected(comfy, "wan", node(patcher), session, steps=5)
    assert float((planned - right).abs().max()) < 1e-3 * float(right.abs().max())


@pytest.mark.parametrize("parts", [["diffusion_model"], [f"diffusion_model.blocks.{layer}" for layer in range(3)]])
def test_compiled(comfy, models, masked, parts):
    """Compiled before there was a plan, too; plans with other token orders; and nothing is compiled again in later runs."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper
    from torch._dynamo.utils import counters

    def compiled(patcher):
        clone = patcher.clone()
        set_torch_compile_wrapper(clone, backend="eager", keys=parts)
        return clone

    torch._dynamo.reset()
    dense = sample(comfy, "wan", models["wan"])
    assert distance(sample(comfy, "wan", compiled(models["wan"])), dense) < 1e-5
    graphs = None
    for number in range(3):
        clone, opened, told = masked(models["wan"], order_seed=number)
        eager = sample(comfy, "wan", clone)
        planned = sample(comfy, "wan", compiled(clone))
        assert "the model is compiled" in told[1]
        assert opened[-1].calls == opened[-2].calls and opened[-1].forwards == opened[-2].forwards
        assert distance(planned, eager) < 1e-5
        assert graphs in (None, counters["stats"]["unique_graphs"])
        graphs = counters["stats"]["unique_graphs"]
    assert distance(sample(comfy, "wan", compiled(models["wan"])), dense) < 1e-5


#: Names of diffusers' Wan → the original's, which are ComfyUI's.
NAMES = [("condition_embedder.time_embedder.linear_1", "time_embedding.0"), ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
         ("condition_embedder.time_proj", "time_projection.1"), ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
         ("condition_embedder.text_embedder.linear_2", "text_embedding.2"), ("proj_out", "head.head"), ("attn1", "self_attn"), ("attn2", "cross_attn"),
         ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"), ("norm2", "norm3"), ("ffn.net.0.proj", "ffn.0"), ("ffn.net.2", "ffn.2")]  # fmt: skip


def test_a_plan_of_the_command_line_on_tiny_wan(comfy, sampling, loaded, plans, tmp_path, monkeypatch):
    """The shipped model, from diffusers' layout: ComfyUI's transformer is diffusers', and the program's plan serves it."""
    import comfy.supported_models

    theirs = loaded["wan"].transformer
    weights = {}
    for name, each in theirs.state_dict().items():
        for old, new in NAMES:
            name = name.replace(old, new)
        name = "head.modulation" if name == "scale_shift_table" else name.replace("scale_shift_table", "modulation")
        weights[name] = each
    config = comfy.supported_models.WAN21_T2V({"image_model": "wan2.1", "model_type": "t2v", "dim": 256, "ffn_dim": 1024, "num_heads": 4,
                                               "num_layers": 8, "text_dim": 256, "in_dim": 16, "out_dim": 16, "freq_dim": 256})  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    model.diffusion_model.load_state_dict(weights)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=torch.device(DEVICE), offload_device=torch.device("cpu"))

    random = torch.Generator().manual_seed(4)
    noise, context = torch.randn(1, 16, 5, 12, 14, generator=random), torch.randn(1, 20, 256, generator=random)
    plan = calibatt.Plan(plans["wan"])
    sigmas = torch.tensor([*plan.sigmas, 0.0])

    def run(patcher):
        return comfy.samplers.sample(patcher, noise, [[context, {}]], [[context * 0.5, {}]], 4.0, torch.device(DEVICE), comfy.samplers.ksampler("euler"),
                                     sigmas, latent_image=torch.zeros_like(noise), disable_pbar=True, seed=1).cpu()  # fmt: skip

    def flow(x, sigma, text):
        return theirs(hidden_states=x, timestep=(sigma * 1000).reshape(1), encoder_hidden_states=text, return_dict=False)[0]

    x = noise
    for sigma, following in zip(sigmas, sigmas[1:]):
        negative = flow(x, sigma, context * 0.5)
        x = x + (following - sigma) * (negative + 4.0 * (flow(x, sigma, context) - negative))
    dense = run(patcher)
    assert distance(dense, model.process_latent_out(x)) < 1e-4  # measured: 1e-6

    everything = calibatt.compile(f"{plan.path}.profile", tmp_path / "everything.safetensors", density=1.0, progress=lambda *_: None)
    reusing = calibatt.Plan(with_reuse(everything.path, tmp_path / "reusing.safetensors", ["forward", "forward", "linear", "residual"]))
    told = []
    made = run(sampling.apply_plan(patcher, reusing, None, "refuse", told.append))
    x, kept = noise, []
    for step, (sigma, following) in enumerate(zip(sigmas, sigmas[1:])):
        if step < 2:
            negative = flow(x, sigma, context * 0.5)
            kept.append((x, negative + 4.0 * (flow(x, sigma, context) - negative)))
        (_, first), (source, second) = kept[0], kept[-1]
        ahead = (sigma - sigmas[1]) / (sigmas[1] - sigmas[0])
        guided = second if step < 2 else second + (ahead * (second - first) if step == 2 else x - source)
        x = x + (following - sigma) * guided
    assert "steps: 2 of 4 without a forward (1 linear, 1 residual)" in told.pop()
    assert distance(made, model.process_latent_out(x)) < 1e-4

    planned = run(sampling.apply_plan(patcher, plan, None, "refuse", told.append))
    assert f"density {plan.density:.3f}" in told[0]
    monkeypatch.setattr(sampling.Session, "open", StandInSession.open)
    by_masks = run(sampling.apply_plan(patcher, StandInPlan(plan.path), None, "refuse", told.append))
    assert distance(planned, by_masks) < 1e-4  # measured: 8e-7
    assert 1e-3 < distance(planned, dense) < 0.3


class Raster:
    """The session's masks on tokens in raster order, step and layer counted off from what the session was asked."""

    def __init__(self, session):
        self.session, self.count, self.position = session, 0, session.order.argsort()

    def __call__(self, func, q, k, v, heads, mask=None, **kwargs):
        if q.shape[-2] == k.shape[-2]:
            step, layer = self.session.calls[self.count]
            self.count += 1
            tokens = torch.cat([self.position, torch.arange(NUM_TOKENS, q.shape[-2])])
            mask = self.session.mask(step, layer, q.shape[-2])[:, tokens][:, :, tokens]
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf).expand(q.shape[0], -1, -1, -1).to(q.device)
        return func(q, k, v, heads, mask=mask, **kwargs)


@pytest.mark.parametrize("name", ["wan", "ti2v", "mochi"])
def test_calibrate_and_apply_with_the_library(comfy, sampling, models, tmp_path, monkeypatch, name):
    """The whole way: two runs measured, a plan of them, applied; a plan that keeps everything; and the plan's masks in pure torch."""
    import calibatt_real.calibration as calibration
    from comfy.model_management import InterruptProcessingException

    def interrupted(step, *_):
        if step == 1:
            raise InterruptProcessingException()

    patcher, told = models[name], []
    settings = {"block-q": "8", "block-k": "8", "measure": "maps"}
    dense = sample(comfy, name, patcher)
    measuring = calibration.calibrate(patcher, tmp_path / "plan.safetensors", 0.5, settings, told.append)
    with pytest.raises(InterruptProcessingException):  # what ComfyUI's button raises
        sample(comfy, name, measuring, callback=interrupted)
    assert not (tmp_path / "plan.safetensors").exists() and not list(tmp_path.glob("*/prompt_*"))
    measured = sample(comfy, name, measuring)
    sample(comfy, name, measuring, seed=3)
    assert [text.splitlines()[0] for text in told] == ["this run measured; plan.safetensors is made of 1 run", "this run measured; plan.safetensors is made of 2 runs"]  # fmt: skip
    again = sample(comfy, name, calibration.calibrate(patcher, tmp_path / "plan.safetensors", 0.5, settings, told.append))
    assert "was measured before" in told[2] and torch.equal(again, dense)

    plan = calibatt.Plan(tmp_path / "plan.safetensors")
    assert plan.facts["video"] == {
        "frames": 13 if name == "mochi" else 9,
        **({"height": 128, "width": 192} if name == "ti2v" else {"height": 64, "width": 96}),
    }
    planned = sample(comfy, name, sampling.apply_plan(patcher, plan, None, "refuse", told.append))
    everything = calibatt.compile(tmp_path / "plan.safetensors.profile", tmp_path / "all.safetensors", density=1.0, progress=lambda *_: None)
    kept = sample(comfy, name, sampling.apply_plan(patcher, everything, None, "refuse", told.append))
    assert "density 0.5" in told[3] and "density 1.000" in told[4]
    # float32 sums in another order; measured: 1e-6. Half of attention at random weights: 0.007 to 0.07.
    assert all(distance(each, dense) < 2e-5 for each in (measured, kept))
    assert 2e-3 < distance(planned, dense) < 0.3

    monkeypatch.setattr(sampling.Session, "open", StandInSession.open)
    by_masks = sample(comfy, name, sampling.apply_plan(patcher, StandInPlan(plan.path), None, "refuse", told.append))
    assert distance(planned, by_masks) < 2e-5
    assert torch.equal(sample(comfy, name, patcher), dense)
