"""The first layer of a network on pairs, as one reads it: features side by side, then a linear layer (DIN: Zhou et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from userec.errors import UserError
from userec.kernel.contract import Case, Cost


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
    """W [v; x; v - x; v * x] + b, or W [v; x; v * x] + b without `difference`: weight [hidden, (3 + difference) W].

    With `which_v` and `which_x` [K] int64 the pairs (v[which_v[i]], x[which_x[i]]) of v [M, W] and x [N, W] -> [K, hidden].
    Without: every v with every x, x [N, W], or [M, N, W] where every v has its own -> [M, N, hidden]."""
    check_pairs(v, x, weight, which_v, which_x, difference)
    if which_v is not None and which_x is not None:
        v, x = v[which_v], x[which_x]  # [K, W]
    else:
        v = v.unsqueeze(1)  # [M, 1, W]
    v, x = torch.broadcast_tensors(v, x)
    features = [v, x, v - x, v * x] if difference else [v, x, v * x]
    return F.linear(torch.cat(features, -1), weight, bias)


def check_pairs(v: Tensor, x: Tensor, weight: Tensor, which_v: Tensor | None, which_x: Tensor | None, difference: bool) -> None:
    """Raises UserError where the shapes do not fit."""
    if (which_v is None) != (which_x is None):
        raise UserError("pair_linear: which_v and which_x name pairs together: give both, or neither for every v with every x")
    width, want = v.shape[-1], (3 + difference) * v.shape[-1]
    if x.shape[-1] != width or weight.shape[-1] != want:
        raise UserError(
            f"pair_linear: v is {width} wide, x {x.shape[-1]}, weight {weight.shape[-1]}: "
            f"with difference={difference} they must be {width}, {width} and {want}"
        )
    if x.dim() == 3 and (which_x is not None or len(x) != len(v)):
        raise UserError(f"pair_linear: x of three axes has rows for each of the {len(v)} v, not {len(x)}, and takes no which_x")


def cost(arguments: Mapping[str, Any]) -> Cost:
    """A pair is no less than one product v * x with its share of the weight; v, x, the weight and the result once."""
    v, x, weight = arguments["v"], arguments["x"], arguments["weight"]
    which = arguments.get("which_v")
    pairs = len(v) * x.shape[-2] if which is None else len(which)
    moved = v.numel() + x.numel() + weight.numel() + pairs * len(weight)
    return Cost(2.0 * pairs * v.shape[-1] * len(weight), float(v.element_size() * moved))


def cases() -> Iterable[Case]:
    """Named pairs and the grid, each with and without difference and bias; every v with its own x; nothing at all."""
    for difference in (True, False):
        told = "difference" if difference else "no difference"
        yield _case(f"pairs, {told}", pairs=40, difference=difference)
        yield _case(f"grid, {told}", difference=difference)
        yield _case(f"own, {told}", own=True, difference=difference)
    yield _case("pairs, no bias", pairs=40, biased=False)
    yield _case("grid, no bias", biased=False)
    yield _case("few pairs of many rows", pairs=3)
    yield _case("no pairs", pairs=0)
    yield _case("no x", rows=0)
    yield _case("no v", targets=0)


def _case(name: str, **settings: Any) -> Case:
    return Case(name, partial(_arguments, **settings), out=("shared",))


def _arguments(
    generator: Generator,
    pairs: int | None = None,
    own: bool = False,
    biased: bool = True,
    difference: bool = True,
    rows: int = 9,
    targets: int = 5,
) -> dict[str, Any]:
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    return {
        "v": draw(targets, 8),
        "x": draw(targets, rows, 8) if own else draw(rows, 8),
        "weight": draw(16, (3 + difference) * 8) / 4,
        "bias": draw(16) if biased else None,
        "which_v": torch.randint(1, targets, (pairs,), generator=generator) if pairs is not None else None,
        "which_x": torch.randint(2, rows, (pairs,), generator=generator) if pairs is not None else None,
        "difference": difference,
    }
