"""Jagged sequences: values [S, ...] of all users one after another, offsets [B + 1]; padded at once, or in buckets of like
length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

GROWTH: Final = 1.5
"""How much longer than the shortest of its bucket a row may be: at most 56 % of a bucket's squares are padding."""

EDGES: Final[dict[str, tuple[int, ...]]] = {
    "edges": (0, 1, 2, 15, 16, 17, 0),
    "blocks": (63, 64, 65, 1),
    "giant": (130, 1, 0, 2, 1, 1),
    "even": (5, 5, 5),
    "one": (1,),
    "empty": (0, 0),
    "nobody": (),
}
"""{name: lengths} by which every sequence op is proved: nothing, one, around the sizes of blocks, one giant among many tiny."""


def offsets_of(lengths: Iterable[int]) -> Tensor:
    """[B + 1] int64: where each user begins, and the end."""
    return torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)


def slots(offsets: Tensor, max_len: int, total: int) -> Tensor:
    """[S]: where each event stands in a flattened [B, max_len] block. Traceable: no shape depends on data."""
    offsets = offsets.long()
    lengths = offsets.diff()
    row = torch.repeat_interleave(torch.arange(len(lengths), device=offsets.device), lengths, output_size=total)
    return row * max_len + torch.arange(total, device=offsets.device) - offsets[row]


def pad(values: Tensor, offsets: Tensor, max_len: int) -> Tensor:
    """[S, ...] -> [B, max_len, ...], zeros at padding."""
    out = values.new_zeros((len(offsets) - 1) * max_len, *values.shape[1:])
    return out.index_copy(0, slots(offsets, max_len, len(values)), values).reshape(len(offsets) - 1, max_len, *values.shape[1:])


def unpad(padded: Tensor, offsets: Tensor, total: int) -> Tensor:
    """[B, max_len, ...] -> [S, ...]: the inverse of `pad`."""
    return padded.flatten(0, 1).index_select(0, slots(offsets, padded.shape[1], total))


@dataclass(frozen=True)
class Bucket:
    """Users of like length: b rows of at most `length` events, n events in all."""

    rows: Tensor  # [b] users
    events: Tensor  # [n] places in the jagged values
    slot: Tensor | None  # [n] places in a flattened [b, length] block; None = all rows are full
    length: int

    def pad(self, values: Tensor) -> Tensor:
        """[S, ...] -> [b, length, ...], zeros at padding; differentiable."""
        own = values.index_select(0, self.events)
        if self.slot is not None:
            out = own.new_zeros(len(self.rows) * self.length, *values.shape[1:])
            own = out.index_copy(0, self.slot, own)
        return own.reshape(len(self.rows), self.length, *values.shape[1:])

    def pack(self, padded: Tensor) -> Tensor:
        """[b, length, ...] -> [n, ...], in the order of `events`."""
        flat = padded.flatten(0, 1)
        return flat if self.slot is None else flat.index_select(0, self.slot)


def buckets(offsets: Tensor, growth: float = GROWTH) -> list[Bucket]:
    """Users with events, shortest first, in buckets within which the longest is at most `growth` times the shortest."""
    starts = offsets.long().cpu().numpy()
    lengths = np.diff(starts)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    found = []
    low = 0
    while low < len(order):
        least = lengths[order[low]]
        high = int(np.searchsorted(lengths[order], max(int(least * growth), least), side="right"))
        rows = order[low:high]
        own, length = lengths[rows], int(lengths[rows[-1]])
        row = np.repeat(np.arange(len(rows)), own)
        place = np.arange(int(own.sum())) - np.repeat(np.cumsum(own) - own, own)  # [n] position in its row
        slot = None if (own == length).all() else torch.from_numpy(row * length + place)
        found.append(Bucket(torch.from_numpy(rows), torch.from_numpy(starts[rows][row] + place), slot, length))
        low = high
    return found


def gathered(parts: list[Tensor], found: list[Bucket], like: Tensor) -> Tensor:
    """What `Bucket.pack` gave of each bucket, back in jagged order: [S, ...]; differentiable. Of no buckets: zeros."""
    if not parts:
        return like.new_zeros(like.shape)
    order = torch.cat([bucket.events for bucket in found])
    return torch.cat(parts).index_select(0, torch.argsort(order))
