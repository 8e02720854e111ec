"""Where a video's tokens lie, and masks as (query group, key group) tables over any grouping of them."""

from __future__ import annotations

import torch


class Layout:
    """Tokens of a grid (frames, rows, columns) in raster order. `frame`, `place`: of each token, its frame and its index in that frame."""

    def __init__(self, grid: tuple[int, int, int], device):
        self.grid, self.device = grid, torch.device(device)
        self.frames, self.per_frame = grid[0], grid[1] * grid[2]
        self.tokens = self.frames * self.per_frame
        index = torch.arange(self.tokens, device=device)
        self.frame, self.place = index // self.per_frame, index % self.per_frame
        self.row, self.column = self.place // grid[2], self.place % grid[2]

    def raster_blocks(self, size: int = 64) -> torch.Tensor:
        """[tokens]: runs of `size` tokens; the last may be shorter."""
        return torch.arange(self.tokens, device=self.device) // size

    def boxes(self, size: tuple[int, int, int]) -> torch.Tensor:
        """[tokens]: boxes of size (frames, rows, columns), numbered in raster order; those at the far ends may be smaller."""
        counts = [-(-extent // each) for extent, each in zip(self.grid, size)]
        f, r, c = (value // each for value, each in zip((self.frame, self.row, self.column), size))
        return (f * counts[1] + r) * counts[2] + c


def group_sizes(groups: torch.Tensor, count: int) -> torch.Tensor:
    """groups: [..., tokens] numbers below count → [..., count] float."""
    sizes = torch.zeros(*groups.shape[:-1], count, device=groups.device)
    return sizes.scatter_add_(-1, groups, torch.ones_like(groups, dtype=sizes.dtype))


def group_means(x: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
    """x: [..., tokens, d]; groups: [..., tokens] → mean of each group, [..., count, d] float; 0 of an empty one."""
    index = groups.expand(x.shape[:-1])[..., None].expand_as(x)
    sums = torch.zeros(*x.shape[:-2], count, x.shape[-1], device=x.device).scatter_add_(-2, index, x.float())
    return sums / group_sizes(groups, count).clamp(min=1)[..., None]


def spread(table: torch.Tensor, query_groups: torch.Tensor, key_groups: torch.Tensor) -> torch.Tensor:
    """table: [batch, heads, query groups, key groups] → the same for tokens, [batch, heads, tokens, tokens]. The groups are [tokens], or
    [batch, heads, tokens] where each head has its own."""
    if query_groups.dim() == 1:
        return table[..., query_groups, :][..., key_groups]
    rows = torch.gather(table, 2, query_groups[..., None].expand(-1, -1, -1, table.shape[-1]))
    return torch.gather(rows, 3, key_groups[:, :, None, :].expand(-1, -1, rows.shape[2], -1))


def cover(weights: torch.Tensor, share: float) -> torch.Tensor:
    """[..., n] ≥ 0 → bool: the fewest of the last axis, largest first, that hold `share` of their sum; at least one."""
    ordered, order = weights.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    keep = before < share * weights.sum(-1, keepdim=True)
    keep[..., 0] = True
    return torch.zeros_like(keep).scatter_(-1, order, keep)


def largest(weights: torch.Tensor, count) -> torch.Tensor:
    """[..., n] → bool: the `count` largest of the last axis; count: a number, or a tensor [...]."""
    rank = weights.argsort(-1, descending=True).argsort(-1)
    return rank < (count[..., None] if torch.is_tensor(count) else count)
