"""Counts of contexts, exact: n-grams are counted as rows, contexts are numbered by sorting, nothing is hashed.

A distribution after a context is worth_k n_k(x) + rest_k q_{k-1}(x): what followed the context itself, and, for the rest, what
follows the context without its oldest item. How much is left to the shorter one is each model's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from userec.batch import Query, gather_positions
from userec.schema import FIRST, Task

MERGE = 2**20
"""N-grams that may wait, at least, before they are merged."""


@dataclass(frozen=True)
class Order:
    """What followed each context of one length. A context is (the context without its oldest item, that item)."""

    contexts: Tensor  # [C] int64, ascending: id of the shorter context * n + oldest item; the index is the context's id
    totals: Tensor  # [C] float32: events that followed
    kinds: Tensor  # [C] float32: distinct items among them
    offsets: Tensor  # [C + 1] int64: where its successors lie
    pairs: Tensor  # [S] int64, ascending: context id * n + successor
    counts: Tensor  # [S] float32
    worth: Tensor  # [C] float32: what one count adds to its item's probability; by Witten-Bell 1 / (totals + kinds)
    rest: Tensor  # [C] float32: what is left to the shorter context: 1 - worth * totals

    def to(self, device: torch.device) -> Order:
        """The same on `device`."""
        return Order(**{name: value.to(device) for name, value in vars(self).items()})


class Grams(nn.Module):
    """The n-grams of all events and how often each stands there; the same whatever batches they came in."""

    rows: Tensor  # [M, order + 1] int32: the items before an event, oldest first, and the event; 0 where a sequence begins
    counts: Tensor  # [M] int64

    def __init__(self, order: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(0, order + 1, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self._new: list[np.ndarray] = []  # not merged yet

    def add(self, rows: np.ndarray) -> None:
        """Count n-grams [N, order + 1]; those that wait are merged when they are more than the merged ones."""
        self._new.append(rows)
        if sum(map(len, self._new)) > max(len(self.rows), MERGE):
            self.merged()

    def merged(self) -> Tensor:
        """Take what was added since into `rows` and `counts`; `counts` is another tensor whenever they have changed."""
        if self._new:
            counts = np.concatenate([self.counts.cpu().numpy(), np.ones(sum(map(len, self._new)), np.int64)])
            rows, counts = merge(np.concatenate([self.rows.cpu().numpy(), *self._new]), counts)
            self.rows, self.counts = (torch.from_numpy(x).to(self.counts.device) for x in (rows, counts))
            self._new = []
        return self.counts

    def popularity(self, size: int) -> np.ndarray:
        """How often each item of `size` ids stands there: [n] float64."""
        return np.bincount(self.rows[:, -1].cpu().numpy(), self.counts.cpu().numpy(), size)

    def orders(self, size: int, min_count: int) -> list[Order]:
        """Orders 1, 2, ... of `size` ids; contexts that fewer than `min_count` events followed are left out."""
        return orders(self.rows.cpu().numpy(), self.counts.cpu().numpy(), size, min_count)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.merged()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """The buffers take the lengths that were saved."""
        for name in ("rows", "counts"):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty(saved.shape, dtype=saved.dtype, device=self.counts.device))
        self._new = []
        super()._load_from_state_dict(state_dict, prefix, *rest)


def refusals(name: str, known: Sequence[Task], tasks: Sequence[str]) -> list[str]:
    """Why encoder `name`, which predicts which event follows and nothing else, cannot be trained on `tasks`."""
    own = " or ".join(f"--task {task.name}" for task in known if task.events)
    way = f"use {own}, or another model" if own else "use another model"
    labelled = [task.name for task in known if task.name in tasks and not task.events]
    return [f"encoder {name!r} predicts the next item only, not task {task!r}, which has labels: {way}" for task in labelled]


def grams(item: Tensor, asked: Tensor, order: int, start: Tensor | None = None) -> np.ndarray:
    """The `order` items before each asked event [B, L] and the event itself: [N, order + 1] int32, 0 before a row's start.

    `start` [B, L]: the position that begins each event's sequence, where that is not its row's."""
    windows = F.pad(item, (order, 0)).unfold(1, order + 1, 1)  # [B, L, order + 1]
    if start is not None:
        place = torch.arange(item.shape[1], device=item.device)[:, None] + torch.arange(-order, 1, device=item.device)
        windows = windows.masked_fill(place < start.unsqueeze(2), 0)
    return windows[asked].to(torch.int32).cpu().numpy()


def starts(session: Tensor) -> Tensor:
    """The position [B, L] that begins the session of each event of rows `session` [B, L]; an event of none is its own."""
    begins = torch.arange(session.shape[1], device=session.device).expand_as(session).clone()
    begins[:, 1:].masked_fill_((session[:, 1:] == session[:, :-1]) & (session[:, 1:] >= FIRST), 0)
    return begins.cummax(1).values


def merge(rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Equal rows [N, W] as one, in lexicographic order, their counts [N] added: whatever order they came in."""
    if not len(rows):
        return rows, counts
    order = np.lexsort(rows.T[::-1])
    rows, counts = rows[order], counts[order]
    first = np.append(True, (rows[1:] != rows[:-1]).any(1))
    return rows[first], np.add.reduceat(counts, np.flatnonzero(first))


def orders(rows: np.ndarray, counts: np.ndarray, n: int, min_count: int) -> list[Order]:
    """Orders 1, 2, ... of merged n-grams of ids below `n`; contexts that fewer than `min_count` events followed are left out."""
    longest = rows.shape[1] - 1
    context, found = np.zeros(len(rows), np.int64), []
    for k in range(1, longest + 1):
        oldest = rows[:, longest - k].astype(np.int64)
        inside = oldest > 0
        keys, number = np.unique(context[inside] * n + oldest[inside], return_inverse=True)
        totals = np.bincount(number, counts[inside], len(keys))
        frequent = totals >= min_count
        kept = np.flatnonzero(inside)[frequent[number]]
        context = (np.cumsum(frequent) - 1)[number[frequent[number]]]
        rows, counts = rows[kept], counts[kept]
        pairs, number = np.unique(context * n + rows[:, -1], return_inverse=True)
        kinds, totals = np.bincount(pairs // n, minlength=int(frequent.sum())), totals[frequent]
        found.append(
            Order(
                torch.from_numpy(keys[frequent]),
                torch.from_numpy(totals).float(),
                torch.from_numpy(kinds).float(),
                torch.from_numpy(np.append(0, np.cumsum(kinds))),
                torch.from_numpy(pairs),
                torch.from_numpy(np.bincount(number, counts, len(pairs))).float(),
                torch.from_numpy(1 / (totals + kinds)).float(),
                torch.from_numpy(kinds / (totals + kinds)).float(),
            )
        )
    return found


def lookup(ascending: Tensor, wanted: Tensor) -> Tensor:
    """The index of each wanted value in `ascending`, -1 where it is not there."""
    if not len(ascending):
        return torch.full_like(wanted, -1)
    at = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    return torch.where(ascending[at] == wanted, at, -1)


def interpolate(orders: list[Order], item: Tensor, query: Query, base: Tensor, size: int, start: Tensor | None = None) -> Tensor:
    """[B, Q, C] log-probabilities after the events `item` [B, L] up to `query.at`: of all `size` ids, or of `query.ids`.

    `base` [1|R, C] is the distribution of order 0 at those candidates, R = B * Q; `start` as in `grams`."""
    mass, path = _path(orders, item, query.at, size, start)
    p = mass[:, None] * base  # [R, C]
    if query.ids is None:
        for order, (context, weight) in zip(orders, path, strict=True):
            _add_successors(p, order, context, weight)
    else:
        ids = query.ids.expand(*query.at.shape, -1).flatten(0, 1)  # [R, C]
        for order, (context, weight) in zip(orders, path, strict=True):
            pair = lookup(order.pairs, torch.where(context >= 0, context * size, -size)[:, None] + ids)
            p += torch.where(pair >= 0, _at(order.counts, pair) * weight[:, None], 0.0)
    return p.clamp_(min=torch.finfo(p.dtype).tiny).log_().reshape(*query.at.shape, -1)


def _path(
    orders: list[Order], item: Tensor, at: Tensor, size: int, start: Tensor | None
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """What is left for order 0 [R]; of each order its context [R], -1 = never seen, and what one count there is worth [R]."""
    first = torch.zeros_like(at) if start is None else gather_positions(start, at)  # [B, Q]
    context, path = torch.zeros_like(at).flatten(), []
    for k, order in enumerate(orders):
        oldest = torch.where(at - k >= first, gather_positions(item, (at - k).clamp(min=-1)), 0).flatten()
        known = (context >= 0) & (oldest > 0)
        context = torch.where(known, lookup(order.contexts, context * size + oldest), -1)
        path.append(context)
    mass, weights = torch.ones(at.numel(), device=at.device), []
    for order, context in zip(reversed(orders), reversed(path), strict=True):
        weights.append(torch.where(context >= 0, mass * _at(order.worth, context), 0.0))
        mass = torch.where(context >= 0, mass * _at(order.rest, context), mass)
    return mass, list(zip(path, reversed(weights), strict=True))


def _at(values: Tensor, index: Tensor) -> Tensor:
    """`values` at `index`, anything where it is -1."""
    return values[index.clamp(min=0)] if len(values) else torch.ones_like(index, dtype=values.dtype)


def _add_successors(p: Tensor, order: Order, context: Tensor, weight: Tensor) -> None:
    """Add count * weight to `p` [R, n] at the successors of each row's context."""
    rows = (context >= 0).nonzero().squeeze(1)
    begin, number = order.offsets[context[rows]], order.kinds[context[rows]].long()
    owner = torch.repeat_interleave(rows, number)  # [sum of successors]
    first = torch.repeat_interleave(begin - (number.cumsum(0) - number), number)
    place = first + torch.arange(len(owner), device=p.device)
    p.view(-1).index_add_(0, owner * p.shape[1] + order.pairs[place] % p.shape[1], order.counts[place] * weight[owner])
