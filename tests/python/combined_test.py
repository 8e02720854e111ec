"""Plans together with what else people use: torch.compile, LoRA, offloading, step caching, fused projections."""

import accelerate
import diffusers
import pytest
import torch
from apply_test import F32_TOLERANCE, blocks_of, everything  # noqa: F401 - a fixture
from conftest import CALLS, add_lora, copied, latents_of, relative
from torch._dynamo.utils import counters

import calibatt

# How many graphs there are does not depend on the backend. "aot_eager" also compares each operation with its fake one; it is slow.


def compile_blocks(pipe):
    if hasattr(pipe.transformer, "blocks"):
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        return 1
    for block in pipe.transformer.transformer_blocks:
        block.compile(fullgraph=True, backend="aot_eager")
    return 2  # Mochi's last block is another


def compile_whole(pipe):
    pipe.transformer.compile(fullgraph=True, backend="eager")
    return 1


def compile_wrapped(pipe):
    pipe.transformer = torch.compile(pipe.transformer, fullgraph=True, backend="eager")
    return 1


def graphs_of(run):
    counters.clear()
    result = run()
    return result, counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())


@pytest.mark.parametrize("compiled, first", [(compile_blocks, "compile"), (compile_blocks, "apply"), (compile_whole, "apply"), (compile_wrapped, "compile")])
def test_one_graph_for_all_steps_layers_and_branches(pipe, model, plans, compiled, first):
    torch._dynamo.reset()
    call = CALLS[model]
    dense = latents_of(pipe, call)
    calibatt.apply(pipe, plans[model])
    eager = latents_of(pipe, call)
    if first == "compile":
        calibatt.restore(pipe)
    expected_graphs = compiled(pipe)
    if first == "compile":
        assert relative(latents_of(pipe, call), dense) < F32_TOLERANCE  # compiled without a plan, and run
        calibatt.apply(pipe, plans[model])
    result, graphs, breaks = graphs_of(lambda: latents_of(pipe, call))
    assert (graphs, breaks) == (expected_graphs, 0) and relative(result, eager) < F32_TOLERANCE
    result, graphs, _ = graphs_of(lambda: latents_of(pipe, call, seed=4))
    assert graphs == 0
    with calibatt.disabled(pipe):
        result, graphs, _ = graphs_of(lambda: latents_of(pipe, call))
        assert graphs == expected_graphs and relative(result, dense) < F32_TOLERANCE
    result, graphs, _ = graphs_of(lambda: latents_of(pipe, call))
    assert graphs == 0 and relative(result, eager) < F32_TOLERANCE
    calibatt.restore(pipe)
    assert relative(latents_of(pipe, call), dense) < F32_TOLERANCE


def test_plans_come_and_go_on_compiled_pipes(loaded, everything, plans):  # noqa: F811
    """Another plan, none, one again; two pipes whose blocks are of one class, each with its own."""
    torch._dynamo.reset()
    call, (one, other) = CALLS["wan"], (plans["wan"], everything["wan"])
    pipes = [copied(loaded["wan"]) for _ in range(2)]
    dense, expected = latents_of(pipes[0], call), {}
    for plan in (one, other):
        expected[plan] = latents_of(calibatt.apply(pipes[0], plan), call)
    calibatt.restore(pipes[0])
    for pipe in pipes:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    for turn, (index, plan) in enumerate([(0, one), (0, other), (0, None), (0, one), (1, other), (0, "as it is"), (1, None), (0, "as it is")]):
        pipe = pipes[index]
        if plan is None:
            calibatt.restore(pipe)
        elif plan != "as it is":
            calibatt.apply(pipe, plan)
        wanted = {None: dense, "as it is": expected[one]}.get(plan, expected.get(plan))
        assert relative(latents_of(pipe, call), wanted) < F32_TOLERANCE, turn


def test_compiled_graph_outlives_no_plan(wan, plans):
    """A graph that was compiled with hooks never runs without them, or without its plan."""
    from calibatt import _ops

    calibatt.apply(wan, plans["wan"])
    site = wan.transformer.blocks[0].attn1.processor.site
    calibatt.restore(wan)
    with pytest.raises(calibatt.Error, match="calibatt.restore"):
        torch.ops.calibatt.attend(*[torch.randn(1, 210, 4, 64)] * 3, site)
    assert _ops.site_tensor(3, 7).item() == 3 << _ops.LAYER_BITS | 7


def test_operations_are_what_torch_is_told(wan, plans):
    """Their fake versions give the shapes and strides of the real ones, and nothing is changed in place."""
    calibatt.apply(wan, plans["wan"])
    latents_of(wan, CALLS["wan"])
    site = wan.transformer.blocks[1].attn1.processor.site
    tests = ("test_schema", "test_faketensor")
    with wan.transformer.cache_context("cond", step_index=1):
        tokens = torch.randn(2, 8, 210).transpose(1, 2)
        torch.library.opcheck(torch.ops.calibatt.arrange, (tokens, site, 5, 6, 7, True, False), test_utils=tests)
        back = torch.ops.calibatt.arrange(torch.ops.calibatt.arrange(tokens, site, 5, 6, 7, True, False), site, 0, 0, 0, False, True)
        assert torch.equal(back, tokens)
        q, k, v = torch.randn(1, 210, 3, 4, 64).unbind(2)
        torch.library.opcheck(torch.ops.calibatt.attend, (q, k, v, site), test_utils=tests)
        text, mask = torch.randn(1, 9, 4, 64), torch.tensor([[1] * 5 + [0] * 4])
        torch.library.opcheck(torch.ops.calibatt.attend_joint, (q, k, v, text, text, text, mask, site), test_utils=tests)


def test_lora_layers_are_used_as_they_are(pipe, model, everything):  # noqa: F811
    call = CALLS[model]
    plain = latents_of(pipe, call)
    calibatt.apply(pipe, everything[model])
    add_lora(pipe)
    planned = latents_of(pipe, call)
    assert "LoRAs are loaded since" in str(calibatt.summary(pipe))
    calibatt.restore(pipe)
    with_lora = latents_of(pipe, call)
    assert relative(with_lora, plain) > 1e-2 and relative(planned, with_lora) < F32_TOLERANCE
    calibatt.apply(pipe, everything[model])
    assert calibatt.summary(pipe).weights == {"transformer": "not compared: LoRAs are loaded"}
    pipe.transformer.delete_adapters("style")
    assert relative(latents_of(pipe, call), plain) < F32_TOLERANCE


@pytest.mark.parametrize("first", ["offload", "apply"])
@pytest.mark.parametrize("way", ["model", "sequential"])
def test_offloaded_transformers(pipe, model, everything, first, way):  # noqa: F811
    call = CALLS[model]
    dense = latents_of(pipe, call)
    if first == "apply":
        calibatt.apply(pipe, everything[model])
    if way == "model":  # what enable_model_cpu_offload does
        _, hook = accelerate.cpu_offload_with_hook(pipe.transformer, "cpu")
    else:  # enable_sequential_cpu_offload
        accelerate.cpu_offload(pipe.transformer, "cpu")
    if first == "offload":
        calibatt.apply(pipe, everything[model])
    assert relative(latents_of(pipe, call), dense) < F32_TOLERANCE
    assert calibatt.summary(pipe).calls > 0
    calibatt.restore(pipe)
    assert torch.equal(latents_of(pipe, call), dense)
    assert hasattr(pipe.transformer, "_hf_hook")


def test_group_offloading(wan, everything):  # noqa: F811
    dense = latents_of(wan, CALLS["wan"])
    wan.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    calibatt.apply(wan, everything["wan"])
    assert relative(latents_of(wan, CALLS["wan"]), dense) < F32_TOLERANCE


@pytest.mark.parametrize("first", ["cache", "apply"])
def test_first_block_cache_leaves_out_steps(wan, everything, first):  # noqa: F811
    call = {**CALLS["wan"], "num_inference_steps": 8}
    config = diffusers.FirstBlockCacheConfig(threshold=0.8)
    wan.transformer.enable_cache(config)
    dense = latents_of(wan, call)
    wan.transformer.disable_cache()
    assert relative(latents_of(wan, call), dense) > 1e-3
    if first == "apply":
        calibatt.apply(wan, everything["wan"])
    wan.transformer.enable_cache(config)
    calibatt.apply(wan, everything["wan"])
    with pytest.warns(calibatt.CalibattWarning, match="steps"):
        assert relative(latents_of(wan, call), dense) < 1e-3  # a threshold is crossed or not
    assert 16 < calibatt.summary(wan).calls < 16 * 8
    wan.transformer.disable_cache()


def test_step_caches_that_hide_blocks_while_a_forward_runs(wan, everything):  # noqa: F811
    """As cache-dit does: the transformer sees one block, which runs all of them."""
    dense = latents_of(wan, CALLS["wan"])
    transformer, blocks = wan.transformer, wan.transformer.blocks

    class Unified(torch.nn.Module):
        def forward(self, hidden_states, *rest):
            for block in blocks:
                hidden_states = block(hidden_states, *rest)
            return hidden_states

    real = transformer.forward

    def forward(*given, **named):
        transformer.blocks = torch.nn.ModuleList([Unified()])
        try:
            return real(*given, **named)
        finally:
            transformer.blocks = blocks

    transformer.forward = forward
    calibatt.apply(wan, everything["wan"])
    assert relative(latents_of(wan, CALLS["wan"]), dense) < F32_TOLERANCE


def test_processors_that_are_set_later_stay(wan, plans):
    """They attend to tokens in the plan's order, which changes nothing; and restore leaves them."""
    dense = latents_of(wan, CALLS["wan"])
    calibatt.apply(wan, plans["wan"])
    own = type(wan.transformer.blocks[0].attn2.processor)()
    wan.transformer.blocks[0].attn1.set_processor(own)
    latents_of(wan, CALLS["wan"])
    for block in wan.transformer.blocks:
        block.attn1.set_processor(own)
    assert relative(latents_of(wan, CALLS["wan"]), dense) < F32_TOLERANCE
    calibatt.restore(wan)
    assert all(block.attn1.processor is own for block in wan.transformer.blocks)
    assert torch.equal(latents_of(wan, CALLS["wan"]), dense)


def test_fused_projections(wan, everything):  # noqa: F811
    dense = latents_of(wan, CALLS["wan"])
    wan.transformer.fuse_qkv_projections()
    calibatt.apply(wan, everything["wan"])
    assert relative(latents_of(wan, CALLS["wan"]), dense) < F32_TOLERANCE


def test_half_precision(wan, everything):  # noqa: F811
    dense = latents_of(wan, CALLS["wan"])
    wan.transformer.half()
    calibatt.apply(wan, everything["wan"])
    assert relative(latents_of(wan, CALLS["wan"]), dense) < 0.05
