"""Counts of contexts, exact: n-grams are counted as rows, contexts are numbered by sorting, nothing is hashed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """What followed each context of one length. A context is (the context without its oldest item, that item)."""

    contexts: Tensor  # [C] int64, ascending: id of the shorter context * n + oldest item; the index is the context's id
    totals: Tensor  # [C] float32: events that followed
    kinds: Tensor  # [C] float32: distinct items among them
    offsets: Tensor  # [C + 1] int64: where its successors lie
    pairs: Tensor  # [S] int64, ascending: context id * n + successor
    counts: Tensor  # [S] float32

    def to(self, device: torch.device) -> Order:
        """The same on `device`."""
        return Order(**{name: value.to(device) for name, value in vars(self).items()})


def grams(item: Tensor, asked: Tensor, order: int) -> np.ndarray:
    """The `order` items before each asked event [B, L] and the event itself: [N, order + 1] int32, 0 before a row's start."""
    padded = torch.cat([item.new_zeros(len(item), order), item], 1)
    return padded.unfold(1, order + 1, 1)[asked].to(torch.int32).cpu().numpy()


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
        kinds = np.bincount(pairs // n, minlength=int(frequent.sum()))
        found.append(
            Order(
                torch.from_numpy(keys[frequent]),
                torch.from_numpy(totals[frequent]).float(),
                torch.from_numpy(kinds).float(),
                torch.from_numpy(np.append(0, np.cumsum(kinds))),
                torch.from_numpy(pairs),
                torch.from_numpy(np.bincount(number, counts, len(pairs))).float(),
            )
        )
    return found


def lookup(ascending: Tensor, wanted: Tensor) -> Tensor:
    """The index of each wanted value in `ascending`, -1 where it is not there."""
    if not len(ascending):
        return torch.full_like(wanted, -1)
    at = torch.searchsorted(ascending, wanted).clamp(max=len(ascending) - 1)
    return torch.where(ascending[at] == wanted, at, -1)
