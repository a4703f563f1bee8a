"""Where the relevant candidates stand, without sorting the catalogue: exact counts per tie group, added up chunk by chunk.

A model's scores order the candidates only up to ties. For each relevant candidate four counts are enough to give the
expected value of every ranking metric over all orderings of its ties (McSherry & Najork, ECIR 2008)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from userec.schema import FIRST, PAD

BLOCK = 1 << 18
"""Scores compared at once (1 MB in float32): the comparison's buffer stays in cache."""

EXACT = 1 << 24
"""Ones that float32 adds up without error: columns of a block never reach it."""


@dataclass(frozen=True)
class Ranks:
    """Tie groups of N queries' relevant candidates, one row per relevant candidate that can be ranked, M in all.

    A relevant candidate of unknown id has no row; it counts in `targets`, so it is missed."""

    query: np.ndarray  # [M] int64, ascending: the query it belongs to
    above: np.ndarray  # [M] int64: candidates scored strictly higher, relevant ones among them
    tied: np.ndarray  # [M] int64: candidates of its score, itself among them
    relevant: np.ndarray  # [M] int64: relevant ones among the tied, itself among them
    before: np.ndarray  # [M] int64: relevant ones among those above
    targets: np.ndarray  # [N] int64: relevant candidates of each query, unknown ones too

    @classmethod
    def join(cls, parts: Sequence[Ranks]) -> Ranks:
        """The queries of all parts, in order."""
        if not parts:
            return cls(*(np.zeros(0, np.int64) for _ in range(6)))
        shifts = np.cumsum([0] + [len(part.targets) for part in parts[:-1]])
        query = np.concatenate([part.query + shift for part, shift in zip(parts, shifts, strict=True)])
        names = ("above", "tied", "relevant", "before", "targets")
        return cls(query, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))


class Tally:
    """Counts for B queries with P relevant candidates each; `add` the scores of the others in chunks of any size."""

    def __init__(self, ids: Tensor, scores: Tensor) -> None:
        """`ids` [B, P] (0 = padding, 1 = unknown, a repeated id counts once) and their `scores` [B, P]."""
        ids, order = ids.sort(dim=1, descending=True)  # real ids first, unknown ones, padding
        again = torch.zeros_like(ids, dtype=torch.bool)
        again[:, 1:] = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] >= FIRST)
        self.ids = ids.masked_fill(again, PAD)
        self.known = self.ids >= FIRST  # [B, P]
        self.lengths = (ids >= FIRST).sum(1).tolist()
        self.scores = scores.gather(1, order).masked_fill(~self.known, float("nan"))
        self.above = torch.zeros_like(ids)
        self.tied = torch.zeros_like(ids)

    def add(self, scores: Tensor) -> None:
        """`scores` [B, C] of candidates that are not relevant; NaN voids one."""
        rows, columns = scores.shape
        wide = min(max(columns, 1), EXACT - 1)
        tall = max(1, BLOCK // wide)
        buffer = scores.new_empty(min(tall, rows) * wide)
        for top in range(0, rows, tall):
            part = slice(top, top + tall)
            for left in range(0, columns, wide):
                self._count(scores[part, left : left + wide], part, buffer)

    def _count(self, block: Tensor, rows: slice, buffer: Tensor) -> None:
        flags = buffer[: block.numel()].view(block.shape)  # 0.0 or 1.0: sums of floats vectorise, sums of bools do not
        for p in range(max(self.lengths[rows])):
            target = self.scores[rows, p : p + 1]
            self.above[rows, p] += torch.gt(block, target, out=flags).sum(1).to(torch.int64)
            self.tied[rows, p] += torch.eq(block, target, out=flags).sum(1).to(torch.int64)

    def ranks(self) -> Ranks:
        """What was counted, with the relevant candidates among themselves."""
        known = self.known.sum(1, keepdim=True)  # [B, 1]
        scores = self.scores.masked_fill(~self.known, float("inf")).contiguous()
        ordered = scores.sort(dim=1).values
        below = torch.searchsorted(ordered, scores)  # relevant ones scored strictly lower
        upto = torch.searchsorted(ordered, scores, right=True).minimum(known)
        before, relevant = known - upto, upto - below
        query, place = self.known.nonzero(as_tuple=True)
        counts = torch.stack([self.above + before, self.tied + relevant, relevant, before])[:, query, place]  # [4, M]
        above, tied, alike, ahead = counts.cpu().numpy()
        return Ranks(query.cpu().numpy(), above, tied, alike, ahead, (self.ids != PAD).sum(1).cpu().numpy())


class Tops:
    """The k best candidates of B queries, collected over chunks of ascending ids; of equal scores the lower id is taken.

    A candidate scored -inf is never taken: so one is voided."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.ids: Tensor | None = None  # [B, <=k] int64, ascending
        self.scores: Tensor | None = None

    def add(self, scores: Tensor, first: int) -> None:
        """`scores` [B, C] of the ids `first`, `first` + 1, ..."""
        places = best(scores, self.k)
        ids, scores = places + first, scores.gather(1, places)
        if self.ids is not None and self.scores is not None:
            ids, scores = torch.cat([self.ids, ids], 1), torch.cat([self.scores, scores], 1)
            places = best(scores, self.k)
            ids, scores = ids.gather(1, places), scores.gather(1, places)
        self.ids, self.scores = ids, scores

    def lists(self) -> Tensor:
        """[B, <=k] int64 in no order of rank; 0 where fewer than k candidates were left."""
        if self.ids is None or self.scores is None:
            raise ValueError("no scores were added")
        return self.ids.masked_fill(self.scores == -torch.inf, PAD)


def best(scores: Tensor, k: int) -> Tensor:
    """The columns of the k highest `scores` [B, C] in ascending order, [B, min(k, C)]; of equal ones the leftmost."""
    columns = scores.shape[1]
    if columns <= k:
        return torch.arange(columns, device=scores.device).expand(scores.shape[0], columns)
    values, places = scores.topk(k + 1, dim=1)
    places = places[:, :k].sort(dim=1).values
    doubtful = (values[:, k] == values[:, k - 1]).nonzero().squeeze(1)  # rows whose last place is tied
    if len(doubtful):
        rows, last = scores[doubtful], values[doubtful, k - 1 : k]
        above, equal = rows > last, rows == last
        free = k - above.sum(1, keepdim=True)
        places[doubtful] = (above | (equal & (equal.cumsum(1) <= free))).nonzero()[:, 1].view(-1, k)
    return places
