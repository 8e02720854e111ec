"""python -m pytest tools/peers/tests"""

import pytest
import torch

from tools.peers.eight_bits import LARGEST_BYTE, RECIPES, Errors, Table, bytes_of, e4m3_of, exact, rotated

OURS = "ours, played"
SAGE2 = "SageAttention2: int8 q, k (32, 64), e4m3 P, V"
FLASH3 = "FlashAttention-3: e4m3, a scale a head"


def inputs(tokens=300, moved=0.0):
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(2, tokens, 64, generator=generator) for _ in range(3))
    k[..., :2] += moved
    v[..., :2] += moved
    return [x.bfloat16() for x in (q, k, v)]


def errors_on(q, k, v):
    table = Table({})
    table.add("these", q, k, v)
    return {way: errors.error for way, errors in table.errors["these"].items()}


def test_bytes_have_a_scale_for_each_block_of_tokens():
    x = torch.zeros(1, 5, 4)
    x[0, 0], x[0, 3] = torch.tensor([127.0, 1.4, 0.4, 0.6]), torch.tensor([1.27, 0.014, 0.0, -1.27])
    found = bytes_of(x, 2)
    assert found[0, 0].tolist() == [127, 1, 0, 1]
    assert found[0, 3].tolist() == pytest.approx([1.27, 0.01, 0, -1.27])
    assert torch.equal(bytes_of(x, 5)[0, 3], torch.tensor([1.0, 0, 0, -1])), "the largest of all five decides"


def test_e4m3_by_tokens_and_by_channels():
    x = torch.tensor([[[448.0, 1.0], [0.5, 1.06]]])
    assert e4m3_of(x, 1)[0, 0].tolist() == [448, 1]
    assert e4m3_of(x, 0)[0, :, 1].tolist() == pytest.approx([1.06 * 416 / 448, 1.06])  # 422.6 lies between 416 and 448


def test_rotation_keeps_products():
    q, k, _ = (x.float() for x in inputs())
    assert torch.allclose(rotated(q) @ rotated(k).transpose(1, 2), q @ k.transpose(1, 2), atol=1e-4)


def test_without_rounding_a_recipe_is_attention():
    q, k, v = inputs()
    rows = torch.arange(300)
    plain = type(RECIPES[OURS])(lambda q, k: (q, k), lambda v: v, takes_mean=True)
    errors = Errors()
    errors.add(plain.attend(q.float(), k.float(), v.float(), rows), exact(q, k, v, rows))
    assert errors.error < 1e-3, "weights are fp16"


def test_errors_are_in_the_order_that_the_recipes_promise():
    normal, moved = errors_on(*inputs()), errors_on(*inputs(moved=20))
    assert 0.02 < normal[OURS] < normal[FLASH3] < 0.08
    assert moved[OURS] < 0.5 * moved[SAGE2], "the mean of values is exact"
    assert normal[OURS] <= 1.05 * normal[SAGE2]


def test_a_result_that_was_not_written_is_seen():
    q, k, v = inputs(40)
    table = Table({"unwritten": lambda q, k, v: torch.full_like(q, float("nan")), "refused": refuse})
    table.add("these", q, k, v)
    assert table.errors["these"]["unwritten"].worst == float("inf")
    assert table.as_json()["these"]["refused"] == {"left_out": "not this head dimension"}


def refuse(q, k, v):
    raise RuntimeError("not this head dimension")


def test_largest_byte():
    assert bytes_of(torch.full((1, 3, 2), -5.0), 3).unique().tolist() == pytest.approx([-5.0]) and LARGEST_BYTE == 127
