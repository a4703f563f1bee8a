"""Sums and means of embeddings over each user's events: bags of rows of a table, of any length."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Generator, Tensor

from userec.errors import UserError, unknown
from userec.kernel.contract import Case, Cost
from userec.kernel.dtypes import wide
from userec.kernel.jagged import EDGES, offsets_of

MODES: Final = ("sum", "mean")


def jagged_embedding_bag(weight: Tensor, ids: Tensor, offsets: Tensor, factors: Tensor | None = None, *, mode: str) -> Tensor:
    """weight [V, D], ids [S], offsets [B + 1], factors [S] -> [B, D]: the sum of each user's rows weight[ids], times `factors`
    where given, or their mean; of no events: zeros. Id 0 is a row like any other."""
    check_bag(weight, ids, factors, mode)
    lengths = offsets.diff().long()
    user = torch.repeat_interleave(torch.arange(len(lengths), device=ids.device), lengths, output_size=len(ids))  # [S]
    rows = wide(weight.index_select(0, ids))  # [S, D]
    if factors is not None:
        rows = rows * factors[:, None].to(rows.dtype)
    out = rows.new_zeros(len(lengths), weight.shape[1]).index_add(0, user, rows)
    if mode == "mean":
        out = out / lengths.clamp(min=1)[:, None]
    return out.to(weight.dtype)


def check_bag(weight: Tensor, ids: Tensor, factors: Tensor | None, mode: str) -> None:
    """Raises UserError for an unknown mode, factors with a mean, and shapes that do not fit."""
    if mode not in MODES:
        raise unknown("mode of jagged_embedding_bag", mode, MODES)
    if weight.dim() != 2 or ids.dim() != 1:
        raise UserError(f"jagged_embedding_bag: weight is {tuple(weight.shape)}, ids {tuple(ids.shape)}: give [V, D] and [S]")
    if factors is not None and mode != "sum":
        raise UserError("jagged_embedding_bag: factors go with mode='sum' alone: divide them by their sum for a weighted mean")
    if factors is not None and factors.shape != ids.shape:
        raise UserError(f"jagged_embedding_bag: factors are {tuple(factors.shape)}, ids {tuple(ids.shape)}: one an event")


def cost(arguments: Mapping[str, Any]) -> Cost:
    """An addition, and a product where there are factors, for each number gathered; what is gathered and the result once."""
    weight, ids, factors = arguments["weight"], arguments["ids"], arguments.get("factors")
    width, users = weight.shape[1], len(arguments["offsets"]) - 1
    words = len(ids) * width + users * width + (0 if factors is None else len(ids))
    return Cost(len(ids) * width * (1.0 if factors is None else 2.0), float(weight.element_size() * words + 8 * len(ids)))


def cases() -> Iterable[Case]:
    """Every layout of lengths as a sum, a mean and with factors; one row of the table for all events; one column."""
    event = ("ids", "factors")
    for name, lengths in EDGES.items():
        for settings in ({"mode": "sum", "factors": True}, {"mode": "sum"}, {"mode": "mean"}):
            told = f"{name}, {settings['mode']}" + (", factors" if "factors" in settings else "")
            yield Case(told, partial(_arguments, lengths, **settings), event, out=("user",))  # type: ignore[arg-type]
    yield Case("one id", partial(_arguments, EDGES["edges"], mode="sum", entries=1), event, out=("user",))
    yield Case("one column", partial(_arguments, EDGES["edges"], mode="mean", width=1), event, out=("user",))


def _arguments(
    lengths: tuple[int, ...], generator: Generator, mode: str, factors: bool = False, entries: int = 29, width: int = 8
) -> dict[str, Any]:
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    return {
        "weight": draw(entries, width),
        "ids": torch.randint(0, entries, (sum(lengths),), generator=generator),
        "offsets": offsets_of(lengths),
        "factors": draw(sum(lengths)) if factors else None,
        "mode": mode,
    }
