"""A network on a pair of vectors: the local activation unit (event, target), and the head on top (interest, target)."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn

from userec.encoder.contract import Build
from userec_target_attention.activations import Activation, activation

BLOCK: Final = 2048
"""Pairs that go through the layers together where no gradient is asked for: what a layer leaves stays in a core's cache."""


class PairNetwork(nn.Module):
    """An MLP on [v, x, v - x, v * x], or on [v, x, v * x] without `difference`, to one number; no activation at the end.

    Its first layer is the kernel `pair_linear`: what makes no pair's features is faster than what does."""

    def __init__(self, build: Build, width: int, hidden: tuple[int, ...], kind: Activation, difference: bool) -> None:
        super().__init__()
        self.difference = difference
        self.pair_linear = build.op("pair_linear")
        self.first = nn.Linear((3 + difference) * width, hidden[0])
        layers: list[nn.Module] = [activation(kind, hidden[0])]
        for before, after in pairwise(hidden):
            layers += [nn.Linear(before, after), activation(kind, after)]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, v: Tensor, x: Tensor, real: Tensor) -> Tensor:
        """v [..., width] with x [..., width] wherever `real` [...]: axes of size 1 are shared -> [...], 0 where not real."""
        cells = real.nonzero(as_tuple=True)
        which_v, which_x = _places(v.shape[:-1], cells), _places(x.shape[:-1], cells)  # [K] each
        v, x = v.flatten(0, -2), x.flatten(0, -2)
        size = max(len(which_v) if self.training or torch.is_grad_enabled() else BLOCK, 1)
        parts = [self._pairs(v, x, i, j) for i, j in zip(which_v.split(size), which_x.split(size), strict=True)]
        found = torch.cat(parts)
        return found.new_zeros(real.shape).masked_scatter(real, found)

    def across(self, v: Tensor, x: Tensor) -> Tensor:
        """v [m, width] with each x: [n, width], or [m, n, width] where every v has its own -> [m, n]. Eval mode alone."""
        count = x.shape[-2]
        out = x.new_empty(len(v), count)
        together = max(BLOCK // max(count, 1), 1)
        for low in range(0, len(v), together):
            some = slice(low, low + together)
            own = x[some] if x.dim() == 3 else x
            for start in range(0, count, BLOCK):
                rows = slice(start, start + BLOCK)
                out[some, rows] = self._pairs(v[some], own[..., rows, :])
        return out

    def _pairs(self, v: Tensor, x: Tensor, *which: Tensor) -> Tensor:
        """The pairs named, [K], or every v with every x, [m, n]."""
        first = self.pair_linear(v, x, self.first.weight, self.first.bias, *which, difference=self.difference)  # [..., hidden]
        return self.rest(first.flatten(0, -2)).view(first.shape[:-1])


def _places(shape: torch.Size, cells: tuple[Tensor, ...]) -> Tensor:
    """Where cells (an index [K] an axis) stand in a flattened block of that shape; an axis of size 1 is shared by all."""
    place = torch.zeros_like(cells[0])
    for size, index in zip(shape, cells, strict=True):
        place = place * size + (index if size > 1 else 0)
    return place
