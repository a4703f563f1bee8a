"""Scores of a batch over the catalogue, chunk by chunk, whatever the encoder offers: a product, whole rows, or single items.

Items alike must tie to the last bit, wherever they stand. A product of another shape, or the odd columns at the end of one, may
be rounded otherwise; so within a batch every list of candidates is filled up to one width, a multiple of `WIDTH`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from userec.batch import Batch, Encoded, Query, Targets
from userec.capability import Can
from userec.encoder.contract import Encoder
from userec.errors import DivergedError
from userec.schema import FIRST

BUDGET = 1 << 24
"""Numbers held at once (64 MB in float32): scores of a chunk, or activations where each candidate has its own."""

KEPT = 2 * BUDGET
"""Scores of a batch over the catalogue that are kept where each costs much: 128 MB in float32."""

WIDTH = 16
"""Columns that matrix products take at once, or a multiple of it."""


class Scorer:
    """Encodes a batch once (`read`), then scores it. What does not depend on the batch (`candidates`) is computed once a run."""

    def __init__(self, encoder: Encoder, task: str, split: str, size: int, chunk: int | None = None) -> None:
        self.encoder, self.task, self.split, self.size, self.limit = encoder, task, split, size, chunk
        self.dot = Can.DOT_SCORE in encoder.offers
        self.walks = not self.dot and Can.SCORE_CATALOG not in encoder.offers
        self.device = next((x.device for x in chain(encoder.parameters(), encoder.buffers())), torch.device("cpu"))
        self.weight: Tensor | None = None  # [n, D]
        self.bias: Tensor | None = None  # [n]
        self.buffer = torch.empty(0)

    def portions(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, in so few rows that the budget holds them over the catalogue where the encoder scores whole rows only."""
        most = max(BUDGET // self.size, 1)
        for batch in batches:
            count = len(batch.history.user)
            if self.dot or self.walks or count <= most:
                yield batch
            else:
                yield from (batch.rows(start, start + most) for start in range(0, count, most))

    def read(self, batch: Batch) -> None:
        """Encode; the scores asked for afterwards are those of this batch."""
        if batch.targets is None:
            raise ValueError("a batch without targets cannot be judged")
        self.batch: Batch = batch.to(self.device)
        self.targets: Targets = batch.targets.to(self.device)
        history = self.batch.history
        self.encoded: Encoded = self.encoder.encode(history)
        self.column = history.tasks.index(self.task) if self.task in history.tasks else 0
        self.at = self.targets.query.at
        rows = max(len(self.at), 1)
        each = rows * max(history.mask.shape[1], 1) * max(self.encoder.dim, 1) // 2 if self.walks else rows
        self.chunk = min(self.limit or max(BUDGET // max(each, 1) // WIDTH, 1) * WIDTH, self.size - FIRST)
        self.width = _filled(self.chunk)
        if self.dot:
            if self.weight is None:
                weight, bias = self.encoder.candidates(history.tasks)
                self.weight, self.bias = _wide(weight), None if bias is None else _wide(bias)
            self.queries = _wide(self.encoder.queries(self.encoded, Query(self.at, None, self.targets.query.context))[:, 0])
        self._rows: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """[B, n]: whole rows of scores, made when first asked for."""
        if self._rows is None:
            self._rows = self._score(None)
        return self._rows

    @property
    def whole(self) -> bool:
        """Whether one chunk is the whole catalogue."""
        return self.chunk >= self.size - FIRST

    def chunks(self) -> Iterator[tuple[int, Tensor]]:
        """(first id, scores [B, C]) over all real ids, ascending. The scores are the caller's to overwrite until the next chunk.

        Raises DivergedError at a score that is not a number."""
        for first in range(FIRST, self.size, self.chunk):
            yield first, self._checked(self._span(first, min(first + self.chunk, self.size)))

    def of(self, ids: Tensor) -> Tensor:
        """Scores of each row's own `ids` [B, P], made the way `chunks` makes them; anything at reserved ids."""
        if self.walks and len(ids) * self.size <= KEPT:
            self._rows = self._walked()
        if not self.dot and (not self.walks or self._rows is not None):
            return self._checked(self.rows.gather(1, ids))
        distinct = ids[ids >= FIRST].unique()
        if len(distinct) == 0:
            return torch.zeros(ids.shape, device=ids.device)
        scores = torch.cat([self._listed(part) for part in distinct.split(self.chunk)], 1)  # [B, U]
        return self._checked(scores).gather(1, torch.searchsorted(distinct, ids).clamp(max=len(distinct) - 1))

    def each(self, ids: Tensor) -> Tensor:
        """Scores of each row's own `ids` [B, K] by the encoder's own `score`; 0 at reserved ids."""
        rows, count = ids.shape
        most = self.chunk if self.walks else max(BUDGET // (max(rows, 1) * max(self.encoder.dim, 1)), 1)
        width = _filled(min(most, self.limit or most, max(count, 1)))
        parts = [self._score(part[:, None]) for part in functional.pad(ids, (0, -count % width)).split(width, 1)]
        return self._checked(torch.cat(parts, 1)[:, :count].masked_fill(ids < FIRST, 0.0))

    @property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """(ids, values), [B, P] each: what the batch's targets judge, and how."""
        ids, labels = self.targets.query.ids, self.targets.labels
        if ids is None or labels is None:
            raise ValueError("evaluation targets name the judged ids and their labels")
        return ids[:, 0], labels[:, 0, :, 0]

    def judged(self, ids: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(user [N], score [N] float64, value [N]) of each row's own `ids` [B, K] whose value, [B, K], is not NaN."""
        known = ((ids >= FIRST) & ~values.isnan()).cpu().numpy()
        users = np.broadcast_to(users_of(self.batch)[:, None], known.shape)
        return users[known], self.each(ids).double().cpu().numpy()[known], values.double().cpu().numpy()[known]

    def _span(self, first: int, last: int) -> Tensor:
        """[B, last - first]"""
        if self.weight is not None:
            return self._product(self.weight[first:last], None if self.bias is None else self.bias[first:last])
        if self.walks and self._rows is None:
            return self._listed(torch.arange(first, last, device=self.device))
        return self._room(self.rows)[:, : last - first].copy_(self.rows[:, first:last])

    def _walked(self) -> Tensor:
        """[B, n]: the whole walk, kept, so that `chunks` after `of` scores nothing twice."""
        parts = torch.arange(FIRST, self.size, device=self.device).split(self.chunk)
        return functional.pad(torch.cat([self._listed(part) for part in parts], 1), (FIRST, 0))

    def _listed(self, ids: Tensor) -> Tensor:
        """[B, U] of ids that all rows share, no more than a chunk."""
        if self.weight is not None:
            return self._product(self.weight[ids], None if self.bias is None else self.bias[ids]).clone()
        return self._score(functional.pad(ids, (0, self.width - len(ids)), value=FIRST).view(1, 1, -1))[:, : len(ids)].clone()

    def _product(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[B, C] of the batch's queries with `weight` [C, D] and `bias` [C], C no more than a chunk; overwritten by the next."""
        count, out = len(weight), self._room(self.queries)
        if count < self.width:
            weight = functional.pad(weight, (0, 0, 0, self.width - count))
            bias = bias if bias is None else functional.pad(bias, (0, self.width - count))
        if bias is None:
            return torch.mm(self.queries, weight.T, out=out)[:, :count]
        return torch.addmm(bias, self.queries, weight.T, out=out)[:, :count]

    def _room(self, like: Tensor) -> Tensor:
        """[B, width] to be overwritten, of the type of `like` [B, ...]; the same memory each time."""
        count = len(like) * self.width
        if self.buffer.numel() < count or self.buffer.dtype != like.dtype:
            self.buffer = like.new_empty(count)
        return self.buffer[:count].view(len(like), self.width)

    def _score(self, ids: Tensor | None) -> Tensor:
        scores = self.encoder.score(self.encoded, Query(self.at, ids, self.targets.query.context))  # [B, 1, C, A]
        return _wide(scores[:, 0, :, self.column if scores.shape[-1] > 1 else 0])

    def _checked(self, scores: Tensor) -> Tensor:
        if torch.isnan(scores.sum()) and torch.isnan(scores).any():  # a sum is the cheapest look at every score
            raise DivergedError(
                f"encoder {self.encoder.name!r} gives scores that are not numbers (task {self.task!r}, split {self.split!r}):"
                " they cannot be ranked; lower train.lr, set train.clip_norm, or check its input for missing values"
            )
        return scores


def users_of(batch: Batch) -> np.ndarray:
    """The user of each row, [B] int64, by coded row; by id where the batch does not say where it was cut from."""
    return (batch.history.user if batch.users is None else batch.users).cpu().numpy()


def _filled(count: int) -> int:
    """The next multiple of `WIDTH` at or above `count`."""
    return -(-count // WIDTH) * WIDTH


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def draw(count: int, size: int, users: np.ndarray, barred: tuple[np.ndarray, np.ndarray], seed: int) -> np.ndarray:
    """Uniform candidates without replacement, [B, count] int64, 0 where a row has no more; never the `barred` (row [N], id [N]).

    A user's draws are a hash of (seed, user, draw): the same for every model, batch size and order of users. Where so many are
    wanted that the draws would outnumber the catalogue, they are the first of its permutation by a hash of (seed, user, id)."""
    bars = np.unique(barred[0] * size + barred[1])
    wanted = np.minimum(count, size - FIRST - np.bincount(bars // size, minlength=len(users)))
    out = np.zeros((len(users), count), np.int64)
    left, width = np.arange(len(users)), 2 * count + 16
    while len(left):
        whole = width >= size - FIRST
        people = users[left]
        drawn = _permuted(seed, people, size) if whole else _drawn(seed, people, size, width)  # [R, W]; 0 = a repetition
        free = (drawn >= FIRST) & ~np.isin(left[:, None] * size + drawn, bars)
        place = free.cumsum(1)
        enough = np.full(len(left), True) if whole else place[:, -1] >= wanted[left]
        row, column = (free & (place <= wanted[left][:, None]) & enough[:, None]).nonzero()
        out[left[row], place[row, column] - 1] = drawn[row, column]
        left, width = left[~enough], 2 * width
    return out


def _drawn(seed: int, users: np.ndarray, size: int, width: int) -> np.ndarray:
    """[R, width] ids with replacement, 0 where one was drawn before."""
    drawn = FIRST + (_hash(seed, users[:, None], np.arange(width)) % np.uint64(size - FIRST)).astype(np.int64)
    order = drawn.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(drawn, order, 1)
    again = np.zeros_like(drawn, dtype=bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    return np.where(again, 0, drawn)


def _permuted(seed: int, users: np.ndarray, size: int) -> np.ndarray:
    """[R, n] every real id once."""
    return FIRST + _hash(seed, users[:, None], np.arange(size - FIRST)).argsort(axis=1, kind="stable")


def _hash(seed: int, users: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """uint64 of each (user, draw): SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014) over each part in turn."""
    state = np.zeros((1, 1), np.uint64)
    for part in (np.array(seed), users, draws):
        state = (state ^ part.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state
