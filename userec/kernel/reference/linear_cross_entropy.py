"""Cross-entropy of a linear layer over a whole catalogue, as one reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from userec.errors import UserError
from userec.kernel.contract import Case, Cost, Layout


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, reduction: str = "none") -> Tensor:
    """-log softmax(x W^T + b)[target]: x [N, D], weight [V, D], bias [V], target [N] -> [N], or their mean.

    The mean of no rows is 0. Raises UserError where the shapes do not fit, or `reduction` is neither `none` nor `mean`."""
    check("linear_cross_entropy", x, weight, bias, target, reduction)
    logits = x @ weight.T  # [N, V]
    if bias is not None:
        logits = logits + bias
    losses = torch.logsumexp(logits, dim=1) - logits.gather(1, target[:, None]).squeeze(1)  # [N]
    return losses.sum() / max(len(x), 1) if reduction == "mean" else losses


def check(op: str, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, reduction: str) -> None:
    """Raise UserError where the shapes do not fit each other, or `reduction` is no known word."""
    if reduction not in ("none", "mean"):
        raise UserError(f"{op}: reduction is 'none' or 'mean', not {reduction!r}")
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise UserError(f"{op}: x [N, D] and weight [V, D] do not fit: {[*x.shape]} and {[*weight.shape]}")
    if target.shape != x.shape[:1]:
        raise UserError(f"{op}: target has the shape {[*target.shape]}, one class a row of x would be [{len(x)}]")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UserError(f"{op}: bias has the shape {[*bias.shape]}, one number a row of weight would be [{len(weight)}]")


def cost(arguments: Mapping[str, Any]) -> Cost:
    """One product; x, weight and the losses once."""
    x, weight = arguments["x"], arguments["weight"]
    return Cost(2.0 * x.numel() * len(weight), x.element_size() * float(x.numel() + weight.numel() + len(x)))


def cases() -> Iterable[Case]:
    """Both reductions with and without a bias; no row, one, and around the rows of a block; one class; large logits."""
    for reduction in ("mean", "none"):
        yield _case(f"{reduction}", 40, reduction=reduction)
        yield _case(f"{reduction}, no bias", 40, reduction=reduction, bias=False)
        for rows in (0, 1, 511, 512, 513):
            yield _case(f"{reduction} of {rows}", rows, reduction=reduction)
    yield _case("one class", 5, classes=1)
    yield replace(_case("large logits", 20, scale=10.0), user=())  # a small loss of large logits has few digits left


def _case(name: str, rows: int, **settings: Any) -> Case:
    out: Layout = "shared" if settings.get("reduction") == "mean" else "user"
    return Case(name, partial(_arguments, rows, **settings), user=("x", "target"), out=(out,))


def _arguments(
    rows: int,
    generator: Generator,
    reduction: str = "none",
    bias: bool = True,
    classes: int = 23,
    scale: float = 0.3,
) -> dict[str, Any]:
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    return {
        "x": scale * draw(rows, 8),
        "weight": draw(classes, 8),
        "bias": draw(classes) if bias else None,
        "target": torch.randint(classes, (rows,), generator=generator),
        "reduction": reduction,
    }
