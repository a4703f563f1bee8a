"""Questions: a raw batch of training rows becomes a history and what is asked of it. Pure functions of (batch, rng).

A raw row holds `window + ahead` events, right-padded. What an answer is made of never stays in the history."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from userec.batch import Batch, History, Query, Targets, gather_positions
from userec.schema import FIRST, PAD

Positions = Literal["all", "last"] | int
"""Which positions of a row are asked: every one that an event follows, the last such, or so many at random."""


def next_item(batch: Batch, positions: Positions = "all", rng: torch.Generator | None = None) -> Batch:
    """Which item comes next: rows of window + 1 events -> histories [B, L] without each row's last event, Q questions.

    `weight` is 1 where an event with a real id follows. `all`: Q = L, `at` = 0..L-1. `last`: Q = 1. An int k: min(k, L)
    distinct positions a row in ascending order, drawn from `rng`; a shorter row has `at` -1 behind its own positions."""
    history = without_last(batch.history)
    following = batch.history.events["item"][:, 1:]  # [B, L]: the event that follows position l
    if positions == "all":
        at = torch.arange(following.shape[1], device=following.device).expand_as(following)  # [B, L]
        answer = following
    else:
        at = history.last.unsqueeze(1) if positions == "last" else _random_positions(history.mask, int(positions), rng)  # [B, Q]
        answer = gather_positions(following, at)
    context = {name: gather_positions(values, at) for name, values in history.asked.items()}
    ends = None if batch.ends is None else batch.ends - batch.history.mask.any(1).long()
    targets = Targets(Query(at, context=context), answer, weight=(answer >= FIRST).float())
    return dataclasses.replace(batch, history=history, ends=ends, targets=targets)


def without_last(history: History) -> History:
    """Each row without its last event: [B, W + 1] -> [B, W]. The slot where it stood is padding, in every field: zero."""
    mask = history.mask[:, 1:]
    return dataclasses.replace(history, mask=mask, events=_cut(history.events, mask), asked=_cut(history.asked, mask))


def _cut(fields: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
    return {name: _zeroed(values[:, :-1], mask) for name, values in fields.items()}


def _zeroed(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask.reshape(*mask.shape, *[1] * (values.dim() - 2)), PAD)


def _random_positions(mask: Tensor, count: int, rng: torch.Generator | None) -> Tensor:
    """[B, min(count, L)] distinct positions of real events, ascending, -1 where a row has fewer."""
    keys = torch.rand(mask.shape, generator=rng, device=rng.device if rng is not None else mask.device).to(mask.device)
    chosen = keys.masked_fill(~mask, -1).topk(min(count, mask.shape[1]), dim=1)  # [B, Q]
    behind = mask.shape[1]
    at = chosen.indices.masked_fill(chosen.values < 0, behind).sort(1).values
    return at.masked_fill(at == behind, -1)
