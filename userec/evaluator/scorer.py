"""Scores of a batch over the catalogue, chunk by chunk, whatever the encoder offers: a product, whole rows, or single items."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from userec.batch import Batch, Encoded, Query, Targets
from userec.capability import Can
from userec.encoder.contract import Encoder
from userec.errors import DivergedError
from userec.schema import FIRST

BUDGET = 1 << 24
"""Numbers held at once (64 MB in float32): scores of a chunk, or activations where each candidate attends to each event."""


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
        self.chunk = min(self.limit or max(BUDGET // each, 16), self.size - FIRST)
        if self.dot:
            if self.weight is None:
                weight, bias = self.encoder.candidates(history.tasks)
                self.weight, self.bias = _wide(weight), None if bias is None else _wide(bias)
            self.queries = _wide(self.encoder.queries(self.encoded, Query(self.at, None, self.targets.query.context))[:, 0])
        elif not self.walks:
            self.rows = self._score(None)  # [B, n]

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
        if not self.dot and not self.walks:
            return self.rows.gather(1, ids)
        distinct = ids[ids >= FIRST].unique()
        if len(distinct) == 0:
            return torch.zeros(ids.shape, device=ids.device)
        scores = torch.cat([self._listed(part) for part in distinct.split(self.chunk)], 1)  # [B, U]
        return self._checked(scores).gather(1, torch.searchsorted(distinct, ids).clamp(max=len(distinct) - 1))

    def each(self, ids: Tensor) -> Tensor:
        """Scores of each row's own `ids` [B, K] by the encoder's own `score`; 0 at reserved ids."""
        parts = [self._score(part[:, None]) for part in ids.split(max(self.chunk, 1), 1)]
        return self._checked(torch.cat(parts, 1).masked_fill(ids < FIRST, 0.0))

    def _span(self, first: int, last: int) -> Tensor:
        rows = len(self.at)
        if self.walks:
            return self._score(torch.arange(first, last, device=self.device).view(1, 1, -1)).clone()
        source = self.queries if self.dot else self.rows
        if self.buffer.numel() < rows * (last - first) or self.buffer.dtype != source.dtype:
            self.buffer = source.new_empty(rows * (last - first))
        out = self.buffer[: rows * (last - first)].view(rows, last - first)
        if self.weight is None:
            return out.copy_(self.rows[:, first:last])
        if self.bias is None:
            return torch.mm(self.queries, self.weight[first:last].T, out=out)
        return torch.addmm(self.bias[first:last], self.queries, self.weight[first:last].T, out=out)

    def _listed(self, ids: Tensor) -> Tensor:
        if self.weight is None:
            return self._score(ids.view(1, 1, -1))
        scores = self.queries @ self.weight[ids].T
        return scores if self.bias is None else scores + self.bias[ids]

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


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def draw(count: int, size: int, users: np.ndarray, barred: tuple[np.ndarray, np.ndarray], seed: int) -> np.ndarray:
    """Uniform candidates without replacement, [B, count] int64, 0 where a row has no more; never the `barred` (row [N], id [N]).

    A user's draws are a hash of (seed, user, draw): the same for every model, batch size and order of users."""
    rows = np.arange(len(users))[:, None]
    bars = np.unique(barred[0] * size + barred[1])
    wanted = np.minimum(count, size - FIRST - np.bincount(bars // size, minlength=len(users)))[:, None]
    width = 2 * count + 16
    while True:
        drawn = FIRST + (_hash(seed, users[:, None], np.arange(width)) % np.uint64(size - FIRST)).astype(np.int64)  # [B, W]
        order = drawn.argsort(axis=1, kind="stable")
        ordered = np.take_along_axis(drawn, order, 1)
        again = np.zeros_like(drawn, dtype=bool)
        np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
        free = ~again & ~np.isin(rows * size + drawn, bars)
        place = free.cumsum(1)
        if (place[:, -1:] >= wanted).all():
            break
        width *= 2
    row, column = (free & (place <= wanted)).nonzero()
    out = np.zeros((len(users), count), np.int64)
    out[row, place[row, column] - 1] = drawn[row, column]
    return out


def _hash(seed: int, users: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """uint64 of each (user, draw): SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014) over each part in turn."""
    state = np.zeros((1, 1), np.uint64)
    for part in (np.array(seed), users, draws):
        state = (state ^ part.astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state
