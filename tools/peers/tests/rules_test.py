"""python -m pytest tools/peers/tests"""

import math

import pytest
import torch

from tools.peers.layout import Layout, cover, group_means, group_sizes, spread
from tools.peers.rules import RULES, Call, Entropy, Radial, SpargeAttn, Sta, Svg, Svg2, block_energy, scores

GRID = (5, 6, 8)


@pytest.fixture
def layout():
    return Layout(GRID, "cpu")


@pytest.fixture
def qkv(layout):
    generator = torch.Generator().manual_seed(3)
    return [2 * torch.randn(2, 3, layout.tokens, 16, generator=generator) for _ in range(3)]


def test_boxes_hold_neighbours_and_every_token_once(layout):
    groups = layout.boxes((4, 4, 4))
    assert int(groups.max()) + 1 == 2 * 2 * 2
    at = lambda f, r, c: int(groups[(f * GRID[1] + r) * GRID[2] + c])  # noqa: E731
    assert at(0, 0, 0) == at(3, 3, 3) == 0
    assert at(0, 0, 4) == 1 and at(0, 4, 0) == 2 and at(4, 0, 0) == 4
    assert group_sizes(groups, 8).tolist() == [64, 64, 32, 32, 16, 16, 8, 8]


def test_cover_is_the_fewest_that_hold_the_share():
    weights = torch.tensor([0.1, 0.4, 0.3, 0.2])
    assert cover(weights, 0.0).tolist() == [False, True, False, False], "never none"
    assert cover(weights, 0.69).tolist() == [False, True, True, False]
    assert cover(weights, 1.0).all()


def test_groups_of_each_head_are_spread_as_common_ones(layout):
    table = torch.rand(2, 3, 7, 9)
    of_q, of_k = torch.arange(layout.tokens) % 7, torch.arange(layout.tokens) % 9
    each = [groups.expand(2, 3, -1) for groups in (of_q, of_k)]
    assert torch.equal(spread(table, of_q, of_k), spread(table, *each))
    assert spread(table, of_q, of_k)[1, 2, 10, 11] == table[1, 2, 3, 2]


def test_block_energy_is_the_mean_of_the_softmax(layout, qkv):
    q, k, _ = qkv
    groups = layout.raster_blocks(64)
    energy = block_energy(q, k, groups, 4)
    assert torch.allclose(energy.sum(-1), torch.ones(2, 3, 4), atol=1e-5)
    assert torch.allclose(energy[1, 2, 0, 3], scores(q, k)[1, 2, :64, 192:].sum(-1).mean(), atol=1e-5)
    assert torch.allclose(group_means(k, groups, 4)[0, 1, 3], k[0, 1, 192:].mean(0), atol=1e-5)


@pytest.mark.parametrize("kind", [Svg, Radial])
def test_bands_fill_the_density_and_see_the_first_frame(kind, layout, qkv):
    rule = kind(layout)
    rule.finish(0.4)
    masks = rule.masks if kind is Svg else rule.fixed[0]
    for mask in masks:
        assert 0.35 < float(mask.float().mean()) <= 0.4
        assert mask[:, layout.frame == 0].all() and mask.diagonal().all()
        later = mask[layout.frame > 0][:, layout.frame > 0]
        assert torch.equal(later, later.T)


def test_svg_takes_the_band_that_changes_the_output_less(layout):
    rule = Svg(layout)
    rule.finish(0.4)
    place = torch.nn.functional.one_hot(layout.place).float() * 30  # every token attends to its own place in all frames
    frame = torch.nn.functional.one_hot(layout.frame, layout.per_frame).float() * 30  # ... to its own frame
    q = torch.stack([place, frame])[None]
    v = torch.randn(1, 2, layout.tokens, 8, generator=torch.Generator().manual_seed(1))
    mask = rule.mask(Call(0, 0, 0, layout), q, q, v)
    assert torch.equal(mask[0, 0], rule.masks[1]) and torch.equal(mask[0, 1], rule.masks[0])


def test_windows_are_whole_at_the_border_and_chosen_by_error(layout, qkv):
    rule = Sta(layout)
    sizes = group_sizes(rule.groups, rule.tables.shape[-1])
    for table, density in zip(rule.tables, rule.densities):
        assert (table.sum(-1) == table[0].sum()).all(), "a window at the border is moved inwards, not cut"
        assert math.isclose(float((table * sizes[:, None] * sizes).sum()) / layout.tokens**2, float(density), rel_tol=1e-5)
    rule.record(Call(0, 0, 0, layout), *qkv)
    rule.record(Call(1, 0, 0, layout), *qkv)  # not among the recorded steps
    rule.finish(1.0)
    assert float(rule.errors[0].gather(-1, rule.choice[0][:, None]).max()) == pytest.approx(0, abs=1e-9), "all is allowed, so nothing is lost"
    rule.finish(0.3)
    assert float(rule.densities[rule.choice].mean()) <= 0.3


def test_clusters_find_what_is_alike(layout):
    kinds = torch.arange(layout.tokens) % 4
    x = torch.nn.functional.one_hot(kinds, 16).float()[None, None] * 20
    rule = Svg2(layout)
    rule.reset()
    rule.knob = 0.9
    mask = rule.mask(Call(0, 0, 0, layout), x, x)
    assert mask[0, 0][kinds[:, None] == kinds[None, :]].all()
    assert not mask[0, 0][kinds[:, None] != kinds[None, :]].any()


def test_blocks_unlike_each_other_are_always_computed(layout, qkv):
    q, k, _ = qkv
    k = k.clone()
    k[:, :, :64] = k[:, :, :1]  # the first block is of one mind, the others are noise
    rule = SpargeAttn(layout)
    rule.knob = 0.0
    likeness = rule._likeness(k, layout.raster_blocks(), 4)
    assert likeness[..., 0].all()
    unlike = ~likeness[:, :, layout.raster_blocks()]
    mask = rule.mask(Call(0, 0, 0, layout), q, k)
    assert mask[unlike[:, :, None, :].expand_as(mask)].all()


def test_budgets_follow_entropy(layout, qkv):
    rule = Entropy(Layout((12, 8, 16), "cpu"))
    count, generator = rule.count, torch.Generator().manual_seed(5)
    sharp = torch.eye(count) + 1e-4 * torch.rand(count, count, generator=generator)
    flat = torch.ones(count, count) + 1e-4 * torch.rand(count, count, generator=generator)
    for step in range(2):
        rule.energies[(step, 0)] = torch.stack([sharp, (sharp + flat) / 2, flat])
    rule.finish(0.5)
    assert [round(float(part.float().mean()), 1) for part in rule.tables[(0, 0)]] == [0.3, 0.5, 0.7]


def test_every_rule_of_the_table_is_one(layout):
    for rule in RULES.values():
        assert callable(rule(layout).mask)
