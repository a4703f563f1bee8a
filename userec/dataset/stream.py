"""Session-parallel reading (Hidasi et al. 2016, section 3.1.1): users side by side in slots, a stretch of each a batch, the state
carried from one batch to the next. A slot whose user has ended goes on with the next user, from nothing."""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Collection, Iterator
from itertools import pairwise

import numpy as np
import torch

from userec.batch import Batch
from userec.dataset.events import Coded
from userec.dataset.loader import BatchConfig, Collator, Rows
from userec.dataset.split import Division, ragged


class StreamLoader:
    """Batches of at most `config.rows` slots, each with the next `carry` training events of its user and the one that follows
    them, which is asked for. Users come in an order drawn anew each epoch."""

    def __init__(
        self,
        coded: Coded,
        division: Division,
        *,
        config: BatchConfig,
        carry: int,
        task: str,
        fields: Collection[str],
        seed: int,
    ) -> None:
        self.config, self.carry, self.task, self.seed = config, carry, task, seed
        self.events, self.kept = division.train, division.kept
        self.collator = Collator(coded, division.train, fields)
        self._plan: tuple[int, Rows, np.ndarray, np.ndarray] | None = None

    def plan(self, epoch: int) -> tuple[Rows, np.ndarray, np.ndarray]:
        """(rows of all batches, one batch after the other; the row of the batch before that each goes on from, -1 where a user
        begins [N]; where each batch begins [K + 1])."""
        if self._plan is None or self._plan[0] != epoch:
            lengths = self.events.lengths - 1  # transitions
            users = np.random.default_rng((self.seed, epoch)).permutation(np.flatnonzero(lengths > 0))
            counts = -(-lengths[users] // self.carry)  # [U] stretches a user
            slot, begin = _seats(counts, self.config.rows)
            number = ragged(np.zeros_like(counts), counts)  # [N] which stretch of its user a row is
            user, at, slot = (np.repeat(x, counts) for x in (users, begin, slot))
            at = at + number
            stop = np.minimum((number + 1) * self.carry, lengths[user]) + 1
            order = np.lexsort((slot, at))
            bounds = np.searchsorted(at[order], np.arange(at.max(initial=-1) + 2))
            rows = Rows(user, self.events.offsets[user] + stop, stop - number * self.carry).take(order)
            self._plan = epoch, rows, _before(at[order], slot[order], number[order], bounds), bounds
        return self._plan[1:]

    def steps(self, epoch: int) -> int:
        """Batches in that epoch."""
        return len(self.plan(epoch)[2]) - 1

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        rows, carried, bounds = self.plan(epoch)
        for low, high in pairwise(bounds[start:]):
            part = rows.take(np.arange(low, high))
            batch = Batch(
                self.collator.history(part, self.task),
                None,
                torch.from_numpy(part.user),
                torch.from_numpy(self.kept[part.stop - 1] + 1),
            )
            yield dataclasses.replace(batch, carried=torch.from_numpy(carried[low:high]))


def _seats(counts: np.ndarray, slots: int) -> tuple[np.ndarray, np.ndarray]:
    """(slot [U], first batch [U]) of users who need `counts` [U] batches each: each takes the seat that is free first."""
    free = [(0, slot) for slot in range(min(slots, max(len(counts), 1)))]
    slot, begin = np.zeros_like(counts), np.zeros_like(counts)
    for i, count in enumerate(counts.tolist()):
        begin[i], slot[i] = free[0]
        heapq.heapreplace(free, (free[0][0] + count, free[0][1]))
    return slot, begin


def _before(at: np.ndarray, slot: np.ndarray, number: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Of rows sorted by (batch, slot) the row of the batch before that had the same slot, -1 for a user's first stretch."""
    key = at * (int(slot.max(initial=0)) + 1) + slot
    found = np.searchsorted(key, key - (int(slot.max(initial=0)) + 1))
    return np.where(number > 0, found - bounds[np.maximum(at - 1, 0)], -1)
