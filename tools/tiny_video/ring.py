"""Rows of several tensors on a device, of which new ones replace the oldest."""

from __future__ import annotations

import torch


class Ring:
    def __init__(self, capacity: int, device, **fields: tuple[tuple[int, ...], torch.dtype]):
        """fields: name -> (shape of a row, dtype)."""
        self.capacity, self.device = capacity, device
        self.fields = {name: torch.empty(capacity, *shape, dtype=dtype, device=device) for name, (shape, dtype) in fields.items()}
        self.filled, self.next, self.drawn = 0, 0, 0

    def put(self, **rows: torch.Tensor) -> None:
        """As many new rows in every field."""
        count = len(next(iter(rows.values())))
        where = ((torch.arange(count) + self.next) % self.capacity).to(self.device)
        for name, field in self.fields.items():
            field[where] = rows[name].to(self.device, field.dtype)
        self.next = (self.next + count) % self.capacity
        self.filled = min(self.capacity, self.filled + count)
        self.drawn += count

    def rows(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Numbers of rows, drawn evenly, with repeats."""
        return torch.randint(self.filled, (count,), device=self.device, generator=generator)
