"""Hamming top-k by one whole number an event, distance before recency: made and picked while it is in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from userec.kernel.reference.hamming_topk import check_codes
from userec.kernel.reference.simhash_pack import BITS

Numbers = np.ndarray[Any, Any]
BLOCK: Final = 2**17
"""Pairs of query and event a block."""
GROUP: Final = 16
"""Events a group at most."""


def hamming_topk(queries: Tensor, codes: Tensor, mask: Tensor | None = None, *, count: int) -> tuple[Tensor, Tensor]:
    """As the reference. No two events of a row have equal keys, so the `count` nearest lie in the `count` groups whose least keys
    are least: only those are sorted, however many events are equally far."""
    check_codes(queries, codes, mask, count)
    index, distance = _nearest(queries, codes, mask, count)
    return index, distance


def by_table(words: Numbers, out: Numbers | None = None) -> Numbers:
    """Bits set in each uint64, 16 at a time, by a table: for numpy before 2.0."""
    return _TABLE[words.view(np.uint16)].reshape(*words.shape, 4).sum(-1, dtype=np.uint8, out=out)


_TABLE: Final = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, dtype=np.uint8)
bit_count: Any = getattr(np, "bitwise_count", by_table)
"""Of uint64 words, into uint8: of signed ones numpy would count the bits of the absolute value."""


@dataclass(frozen=True)
class _Keys:
    """distance << shift | age, the last event being of age 0: the least key is the nearest event, the newest first."""

    words: int
    length: int

    @property
    def narrow(self) -> Any:
        """Of distances; its greatest, all ones, is the distance of what is not allowed."""
        return np.uint8 if BITS * self.words < 255 else np.uint16

    @property
    def far(self) -> int:
        """Beyond any true distance."""
        return int(np.iinfo(self.narrow).max)

    @property
    def shift(self) -> int:
        """Bits of an age."""
        return max(self.length - 1, 0).bit_length()

    @property
    def wide(self) -> Any:
        """Of keys; its greatest is no key."""
        return np.uint32 if (self.far << self.shift).bit_length() < 32 else np.uint64


@custom_op("userec::cpu_hamming_topk", mutates_args=())
def _nearest(queries: Tensor, codes: Tensor, mask: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    users, candidates, words = queries.shape
    length = codes.shape[1]
    index = np.full((users, candidates, count), -1)
    distance = np.full((users, candidates, count), BITS * words + 1)
    if index.size and length:
        keys, wanted = _Keys(words, length), min(count, length)
        for own, made in _blocks(keys, queries.numpy(), codes.numpy(), None if mask is None else mask.numpy(), wanted):
            least = _least(made, wanted)
            apart = least >> keys.shift
            allowed = apart < keys.far
            distance[*own, :wanted][allowed] = apart[allowed]
            index[*own, :wanted][allowed] = length - 1 - (least & ((1 << keys.shift) - 1))[allowed]
    return torch.from_numpy(index), torch.from_numpy(distance)


def _blocks(
    keys: _Keys, queries: Numbers, codes: Numbers, mask: Numbers | None, wanted: int
) -> Iterator[tuple[tuple[slice, slice], Numbers]]:
    """Users and candidates of a block (several users, or a part of one's candidates), and the keys [b, c, G, groups] of their
    events, in one buffer for all blocks: a fresh one would pay for page faults."""
    users, candidates, _ = queries.shape
    length = keys.length
    group = min(GROUP, max(1, length // (4 * wanted)))
    width = -(-length // group) * group
    many, some = min(candidates, max(1, BLOCK // length)), min(users, max(1, BLOCK // (candidates * length)))
    differing = np.empty((some, many, length), np.uint64)
    counted: Numbers = np.empty((some, many, length), keys.narrow)
    filled: Numbers = np.full((some, many, width), np.iinfo(keys.wide).max, keys.wide)  # past `length` it stays
    asked, held = (x.transpose(2, 0, 1).view(np.uint64) for x in (queries, codes))  # [W, B, C], [W, B, L]
    ages = np.arange(length - 1, -1, -1).astype(keys.wide)
    barred = None if mask is None else (mask if mask.ndim == 3 else mask[:, None]).view(np.uint8)  # [B, C|1, L]
    for user in range(0, users, some):
        for candidate in range(0, candidates, many):
            own = slice(user, user + some), slice(candidate, candidate + many)
            part = slice(min(some, users - user)), slice(min(many, candidates - candidate))
            apart, block = counted[part], filled[*part, :length]
            for word in range(keys.words):
                np.bitwise_xor(asked[word, *own, None], held[word, own[0], None], out=differing[part])
                if word:
                    apart += bit_count(differing[part])
                else:
                    bit_count(differing[part], out=apart)
            if barred is not None:
                apart |= np.subtract(barred[own if barred.shape[1] > 1 else own[0]], 1, dtype=keys.narrow)  # 0 - 1: all ones
            block[...] = apart
            block <<= keys.wide(keys.shift)
            block |= ages
            yield own, filled[part].reshape(*block.shape[:2], group, -1)


def _least(keys: Numbers, wanted: int) -> Numbers:
    """The `wanted` least of keys [b, c, G, groups], ascending: [b, c, wanted] int64."""
    outer, (group, groups) = keys.shape[:2], keys.shape[2:]
    flat = keys.reshape(-1, group, groups)  # [r, G, groups]
    rows = len(flat)
    nearest = flat.min(1)  # [r, groups]
    bound = np.partition(nearest, wanted - 1, axis=1)[:, wanted - 1, None]
    first = np.flatnonzero(nearest <= bound).reshape(rows, 1, wanted)  # no two are equal: as many in every row
    first += np.arange(rows)[:, None, None] * (groups * (group - 1))
    found = flat.reshape(-1)[first + np.arange(group)[:, None] * groups].reshape(rows, -1)  # [r, G wanted]
    found.sort(axis=1)
    return found[:, :wanted].astype(np.int64).reshape(*outer, wanted)


@_nearest.register_fake
def _(queries: Tensor, codes: Tensor, mask: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    shape = (*queries.shape[:2], count)
    return queries.new_empty(shape), queries.new_empty(shape)
