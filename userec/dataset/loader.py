"""Training batches: rows are cut, shuffled and bucketed as index arrays, a batch is one gather from the CSR offsets."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Batch, History, Query, Targets
from userec.config import Config
from userec.dataset.events import Coded, Events
from userec.dataset.split import Division, ragged
from userec.errors import unknown
from userec.schema import FIRST


class BatchConfig(Config):
    """How rows become batches."""

    rows: int = Setting(128, ge=1)
    """Rows a batch, at most."""
    tokens: int | None = Setting(None, ge=1)
    """Padded events a batch, at most (a longer row is a batch of its own)."""
    windows: Literal["all", "last"] = "all"
    """All windows of a user's training events, or the newest alone."""
    carry: int | None = Setting(None, ge=1)
    """Session-parallel reading: `rows` users side by side, so many events of each a batch, and the state carried on. It reads
    every event once, in order, so `tokens`, `windows` and `bucket` are not used."""
    bucket: int = Setting(50, ge=1)
    """Batches a shuffled block, inside which rows are sorted by length."""
    eval_rows: int = Setting(1024, ge=1)
    eval_tokens: int = Setting(8192, ge=1)


@dataclass(frozen=True)
class Rows:
    """Where rows lie in an event store: row i is the last `size` events of `user[i]` before `stop[i]`."""

    user: np.ndarray  # [N] int64 row
    stop: np.ndarray  # [N] int64 index into the store
    size: int | np.ndarray | None  # one for all, or [N] int64; None = the whole history

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Rows:
        """Some of the rows, in the order of `rows`."""
        return Rows(self.user[rows], self.stop[rows], self.size[rows] if isinstance(self.size, np.ndarray) else self.size)

    def start(self, events: Events) -> np.ndarray:
        """Where each row begins: [N] int64."""
        begin = events.offsets[self.user]
        return begin if self.size is None else np.maximum(begin, self.stop - self.size)


def windows(events: Events, window: int | None, ahead: int, last: bool) -> Rows:
    """Windows of `window + ahead` events from the newest backwards, overlapping by `ahead`; the oldest may be shorter, but has an
    event, and one ahead where any are.

    With `ahead` 1 every transition from an event to the next lies in exactly one window."""
    counts = (events.lengths > min(ahead, 1)).astype(np.int64)
    if window is not None and not last:
        counts += (events.lengths - 1 - ahead).clip(min=0) // window
    user = np.repeat(np.arange(events.users), counts)
    back = ragged(np.zeros_like(counts), counts) * (window or 0)
    return Rows(user, events.offsets[user + 1] - back, None if window is None else window + ahead)


def prefixes(events: Events, window: int | None, ahead: int, last: bool) -> Rows:
    """One row a question: for each event but a user's first, the row that ends with it; `last`: for the last `window` alone."""
    counts = np.maximum(events.lengths - 1, 0)
    if last and window is not None:
        counts = np.minimum(counts, window)
    stop = ragged(events.offsets[1:] - counts, events.offsets[1:]) + 1
    return Rows(np.repeat(np.arange(events.users), counts), stop, None if window is None else window + ahead)


class Collator:
    """Rows -> right-padded tensors of the fields asked for, `item` always, `time` with `asked.time`. `events` is the store that
    the rows index."""

    def __init__(self, coded: Coded, events: Events, fields: Collection[str]) -> None:
        known = {"user", "asked.time", *events.fields, *coded.profile, *coded.catalog.get("item", {})}
        for name in fields:
            if name not in known or (name == "asked.time" and "time" not in events.fields):
                raise unknown("field", name, known, f"data set {coded.name!r}")
        self.events = events
        told = {"item", *fields, *(("time",) if "asked.time" in fields else ())}
        self.columns = {name: column for name, column in events.fields.items() if name in told}
        self.profile = {name: column for name, column in coded.profile.items() if name in fields}
        self.asked = "asked.time" in fields

    def lengths(self, rows: Rows) -> np.ndarray:
        """Events a row: [N] int64."""
        return rows.stop - rows.start(self.events)

    def history(self, rows: Rows, task: str, time: np.ndarray | None = None, *, newest: bool = False) -> History:
        """The rows [B] as a block [B, L], L the longest. `time` [B]: of the question after each row's last event; `newest`: no
        other will be put."""
        start = rows.start(self.events)
        lengths = rows.stop - start
        place = np.arange(max(int(lengths.max(initial=0)), 1))
        mask = place < lengths[:, None]  # [B, L]
        index = np.where(mask, start[:, None] + place, 0)
        events = {name: _padded(column[index], mask) for name, column in self.columns.items()}
        asked = {}
        if self.asked:
            following = self.events.fields["time"][np.minimum(index + 1, rows.stop[:, None] - 1).clip(min=0)]  # [B, L]
            if time is not None:
                following = np.where(place == lengths[:, None] - 1, time[:, None], following)
            asked["asked.time"] = _padded(following, mask)
        profile = {name: _tensor(column[rows.user]) for name, column in self.profile.items()}
        users, tasks = torch.from_numpy(rows.user + FIRST), (task,) if task else ()
        return History(users, events, torch.from_numpy(mask), profile, tasks, asked, newest=newest)


def _padded(block: np.ndarray, mask: np.ndarray) -> Tensor:
    block[~mask] = 0
    return _tensor(block)


def _tensor(block: np.ndarray) -> Tensor:
    """Integers as int64, numbers as float32."""
    return torch.from_numpy(block.astype(np.float32 if block.dtype.kind == "f" else np.int64, copy=False))


def cut(lengths: np.ndarray, rows: int, tokens: int | None) -> np.ndarray:
    """Bounds [K + 1] of consecutive batches of at most `rows` rows and `tokens` padded events, at least one row each."""
    if tokens is None:
        return np.append(np.arange(0, len(lengths), rows), len(lengths))
    bounds = [0]
    while bounds[-1] < len(lengths):
        ahead = np.maximum.accumulate(lengths[bounds[-1] : bounds[-1] + rows])
        fit = np.searchsorted(ahead * np.arange(1, len(ahead) + 1), tokens, side="right")
        bounds.append(bounds[-1] + max(int(fit), 1))
    return np.array(bounds)


class TrainLoader:
    """Batches of one task: windows of the training events for the task of events, one row a label for any other.

    `ahead` events past `window` are the objective's to look at. Without `whole` rows each question has a row of its own."""

    def __init__(
        self,
        coded: Coded,
        division: Division,
        *,
        config: BatchConfig,
        task: str,
        window: int | None,
        ahead: int,
        whole: bool,
        fields: Collection[str],
        seed: int,
    ) -> None:
        self.config, self.task, self.seed = config, task, seed
        self.labels = None if coded.schema.task(task).events else division.train_labels[task]
        self.kept = division.kept
        self.collator = Collator(coded, division.train if self.labels is None else coded.events, fields)
        if self.labels is not None:
            self.rows = Rows(self.labels.user, self.labels.end, window)
        else:
            self.rows = (windows if whole else prefixes)(division.train, window, ahead, config.windows == "last")
        self.lengths = self.collator.lengths(self.rows)
        self._plan: tuple[int, list[np.ndarray]] | None = None

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch: shuffled, sorted by length inside blocks, cut, batches shuffled."""
        if self._plan is None or self._plan[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            order = rng.permutation(len(self.rows))
            lengths = self.lengths[order]
            block = np.arange(len(order)) // (self.config.bucket * self.config.rows)
            order = order[np.argsort(block * (lengths.max(initial=0) + 1) + lengths, kind="stable")]
            bounds = cut(self.lengths[order], self.config.rows, self.config.tokens)
            batches = [order[low:high] for low, high in pairwise(bounds)]
            self._plan = epoch, [batches[at] for at in rng.permutation(len(batches))]
        return self._plan[1]

    def steps(self, epoch: int) -> int:
        """Batches in that epoch."""
        return len(self.plan(epoch))

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on."""
        for chosen in self.plan(epoch)[start:]:
            yield self._batch(chosen)

    def _batch(self, chosen: np.ndarray) -> Batch:
        rows = self.rows.take(chosen)
        users = torch.from_numpy(rows.user)
        if self.labels is None:
            history = self.collator.history(rows, self.task)
            return Batch(history, None, users, torch.from_numpy(self.kept[rows.stop - 1] + 1))
        time = None if self.labels.time is None else self.labels.time[chosen]
        history = self.collator.history(rows, self.task, time)
        query = Query(history.last[:, None], None, last_asked(history))  # at [B, 1]
        answer = torch.from_numpy(self.labels.id[chosen])[:, None]  # [B, 1]
        value = torch.from_numpy(self.labels.value[chosen])[:, None, None, None]  # [B, 1, 1, 1]
        return Batch(history, Targets(query, answer, value), users, torch.from_numpy(rows.stop))


def last_asked(history: History) -> Mapping[str, Tensor]:
    """What is known of the question after each row's last event: {field: [B, 1]}."""
    return {name: column.gather(1, history.last.clamp(min=0)[:, None]) for name, column in history.asked.items()}
