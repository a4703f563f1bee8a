"""Jagged sequences: values [S, ...] of all users one after another, offsets [B + 1]; padded at once, or in buckets of like
length."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from userec.errors import UserError

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


def host(offsets: Tensor, total: int) -> np.ndarray:
    """[B + 1] int64 as numpy. Raises UserError unless they rise from 0 to `total`: else an event is nobody's, or two users'."""
    starts = offsets.detach().long().cpu().numpy()
    if not len(starts) or starts[0] != 0 or starts[-1] != total or (np.diff(starts) < 0).any():
        told = f"from {starts[0]} to {starts[-1]}" if len(starts) else "nowhere"
        raise UserError(f"offsets must rise from 0 to the {total} events, these go {told}: give each user's start, and the end")
    return starts


def slots(offsets: Tensor, max_len: int, total: int) -> Tensor:
    """[S]: where each event stands in a flattened [B, max_len] block. Traceable: no shape depends on data.

    Raises UserError on a CPU for offsets that do not cover the events, and for a user of more than `max_len`."""
    offsets = offsets.long()
    lengths = offsets.diff()
    if offsets.device.type == "cpu" and not torch.compiler.is_compiling():
        longest = int(np.diff(host(offsets, total)).max(initial=0))
        if longest > max_len:
            raise UserError(f"a user has {longest} events, max_len is {max_len}: give the longest length or more")
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

    rows: Tensor  # [b] users, ascending
    events: Tensor  # [n] places in the jagged values
    slot: Tensor | None  # [n] places in a flattened [b, length] block; None = all rows are full
    length: int
    whole: bool  # all events of all users, in order: none has to be moved
    sources: Tensor  # [b * length] the event at each place of the block, at padding the row's last
    gaps: Tensor  # [b * length - n] the places of padding

    def pad(self, values: Tensor) -> Tensor:
        """[S, ...] -> [b, length, ...], zeros at padding; differentiable. A view where there is nothing to do."""
        if self.slot is not None or not self.whole:  # a selection is five times faster than a copy to `slot`
            values = values.index_select(0, self.sources)
        if self.slot is not None:
            values = values.index_fill_(0, self.gaps, 0)
        return values.unflatten(0, (len(self.rows), self.length))

    def pack(self, padded: Tensor) -> Tensor:
        """[b, length, ...] -> [n, ...], in the order of `events`."""
        flat = padded.flatten(0, 1)
        return flat if self.slot is None else flat.index_select(0, self.slot)


def buckets(offsets: Tensor, growth: float = GROWTH, *, total: int) -> list[Bucket]:
    """Users with events, the shortest first, in buckets within which the longest is at most `growth` times the shortest. Raises
    UserError for offsets that do not cover the `total` events."""
    starts = host(offsets, total)
    lengths = np.diff(starts)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    ordered = lengths[order]
    found = []
    low = 0
    while low < len(order):
        least = ordered[low]
        high = int(np.searchsorted(ordered, max(int(least * growth), least), side="right"))
        found.append(_bucket(np.sort(order[low:high]), starts, lengths))
        low = high
    return found


def _bucket(rows: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Bucket:
    """Of users in ascending order, each with events."""
    own, length = lengths[rows, None], int(lengths[rows].max())
    place = np.arange(length)
    sources = (starts[rows, None] + np.minimum(place, own - 1)).ravel()
    real = (place < own).ravel()
    slot = np.flatnonzero(real)
    full, whole = len(slot) == len(real), len(slot) == starts[-1] - starts[0]
    return Bucket(
        rows=torch.from_numpy(rows),
        events=torch.from_numpy(sources[slot]),
        slot=None if full else torch.from_numpy(slot),
        length=length,
        whole=bool(whole),
        sources=torch.from_numpy(sources),
        gaps=torch.from_numpy(np.flatnonzero(~real)),
    )


def gathered(parts: list[Tensor], found: list[Bucket], like: Tensor) -> Tensor:
    """What `Bucket.pack` gave of each bucket, back in jagged order: [S, ...]; differentiable. Of no buckets: zeros."""
    if not parts:
        return like.new_zeros(like.shape)
    if found[0].whole:
        return parts[0]
    order = torch.cat([bucket.events for bucket in found]).numpy()
    inverse = np.empty_like(order)
    inverse[order] = np.arange(len(order))
    return torch.cat(parts).index_select(0, torch.from_numpy(inverse))
