"""A network on a pair of vectors: the local activation unit (event, target), and the head on top (interest, target)."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from userec_target_attention.activations import Activation, activation

BLOCK: Final = 1024
"""Pairs that go through the layers together where no gradient is asked for: what a layer leaves stays in a core's cache."""


class PairNetwork(nn.Module):
    """An MLP on [v, x, v - x, v * x], or on [v, x, v * x] without `difference`, to one number; no activation at the end.

    The concatenation is never made. W [v; x; v - x; v * x] = (Wv + Wd) v + (Wx - Wd) x + Wp (v * x): the first two are computed
    once for each v and x, whatever the number of pairs. For one v this is linear in x, with weight Wx - Wd + Wp diag(v): so
    every x against every v (`across`) is a matrix product a v, in which no pair's features are written down."""

    def __init__(self, width: int, hidden: tuple[int, ...], kind: Activation, difference: bool) -> None:
        super().__init__()
        self.width, self.difference = width, difference
        self.first = nn.Linear((3 + difference) * width, hidden[0])
        layers: list[nn.Module] = [activation(kind, hidden[0])]
        for before, after in pairwise(hidden):
            layers += [nn.Linear(before, after), activation(kind, after)]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def columns(self) -> tuple[Tensor, Tensor, Tensor]:
        """What multiplies v, x and v * x: [hidden, width] each."""
        if not self.difference:
            of_v, of_x, of_both = self.first.weight.split(self.width, 1)
            return of_v, of_x, of_both
        of_v, of_x, apart, of_both = self.first.weight.split(self.width, 1)
        return of_v + apart, of_x - apart, of_both

    def forward(self, v: Tensor, x: Tensor, real: Tensor) -> Tensor:
        """v [..., width] with x [..., width] wherever `real` [...]: axes of size 1 are shared -> [...], 0 where not real."""
        of_v, of_x, of_both = self.columns()
        cells = real.nonzero(as_tuple=True)
        which_v, which_x = _places(v.shape[:-1], cells), _places(x.shape[:-1], cells)  # [K] each
        v, x = v.flatten(0, -2), x.flatten(0, -2)
        first_v, first_x = F.linear(v, of_v, self.first.bias), F.linear(x, of_x)  # [., hidden]
        size = max(len(which_v) if self.training or torch.is_grad_enabled() else BLOCK, 1)
        parts = []
        for i, j in zip(which_v.split(size), which_x.split(size), strict=True):
            both = F.linear(F.embedding(i, v) * F.embedding(j, x), of_both)  # [K, hidden]; its backward is the fast one
            parts.append(self.rest(both + F.embedding(i, first_v) + F.embedding(j, first_x)).squeeze(1))
        found = torch.cat(parts)
        return found.new_zeros(real.shape).masked_scatter(real, found)

    def across(self, v: Tensor, x: Tensor) -> Tensor:
        """v [m, width] with each x: [n, width], or [m, n, width] where every v has its own -> [m, n]. Eval mode alone."""
        of_v, of_x, of_both = self.columns()
        bias = F.linear(v, of_v, self.first.bias).unsqueeze(1)  # [m, 1, hidden]
        count = x.shape[-2]
        out = x.new_empty(len(v), count)
        together = max(BLOCK // max(count, 1), 1)
        for low in range(0, len(v), together):
            some = slice(low, low + together)
            weight = torch.addcmul(of_x, of_both, v[some].unsqueeze(1)).transpose(1, 2)  # [g, width, hidden]
            own = x[some] if x.dim() == 3 else x.expand(len(weight), -1, -1)
            for start in range(0, count, BLOCK):
                rows = slice(start, start + BLOCK)
                first = torch.baddbmm(bias[some], own[:, rows], weight)  # [g, r, hidden]
                out[some, rows] = self.rest(first.flatten(0, 1)).view(first.shape[:2])
        return out


def _places(shape: torch.Size, cells: tuple[Tensor, ...]) -> Tensor:
    """Where cells (an index [K] an axis) stand in a flattened block of that shape; an axis of size 1 is shared by all."""
    place = torch.zeros_like(cells[0])
    for size, index in zip(shape, cells, strict=True):
        place = place * size + (index if size > 1 else 0)
    return place
