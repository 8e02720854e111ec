"""Parts of the training: optimiser, noise levels, latent pool, resuming."""

import json
import pathlib

import pytest
import torch
from safetensors.torch import load_file

from tools.tiny_video import architecture as architectures
from tools.tiny_video import state, tokenizer, train_dit, train_vae
from tools.tiny_video.export import export
from tools.tiny_video.latent_pool import LatentPool
from tools.tiny_video.optim import Average, Optimiser, orthogonalise


def test_orthogonalise_evens_out_singular_values():
    torch.manual_seed(0)
    for shape in ((3, 32, 64), (2, 64, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_optimiser_survives_gradients_that_are_not_finite():
    weight, bias = torch.nn.Parameter(torch.randn(8, 8)), torch.nn.Parameter(torch.zeros(8))
    optimiser, before = Optimiser([weight], [bias]), weight.detach().clone()
    weight.grad, bias.grad = torch.full((8, 8), float("nan")), torch.zeros(8)
    assert not optimiser.step(0.01, 0.01).isfinite()
    assert weight.isfinite().all()
    assert torch.allclose(weight, before)


def test_optimiser_fits_a_line():
    torch.manual_seed(0)
    target, layer = torch.randn(16, 16), torch.nn.Linear(16, 16)
    optimiser = Optimiser([layer.weight], [layer.bias])
    first = last = None
    for step in range(200):
        x = torch.randn(64, 16)
        loss = (layer(x) - x @ target.T).square().mean()
        loss.backward()
        optimiser.step(0.1 * (1 - step / 200), 0.01)
        first, last = first if first is not None else float(loss.detach()), float(loss.detach())
    assert last < 0.01 * first


def test_optimiser_moves_slow_parameters_less():
    quick, slow = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    optimiser = Optimiser([torch.nn.Parameter(torch.eye(2))], [quick], [slow])
    for parameter in optimiser.parameters:
        parameter.grad = torch.ones_like(parameter)
    optimiser.step(0.0, 0.1)
    assert torch.allclose(slow, quick * Optimiser.SLOW) and quick.abs().min() > 0.01


def test_average_follows_and_swaps():
    layer = torch.nn.Linear(2, 2)
    average = Average([layer], 0.9)
    live = layer.weight.detach().clone() + 1
    with torch.no_grad():
        layer.weight.add_(1)
    for _ in range(200):
        average.update()
    average.swap()
    assert torch.allclose(layer.weight, live, atol=1e-4)
    average.swap()
    assert torch.equal(layer.weight, live)


def test_noise_levels_reach_pure_noise():
    levels = train_dit.sigmas(1000, 3.0, "cpu", torch.Generator().manual_seed(0))
    assert levels.min() > 0
    assert levels.max() <= 1
    assert (levels > 0.98).float().mean() > 0.04  # without the even share: under 0.01
    assert 0.5 < levels.median() < 0.9


@pytest.mark.parametrize("name", architectures.NAMES)
def test_short_latents_are_the_start_of_long_ones(tmp_path, name):
    torch.manual_seed(0)
    architecture = architectures.load(name)
    tokenizer.write(tmp_path / "tokenizer")
    vae = architecture.WholeClip(architecture.make_vae().eval())
    caption_tokenizer = tokenizer.CaptionTokenizer(tmp_path / "tokenizer", architecture.TRAIN_PROMPT_TOKENS)
    size = (architecture.TINY_FRAMES, 64)
    pools = [LatentPool(architecture, 2, frames, vae, caption_tokenizer, torch.device("cpu"), 7, *size) for frames in (2, 3)]
    for pool in pools:
        pool.add(2)
    assert torch.allclose(pools[0].latents.float(), pools[1].latents[:, :, :2].float(), atol=0.02)
    assert torch.equal(pools[0].ids, pools[1].ids)
    assert (pools[0].ids[..., -1] == 0).all()


@pytest.mark.parametrize("name", architectures.NAMES)
def test_training_resumes_and_exports(tmp_path, name):
    architecture = architectures.load(name)
    tokenizer.write(tmp_path / "tokenizer")
    common = ["--model", name, "--state", str(tmp_path / "state"), "--device", "cpu", "--tiny"]
    train_vae.main([*common, "--minutes", "1", "--steps", "1"])
    arguments = [*common, "--minutes", "2", "--tokenizer", str(tmp_path / "tokenizer"), "--steps", "2"]
    train_dit.main(arguments)
    train_dit.main([*arguments, "--finish"])
    rows = [json.loads(line) for line in (tmp_path / "state" / "dit.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "rate" in row] == [1, 2, 3, 4]
    parts = state.load_parts(architecture, tmp_path / "state")
    expected = {name: value.clone() for name, value in parts[0].state_dict().items()}
    export(architecture, tmp_path / "model", *parts)
    state.from_model(tmp_path / "model", tmp_path / "again")
    again = state.load_parts(architecture, tmp_path / "again")
    for name, value in again[0].state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("name", architectures.NAMES)
def test_the_committed_model_is_of_the_shapes_that_the_code_makes(name):
    architecture = architectures.load(name)
    folder = pathlib.Path(__file__).parents[3] / architecture.FOLDER
    assert json.loads((folder / "model_index.json").read_text()) == architecture.MODEL_INDEX
    files = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
    for part, file in files.items():
        weights = load_file(folder / part / f"{file}.safetensors")
        made = getattr(architecture, f"make_{part}")().state_dict()
        made.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight, written once
        assert {key: value.shape for key, value in weights.items()} == {key: value.shape for key, value in made.items()}
        assert all(value.dtype == torch.bfloat16 and value.isfinite().all() for value in weights.values())


def test_pieces_join(tmp_path):
    (tmp_path / "a.pt").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "out").mkdir()
    state.split(tmp_path / "a.pt", tmp_path / "out", limit=1000)
    assert len(list((tmp_path / "out").iterdir())) == 3
    state.join(tmp_path / "out", tmp_path / "joined")
    assert (tmp_path / "joined" / "a.pt").read_bytes() == (tmp_path / "a.pt").read_bytes()
