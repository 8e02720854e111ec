"""Rules of other methods by which attention is left out, each from its paper or its authors' description, as a mask over tokens.

A rule's `mask(call, q, k)` takes q, k [batch, heads, tokens, d] of one call and gives bool [batch or 1, heads or 1, tokens, tokens].
`knob` is what sets its density: a share, a threshold or a width, tuned to the wanted density on other prompts than those that are judged
(`tools/peers/run.py`). What the papers do beside choosing (first steps dense, 8 bits, text tokens) is left out for all alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .layout import Layout, cover, group_means, group_sizes, largest, spread


@dataclass
class Call:
    step: int
    layer: int
    branch: int  # 0 conditional, 1 unconditional
    layout: Layout


def scores(q, k):
    return torch.softmax(q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)


def block_energy(q, k, groups, count):
    """Mean attention of each query group to each key group: [batch, heads, count, count] (CalibAtt, Eq. 5). One batch entry at a time."""
    member = torch.nn.functional.one_hot(groups, count).float()
    mean = member / group_sizes(groups, count).clamp(min=1)
    return torch.stack([mean.T @ (scores(q[i], k[i]) @ member) for i in range(len(q))])


def fixed(tokens_mask):
    return tokens_mask[None, None]


class Rule:
    knob_range = (0.0, 1.0)  # of what sets the density; more is denser
    measured = False  # whether calibration prompts are run first: `record(call, q, k, v)`, then `finish(density)`
    tuned = True  # whether the knob is found by runs

    def __init__(self, layout: Layout):
        self.layout, self.knob = layout, 1.0

    def reset(self):
        """Before a run."""


class OwnEnergy(Rule):
    """No method, a bound: each prompt's own blocks of 64 by their true energy in this very call."""

    def mask(self, call, q, k):
        groups = self.layout.raster_blocks()
        return spread(cover(block_energy(q, k, groups, int(groups[-1]) + 1), self.knob), groups, groups)


class SpargeAttn(Rule):
    """arXiv 2502.18137: softmax of the blocks' mean queries and keys, covered up to τ (the knob); blocks whose tokens are unlike each other are
    always computed (here the twentieth least alike)."""

    def mask(self, call, q, k):
        groups = self.layout.raster_blocks()
        count = int(groups[-1]) + 1
        alike_q, alike_k = (self._likeness(x, groups, count) for x in (q, k))
        table = scores(group_means(q, groups, count), group_means(k, groups, count))
        keep = cover(table.masked_fill(~alike_k[:, :, None, :], 0), self.knob)
        return spread(keep | ~alike_k[:, :, None, :] | ~alike_q[..., None], groups, groups)

    @staticmethod
    def _likeness(x, groups, count):
        unit = torch.nn.functional.normalize(x.float(), dim=-1)
        likeness = group_means(unit, groups, count).square().sum(-1)  # mean cosine of all pairs
        return likeness > likeness.quantile(0.05, -1, keepdim=True)


class Svg2(Rule):
    """Sparse VideoGen 2, arXiv 2505.18875: tokens in groups by k-means of queries and of keys (centroids kept from step to step), groups of keys by the
    centroids' softmax times their sizes, covered up to p (the knob)."""

    QUERIES, KEYS = 68, 136

    def reset(self):
        self.centroids = {}

    def mask(self, call, q, k):
        site = (call.layer, call.branch)
        old_q, old_k = self.centroids.get(site, (None, None))
        of_q, centre_q = self._k_means(q, self.QUERIES, old_q)
        of_k, centre_k = self._k_means(k, self.KEYS, old_k)
        self.centroids[site] = centre_q, centre_k
        logits = centre_q @ centre_k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + group_sizes(of_k, self.KEYS)[:, :, None, :].log()
        return spread(cover(torch.softmax(logits, -1), self.knob), of_q, of_k)

    @staticmethod
    def _k_means(x, count, centres):
        rounds = 2
        if centres is None:
            rounds, centres = 10, x[:, :, torch.linspace(0, x.shape[2] - 1, count, device=x.device).long()].float()
        for _ in range(rounds):
            labels = torch.cdist(x.float(), centres).argmin(-1)
            means = group_means(x, labels, count)
            centres = torch.where(group_sizes(labels, count)[..., None] > 0, means, centres)
        return torch.cdist(x.float(), centres).argmin(-1), centres


def widest(density, mask_of_width, upper):
    """The mask of the largest whole width whose density is at most `density` (the least width, if none is)."""
    low, high = 0, upper
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if float(mask_of_width(middle).float().mean()) <= density else (low, middle - 1)
    return mask_of_width(low)


class Svg(Rule):
    """Sparse VideoGen, arXiv 2502.01776: each head is spatial (a band in frame order) or temporal (a band in the order of places), as 64 sampled queries
    say in each call; the first frame is seen by all."""

    tuned = False

    def finish(self, density):
        layout = self.layout
        temporal = layout.place * layout.frames + layout.frame
        first = (layout.frame == 0)[None, :]

        def band(order):
            distance = (order[:, None] - order[None, :]).abs()
            return widest(density, lambda width: (distance <= width) | first, layout.tokens)

        self.masks = torch.stack([band(torch.arange(layout.tokens, device=layout.device)), band(temporal)])

    def mask(self, call, q, k, v):
        rows = torch.linspace(0, self.layout.tokens - 1, 64, device=q.device).long()
        logits = q[:, :, rows].float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
        dense = torch.softmax(logits, -1) @ v.float()
        errors = [
            (torch.softmax(logits.masked_fill(~mask[rows], -math.inf), -1) @ v.float() - dense).square().sum((-1, -2)) for mask in self.masks
        ]
        return self.masks[(errors[1] < errors[0]).long()]


class Radial(Rule):
    """Radial attention, arXiv 2506.19852: the width of the band within a frame halves whenever the distance in frames doubles; the first frame is seen
    by all."""

    tuned = False

    def finish(self, density):
        layout = self.layout
        apart = (layout.frame[:, None] - layout.frame[None, :]).abs()
        halvings = torch.ceil(torch.log2(apart.clamp(min=1).float()))
        distance = (layout.place[:, None] - layout.place[None, :]).abs() * 2**halvings
        first = (layout.frame == 0)[None, :]
        self.fixed = fixed(widest(density, lambda width: (distance <= width) | first, 64 * layout.per_frame))

    def mask(self, call, q, k):
        return self.fixed


class Sta(Rule):
    """Sliding tile attention, arXiv 2502.04507: a window of tiles (4 × 4 × 4 tokens) around each query's tile, moved inwards at the border; each head
    of each layer has the window that costs it least, by its output error on calibration prompts, under one density for all."""

    measured, tuned = True, False
    SIZE = (4, 4, 4)

    def __init__(self, layout):
        super().__init__(layout)
        self.groups = layout.boxes(self.SIZE)
        self.counts = [-(-extent // each) for extent, each in zip(layout.grid, self.SIZE)]
        shapes = [(f, r, c) for f in range(1, self.counts[0] + 1) for r in range(1, self.counts[1] + 1) for c in range(1, self.counts[2] + 1)]
        tables = torch.stack([self._windows(shape) for shape in shapes])
        sizes = group_sizes(self.groups, tables.shape[-1])
        densities = torch.einsum("swk,w,k->s", tables.float(), sizes, sizes) / layout.tokens**2
        chosen = [s for s in range(len(shapes)) if self._useful(shapes[s])]
        self.tables, self.densities = tables[chosen], densities[chosen]
        self.errors = {}

    @staticmethod
    def _useful(shape):
        return shape[1] == shape[2] or 1 in shape[1:]

    def _windows(self, shape):
        one = []
        for count, width in zip(self.counts, shape):
            at = torch.arange(count, device=self.layout.device)
            start = (at - width // 2).clamp(min=0, max=count - width)
            one.append((at[None, :] >= start[:, None]) & (at[None, :] < start[:, None] + width))
        table = torch.einsum("ab,cd,ef->acebdf", *(each.float() for each in one))
        tiles = math.prod(self.counts)
        return table.reshape(tiles, tiles) > 0

    def record(self, call, q, k, v):
        if call.branch or call.step % 4:
            return
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        errors = []
        for table in self.tables:
            mask = spread(table[None, None], self.groups, self.groups)
            out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            errors.append(((out - dense).float().square().sum((-1, -2)) / dense.float().square().sum((-1, -2))).mean(0))
        key = call.layer
        self.errors[key] = self.errors.get(key, 0) + torch.stack(errors, -1)  # [heads, windows]

    def finish(self, density):
        errors = torch.stack([self.errors[layer] for layer in sorted(self.errors)])
        low, high = -12.0, 6.0  # log10 of the price of density
        for _ in range(60):
            price = 10 ** ((low + high) / 2)
            self.choice = (errors + price * self.densities).argmin(-1)
            low, high = ((low + high) / 2, high) if float(self.densities[self.choice].mean()) > density else (low, (low + high) / 2)
        self.choice = (errors + 10**high * self.densities).argmin(-1)

    def mask(self, call, q, k):
        return spread(self.tables[self.choice[call.layer]][None], self.groups, self.groups)


class Entropy(Rule):
    """Masks cached from five prompts (DecartAI's description): mean block energies, heads sorted by the entropy of theirs into three parts with budgets
    in the ratio .7 : .5 : .3, the largest blocks of each row within the budget."""

    measured, tuned = True, False

    def __init__(self, layout):
        super().__init__(layout)
        self.groups = layout.raster_blocks()
        self.count = int(self.groups[-1]) + 1
        self.energies = {}

    def record(self, call, q, k, v):
        if call.branch == 0:
            key = (call.step, call.layer)
            self.energies[key] = self.energies.get(key, 0) + block_energy(q, k, self.groups, self.count).mean(0)

    def finish(self, density):
        energies = torch.stack([self.energies[key] for key in sorted(self.energies)])  # [sites, heads, count, count]
        share = energies / energies.sum(-1, keepdim=True)
        entropy = -(share * share.clamp(min=1e-12).log()).sum(-1).mean(-1)
        rank = entropy.flatten().argsort().argsort().view_as(entropy) / entropy.numel()
        budget = torch.where(rank < 1 / 3, 0.3, torch.where(rank < 2 / 3, 0.5, 0.7)) * density / 0.5
        count = (budget.clamp(max=1) * self.count).round().clamp(min=1)
        self.tables = dict(zip(sorted(self.energies), largest(energies, count[..., None].expand(energies.shape[:-1]))))

    def mask(self, call, q, k):
        return spread(self.tables[(call.step, call.layer)][None], self.groups, self.groups)


RULES = {"SVG2": Svg2, "SVG": Svg, "Radial": Radial, "SpargeAttn": SpargeAttn, "STA": Sta, "entropy budgets": Entropy, "own energy (bound)": OwnEnergy}
