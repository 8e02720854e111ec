"""integrations/comfyui on a stand-in of ComfyUI (comfyui_host.py) and a session that computes masks in torch."""

import types

import comfyui_host as host
import pytest
import torch

import calibatt
from calibatt._session import StepRule

SIGMAS = torch.tensor([1.0, 0.8, 0.5, 0.0])
GRID = (3, 4, 2)  # tokens
NOISE_SHAPE = (1, 4, 3, 8, 4)
NUM_TOKENS = 24


class MaskedSession:
    """Attention by token masks of its own for each step, layer and head, in a token order that is not raster."""

    def __init__(self, facts, keep_all=False, fallback=None, rules=None):
        self.rules = rules
        self.facts, self.fallback, self.closed, self.calls, self.forwards = facts, fallback, False, [], []
        random = torch.Generator().manual_seed(5)
        self.order = torch.randperm(NUM_TOKENS, generator=random)
        shape = (len(facts.sigmas), facts.num_layers, facts.num_heads, NUM_TOKENS, NUM_TOKENS)
        self.masks = torch.rand(shape, generator=random) < (2 if keep_all else 0.4)
        self.masks |= torch.eye(NUM_TOKENS, dtype=torch.bool)

    def token_order(self, num_tokens):
        assert num_tokens == NUM_TOKENS
        return self.order

    def begin_forward(self, step, branch):
        self.step = step
        self.forwards.append((step, branch))

    def step_rules(self, num_steps):
        return self.rules or [StepRule("forward")] * num_steps

    def wants_output(self):
        return False

    def mask(self, step, layer, num_tokens):
        """Text behind always takes part."""
        mask = torch.ones(self.facts.num_heads, num_tokens, num_tokens, dtype=torch.bool)
        mask[:, :NUM_TOKENS, :NUM_TOKENS] = self.masks[step, layer]
        return mask

    def attend(self, layer, q, k, v, out, output=None):
        self.calls.append((self.step, layer))
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        mask = self.mask(self.step, layer, q.shape[2]).to(q.device)
        out.copy_(torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2))

    def report(self):
        return {"density": float(self.masks.float().mean()), "fallback_reason": self.fallback or "", "warnings": []}

    def close(self):
        self.closed = True


def make_plan(transformers=1, sigmas=(1.0, 0.8, 0.5), step_transformer=(0, 0, 0)):
    return types.SimpleNamespace(
        transformers=[{}] * transformers, sigmas=list(sigmas), step_transformer=list(step_transformer), describe=lambda: "a plan"
    )


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    torch.manual_seed(0)
    return host.install(tmp_path / "models", monkeypatch)


@pytest.fixture
def sampling(nodes):
    import calibatt_comfyui.sampling as module

    return module


@pytest.fixture
def sessions(sampling, monkeypatch):
    """Sessions that were opened; options for the next one."""
    opened = types.SimpleNamespace(all=[], options={})

    def open_session(plan, facts, device, on_mismatch, reuses_steps):
        opened.all.append(MaskedSession(facts, **opened.options))
        return opened.all[-1]

    monkeypatch.setattr(sampling.Session, "open", staticmethod(open_session))
    return opened


def inputs(negative=True):
    random = torch.Generator().manual_seed(1)
    noise = torch.randn(NOISE_SHAPE, generator=random)
    positive, other = torch.randn(1, 5, 32, generator=random), torch.randn(1, 5, 32, generator=random)
    return noise, positive, other if negative else None


def sample(patcher, **options):
    noise, positive, negative = inputs()
    with torch.no_grad():
        return host.Guider(patcher, positive, negative, **options).sample(noise, options.pop("sigmas", SIGMAS))


def applied(sampling, patcher, plan=None, transformer=None, on_mismatch="refuse", told=None):
    return sampling.apply_plan(patcher, plan or make_plan(), transformer, on_mismatch, (told if told is not None else []).append)


MODELS = [host.WanModel, host.AsymmDiTJoint]


class RasterReference:
    """The same masks on tokens in raster order, by an override that counts calls."""

    def __init__(self, session, forwards_per_step):
        self.session, self.per_step, self.count = session, forwards_per_step, 0
        self.position = session.order.argsort()

    def __call__(self, func, q, k, v, heads, mask=None, **kwargs):
        split = kwargs.get("skip_reshape", False)
        tokens = q.shape[2 if split else 1], k.shape[2 if split else 1]
        if tokens[0] != tokens[1]:
            return func(q, k, v, heads, mask=mask, **kwargs)
        layers = self.session.facts.num_layers
        forward, layer = divmod(self.count, layers)
        self.count += 1
        index = torch.cat([self.position, torch.arange(NUM_TOKENS, tokens[0])])
        ordered = self.session.mask(forward // self.per_step, layer, tokens[0])
        return func(q, k, v, heads, mask=ordered[:, index][:, :, index], **kwargs)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_masks_are_applied_in_the_sessions_token_order(sampling, sessions, model, together):
    patcher, told = host.ModelPatcher(host.BaseModel(model())), []
    dense = sample(patcher, together=together)
    planned = sample(applied(sampling, patcher, told=told).clone(), together=together)  # nodes behind clone again
    (session,) = sessions.all
    assert session.closed
    assert session.facts.grid == GRID and session.facts.sigmas == tuple(SIGMAS[:-1].tolist())
    branches = [0] if together else [1, 0]  # both in one batch count as conditional
    assert session.forwards == [(step, branch) for step in range(3) for branch in branches]
    assert len(session.calls) == 3 * len(branches) * session.facts.num_layers
    assert f"density {float(session.masks.float().mean()):.3f}" in told[0] and "every call" not in told[0]

    reference = patcher.clone()
    reference.model_options["transformer_options"]["optimized_attention_override"] = RasterReference(session, len(branches))
    expected = sample(reference, together=together)
    scale = float((expected - dense).abs().max())
    assert scale > 1e-2  # masks change the result
    assert float((planned - expected).abs().max()) < 1e-4 * scale + 1e-5  # float32 sums in another order


@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_left_on_the_model(sampling, sessions, model):
    patcher = host.ModelPatcher(host.BaseModel(model()))
    before = sample(patcher)
    clone = applied(sampling, patcher)
    sample(clone)
    with pytest.raises(ZeroDivisionError):
        host.Guider(clone, *inputs()[1:], arguments={"denoise_mask": FailingMask()}).sample(inputs()[0], SIGMAS)
    module = patcher.model.diffusion_model
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert torch.equal(sample(patcher), before)
    assert patcher.wrappers == {} and patcher.model_options == {"transformer_options": {}}


class FailingMask:
    def __mul__(self, other):
        raise ZeroDivisionError


@pytest.mark.parametrize("model", MODELS)
def test_a_plan_that_keeps_everything_is_dense(sampling, sessions, model):
    patcher = host.ModelPatcher(host.BaseModel(model()))
    sessions.options = {"keep_all": True}
    assert float((sample(applied(sampling, patcher)) - sample(patcher)).abs().max()) < 2e-5


def test_tokens_are_reordered_at_every_call_where_others_see_them(sampling, sessions):
    patcher, told = host.ModelPatcher(host.BaseModel(host.WanModel())), []
    once = sample(applied(sampling, patcher))
    seen = []
    other = patcher.clone()
    # Another node's patch of block 1, which here leaves it out and looks at the tokens.
    other.model_options["transformer_options"]["patches_replace"] = {"dit": {("double_block", 1): lambda args, _: seen.append(args["img"]) or args}}
    skipping = sample(applied(sampling, other, told=told))
    assert "reordered at every call" in told[0] and "patches the model's blocks" in told[0]
    assert sessions.all[1].calls == [call for call in sessions.all[0].calls if call[1] != 1]  # a layer left out shifts no other

    reference = other.clone()
    reference.model_options["transformer_options"]["optimized_attention_override"] = SkippingReference(sessions.all[1], 2)
    count = len(seen)
    expected = sample(reference)
    assert float((skipping - expected).abs().max()) < 2e-5
    assert float((seen[0] - seen[count]).abs().max()) < 2e-5  # the other node saw raster order
    assert float((once - skipping).abs().max()) > 1e-3


class SkippingReference(RasterReference):
    """Layers 0 and 2 alone."""

    def __call__(self, func, q, k, v, heads, mask=None, **kwargs):
        if q.shape[1] == k.shape[1] and self.count % 3 == 1:
            self.count += 1
        return super().__call__(func, q, k, v, heads, mask, **kwargs)


def test_frames_with_noise_levels_of_their_own(sampling, sessions):
    patcher, told = host.ModelPatcher(host.BaseModel(host.WanModel())), []
    arguments = {"denoise_mask": torch.tensor([[0.0, 1.0, 1.0]])}
    sessions.options = {"keep_all": True}
    planned = sample(applied(sampling, patcher, told=told), arguments=arguments)
    assert float((planned - sample(patcher, arguments=arguments)).abs().max()) < 2e-5
    assert "noise levels of their own" in told[0]


def test_an_override_that_is_there_is_kept(sampling, sessions):
    patcher, lengths = host.ModelPatcher(host.BaseModel(host.WanModel())), []

    def theirs(func, q, k, v, heads, mask=None, **kwargs):
        lengths.append(k.shape[1])
        return func(q, k, v, heads, mask=mask, **kwargs)

    patcher.model_options["transformer_options"]["optimized_attention_override"] = theirs
    sample(applied(sampling, patcher))
    assert set(lengths) == {5} and len(lengths) == 3 * 2 * 3  # cross-attention still is theirs, self-attention is the plan's


def test_a_mismatch_runs_with_the_hosts_attention(sampling, sessions):
    patcher, told = host.ModelPatcher(host.BaseModel(host.WanModel())), []
    sessions.options = {"fallback": "it was made for 5 frames"}
    assert torch.equal(sample(applied(sampling, patcher, told=told, on_mismatch="dense")), sample(patcher))
    assert told == ["dense: it was made for 5 frames"] and sessions.all[0].calls == [] and sessions.all[0].closed


def test_steps_are_those_of_the_nearest_noise_level(sampling, sessions):
    """Samplers of higher order evaluate between steps; KSampler (Advanced) runs a part of the steps."""
    patcher = host.ModelPatcher(host.BaseModel(host.WanModel()))
    sample(applied(sampling, patcher), repeat=2)
    assert sessions.all[0].forwards == [(step, branch) for step in range(3) for _ in range(2) for branch in (1, 0)]


def test_two_transformers(sampling, sessions):
    patcher = host.ModelPatcher(host.BaseModel(host.WanModel()))
    plan = make_plan(2, (1.0, 0.8, 0.5), (0, 0, 1))
    guider = lambda clone: host.Guider(clone, *inputs()[1:])  # noqa: E731
    with torch.no_grad():
        guider(applied(sampling, patcher, plan)).sample(inputs()[0], torch.tensor([1.0, 0.8, 0.5]))
        guider(applied(sampling, patcher, plan)).sample(inputs()[0], torch.tensor([0.5, 0.0]))
        guider(applied(sampling, patcher, plan, transformer=1)).sample(inputs()[0], SIGMAS)
        with pytest.raises(calibatt.Unsupported, match="both transformers of the plan"):
            guider(applied(sampling, patcher, plan)).sample(inputs()[0], SIGMAS)
    facts = [session.facts for session in sessions.all]
    assert [each.step_transformer for each in facts] == [(0, 0), (1,), (1, 1, 1)]
    assert all(len(each.fingerprints) == 2 and each.fingerprints == (None, None) for each in facts)


def test_video_and_schedule_are_told(sampling, sessions):
    patcher = host.ModelPatcher(host.BaseModel(host.WanModel()))
    sample(applied(sampling, patcher))
    facts = sessions.all[0].facts
    assert (facts.video, facts.flow_shift, facts.guidance_scale, facts.scheduler) == ((9, 64, 32), 3.0, 5.0, "euler")
    shifted = host.ModelPatcher(host.BaseModel(host.AsymmDiTJoint()))
    shifted.object_patches["model_sampling"] = types.SimpleNamespace(shift=8.0)  # as the node for it does
    sample(applied(sampling, shifted))
    assert sessions.all[1].facts.video == (13, 64, 32) and sessions.all[1].facts.flow_shift == 8.0


class VaceWanModel(host.WanModel):
    pass


def test_what_does_not_combine_is_refused_by_name(sampling, sessions):
    patcher = host.ModelPatcher(host.BaseModel(host.WanModel()))
    clone = applied(sampling, patcher)
    with pytest.raises(calibatt.Unsupported, match="VaceWanModel"):
        applied(sampling, host.ModelPatcher(host.BaseModel(VaceWanModel())))
    with pytest.raises(calibatt.Unsupported, match="has a plan or a calibration already"):
        applied(sampling, clone)
    with pytest.raises(calibatt.Unsupported, match="32 tokens, and the video has 24"):
        sample(clone, arguments={"extra_frame": torch.zeros(1, 4, 1, 8, 4)})

    windows = clone.clone()
    windows.model_options["context_handler"] = object()
    with pytest.raises(calibatt.Unsupported, match="context windows"):
        sample(windows)

    replaced, seen = clone.clone(), []
    replaced.model_options["transformer_options"]["optimized_attention_override"] = lambda func, *args, **kwargs: (
        seen.append(0) or func(*args, **kwargs)
    )
    with pytest.raises(calibatt.Unsupported, match="put calibatt's node behind that one"):
        sample(replaced)
    assert len(seen) == 3 * 2  # after one forward, not after all of them

    with pytest.raises(calibatt.Unsupported, match="a part of the video is sampled by itself"):
        tiled = clone.clone()
        tiled.wrappers["apply_model"] = {
            "tiles": [lambda executor, x, *args, **kwargs: executor(x[..., :2], *args, **kwargs)],
            **tiled.wrappers["apply_model"],
        }
        sample(tiled)


class CompiledBlock(host.WanBlock):
    """As torch.compile leaves it: code from before there were hooks."""

    _orig_mod = None

    def __init__(self, dim, heads):
        super().__init__(dim, heads)
        attention = self.self_attn
        self.__dict__["traced"] = lambda *args, **kwargs: attention.forward(*args, **kwargs)

    def forward(self, x, e, freqs, context, transformer_options=None, **_):
        return x + self.traced(self.norm1(x), freqs, transformer_options=transformer_options)


def test_compiled_code_that_passes_hooks_by_is_not_taken_for_dense(sampling, sessions):
    model = host.WanModel()
    clone = applied(sampling, host.ModelPatcher(host.BaseModel(model)))
    model.blocks[1] = CompiledBlock(32, 2)
    with pytest.raises(calibatt.Unsupported, match="compiled code ran a self-attention without telling its layer"):
        sample(clone)


def test_all_of_a_refused_run_is_undone(sampling, sessions):
    """The next run of the same clone is a run like any other."""
    patcher = host.ModelPatcher(host.BaseModel(host.WanModel()))
    clone = applied(sampling, patcher)
    with pytest.raises(calibatt.Unsupported):
        sample(clone, arguments={"extra_frame": torch.zeros(1, 4, 1, 8, 4)})
    assert torch.isfinite(sample(clone)).all()
    assert all(session.closed for session in sessions.all) and len(sessions.all) == 2


def test_example_workflows_fit_the_nodes(nodes):
    import asyncio
    import json

    schemas = {node.define_schema().node_id: node.define_schema() for node in asyncio.run(asyncio.run(nodes.comfy_entrypoint()).get_node_list())}
    workflows = sorted((host.ROOT / "integrations/comfyui/example_workflows").glob("*.json"))
    used = set()
    for path in workflows:
        workflow = json.loads(path.read_text())
        by_id = {node["id"]: node for node in workflow["nodes"]}
        for number, source, slot, target, place, kind in workflow["links"]:
            out, into = by_id[source]["outputs"][slot], by_id[target]["inputs"][place]
            assert number in out["links"] and into["link"] == number and out["type"] == into["type"] == kind, path.name
        for node in workflow["nodes"]:
            if (schema := schemas.get(node["type"])) is None:
                continue
            used.add(node["type"])
            linked = [each["name"] for each in node["inputs"]]
            widgets = [each for each in schema.inputs if each.id not in linked]
            assert set(linked) <= {each.id for each in schema.inputs} and len(node["outputs"]) == len(schema.outputs), path.name
            assert len(widgets) == len(node["widgets_values"]), path.name
            for each, value in zip(widgets, node["widgets_values"]):
                assert each.id == "plan_name" or "options" not in each.options or value in each.options["options"], path.name
    assert used == set(schemas) and len(workflows) == 4


def test_nodes_and_names(nodes, tmp_path):
    import asyncio

    import calibatt_comfyui.nodes as module

    extension = asyncio.run(nodes.comfy_entrypoint())
    schemas = [node.define_schema() for node in asyncio.run(extension.get_node_list())]
    assert [schema.node_id for schema in schemas] == ["CalibattLoadPlan", "CalibattApplyPlan", "CalibattCalibrate"]
    (choice,) = [each for each in schemas[1].inputs if each.id == "on_mismatch"]
    assert choice.options["options"] == ["refuse", "dense"] and choice.options["default"] == "refuse"
    for value in ("refuse", "dense", "error"):  # the last: what workflows from before have
        assert module.ApplyPlan.validate_inputs(on_mismatch=value) is True
    assert "'never' is none of refuse, dense" in module.ApplyPlan.validate_inputs(on_mismatch="never")
    folder = tmp_path / "models/calibatt"
    (folder / "a.safetensors.profile").mkdir(parents=True)
    (folder / "a.safetensors").touch()
    (folder / "a.safetensors.profile/prompt_0000.safetensors").touch()
    assert module.plan_names() == ["a.safetensors"]
    assert module.new_plan_path("wan 480p".replace(" ", "_")) == folder / "wan_480p.safetensors"
    for name in ("../a", "a/b", "", ".hidden", "/etc/a"):
        with pytest.raises(calibatt.UsageError, match="is not a name for a plan"):
            module.new_plan_path(name)
    assert module.settings_of(" token-order=raster  block-q=64 ") == {"token-order": "raster", "block-q": "64"}
    with pytest.raises(calibatt.UsageError, match="'raster' is not a setting"):
        module.settings_of("raster")
