"""The first layer of a network on pairs, without its features: what v and x give alone is computed once for each.

W [v; x; v - x; v * x] = (Wv + Wd) v + (Wx - Wd) x + Wp (v * x). For one v this is linear in x, with weight Wx - Wd + Wp diag(v):
every x against every v is a matrix product a v, in which no pair's features are written down."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from userec.kernel.reference.pair_linear import check_pairs

MANY: Final = 8
"""Pairs a row from which on it does not pay to look for the rows that none names."""


def pair_linear(
    v: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    which_v: Tensor | None = None,
    which_x: Tensor | None = None,
    *,
    difference: bool,
) -> Tensor:
    """As the reference. Of few named pairs only the rows between the first and the last named go through."""
    check_pairs(v, x, weight, which_v, which_x, difference)
    of_v, of_x, of_both = _columns(weight, difference)
    if which_v is None or which_x is None:
        own = torch.addcmul(of_x, of_both, v.unsqueeze(1)).transpose(1, 2)  # [M, W, hidden]
        of_each = F.linear(v, of_v, bias).unsqueeze(1)  # [M, 1, hidden]
        return torch.baddbmm(of_each, x if x.dim() == 3 else x.expand(len(v), -1, -1), own)
    v, which_v = _named(v, which_v)
    x, which_x = _named(x, which_x)
    # F.embedding gathers: its backward is the fast one
    both = F.linear(F.embedding(which_v, v) * F.embedding(which_x, x), of_both, bias)  # [K, hidden]
    return both + F.embedding(which_v, F.linear(v, of_v)) + F.embedding(which_x, F.linear(x, of_x))


def _columns(weight: Tensor, difference: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What multiplies v, x and v * x: [hidden, W] each."""
    if not difference:
        of_v, of_x, of_both = weight.chunk(3, 1)
        return of_v, of_x, of_both
    of_v, of_x, apart, of_both = weight.chunk(4, 1)
    return of_v + apart, of_x - apart, of_both


def _named(rows: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """The rows from the first named to the last, and where the named stand in them: a block of pairs lies close together."""
    if not len(which) or len(which) >= MANY * len(rows):
        return rows, which
    low, high = (int(end) for end in which.aminmax())
    return rows[low : high + 1], which - low
