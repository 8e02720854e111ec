"""Distillation: the factors' gradients, the pool, a run from end to end, and what diffusers makes of the file."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tools.tiny_video import distill, merged, state, wan
from tools.tiny_video.export import export, random_parts
from tools.tiny_video.low_rank import LowRank, merge_file
from tools.tiny_video.ring import Ring


def small():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.SiLU(), torch.nn.Linear(8, 3))


def test_gradients_of_the_factors_are_autograds():
    model, x = small(), torch.randn(5, 6)
    low_rank = LowRank(model, rank=2)
    with torch.no_grad():
        for up in low_rank.up:
            up.normal_()
    low_rank.merge()
    model(x).square().sum().backward()
    low_rank.take_gradients()
    factors = [*low_rank.down, *low_rank.up]
    weights = {f"{name}.weight": low_rank.base[name] + up @ down for name, down, up in zip(low_rank.base, low_rank.down, low_rank.up)}
    loss = torch.func.functional_call(model, weights, x).square().sum()
    for factor, expected in zip(factors, torch.autograd.grad(loss, factors)):
        assert expected.abs().max() > 0.01
        assert torch.allclose(factor.grad, expected, atol=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_a_ring_keeps_the_newest_rows():
    ring = Ring(5, "cpu", a=((2,), torch.float32), b=((), torch.long))
    for first in (0, 3, 6):
        values = torch.arange(first, first + 3)
        ring.put(a=values[:, None].expand(3, 2), b=values)
    assert sorted(ring.fields["b"].tolist()) == [4, 5, 6, 7, 8]
    assert torch.equal(ring.fields["a"][:, 1].long(), ring.fields["b"])
    assert (ring.filled, ring.drawn) == (5, 9)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short distillation of an untrained model."""
    folder = tmp_path_factory.mktemp("distill")
    export(wan, folder / "model", *random_parts(wan, 0), flow_shift=5.0)
    distill.main(["-o", str(folder / "out"), "--teacher", str(folder / "model"), "--device", "cpu", "--seconds", "600",
                  "--frames", "1", "--size", "4", "--batch", "4", "--group", "4", "--first-groups", "2", "--refresh", "10", "--capacity", "48",
                  "--rates", "0.003", "0", "--race-seconds", "100", "--steps", "30", "--count", "2", "--rank", "8"])  # fmt: skip
    return folder


def test_the_student_learns(run):
    rows = [json.loads(line) for line in (run / "out" / "distill.jsonl").read_text().splitlines()]
    by_event = {row["event"]: row for row in rows if "event" in row and row["event"] != "race"}
    moving, still = (row for row in rows if row.get("event") == "race")
    assert still["distance"] == by_event["ready"]["distance"]  # the second one started from the teacher again
    assert sum(moving["held_loss"]) < 0.9 * sum(still["held_loss"])
    assert by_event["trained"]["step"] == 60
    assert by_event["trained"]["distance"] < 0.9 * still["distance"]
    assert by_event["measured"]["prompts"] == 2


def test_diffusers_fuses_the_file_to_the_same_weights(run):
    from diffusers import WanPipeline

    transformer, *_ = state.load_exported(run / "model")
    pipeline = WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=state.load_exported(run / "model")[0])
    pipeline.load_lora_weights(load_file(run / "out" / "lora.safetensors"))
    pipeline.fuse_lora(components=["transformer"])
    pipeline.unload_lora_weights()
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    merge_file(transformer, run / "out" / "lora.safetensors")
    changed = 0
    for name, value in pipeline.transformer.state_dict().items():
        assert torch.equal(transformer.state_dict()[name], value.to(torch.bfloat16).float()), name
        changed += not torch.equal(value, before[name])
    assert changed == 86


def test_the_teacher_walks_as_its_own_sampler(run):
    """Five guided steps of the second order in each of four, near the 60 steps of the pipeline's solver."""
    from tools.tiny_video.sample import Sampler
    from tools.tiny_video.tokenizer import CaptionTokenizer

    tokenizer = CaptionTokenizer(run / "model" / "tokenizer", wan.TRAIN_PROMPT_TOKENS)
    work = distill.Distillation(wan, run / "model", torch.device("cpu"), (16, 1, 4, 4), tokenizer, compiled=False)
    sampler = Sampler(wan, state.load_exported(run / "model"), run / "model" / "tokenizer", "cpu")
    noise, prompts = sampler.noise(1, 1, 4), ["a red star spins"]
    expected = sampler.latents(prompts, [1], 60, 4.0, 5.0, frames=1, size=4)
    actual = work.walk(work.teach, noise, tokenizer(prompts))
    assert (actual - expected).square().mean() < 1e-3 * expected.square().mean()


def test_the_committed_file_is_of_every_linear_layer_and_merges(tmp_path):
    tensors = load_file(merged.FOLDER / "lora.safetensors")
    assert all(value.dtype == torch.bfloat16 and value.isfinite().all() for value in tensors.values())
    merged.write(merged.FOLDER, tmp_path / "model")
    before, after = (load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors") for folder in (merged.BASE, tmp_path / "model"))
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {f"transformer.{name.removesuffix('.weight')}.lora_{part}.weight" for name in changed for part in "AB"} == set(tensors)
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["num_inference_steps"] == 4
