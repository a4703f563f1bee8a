"""What evaluators and validation see: one row and one question a query, the whole history's items, pieces of users."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from userec.batch import Batch, Query, Targets
from userec.dataset.events import Coded, Events
from userec.dataset.loader import BatchConfig, Collator, Rows, cut, last_asked
from userec.dataset.split import Division, Questions, ask_labels, ragged
from userec.schema import FIRST

FEWEST = 5
"""Events of the shortest piece of a user."""

SAMPLE = 0
"""Seeds the sample of users, whatever the run's seed: runs that differ in it alone are judged by the same people."""


class SplitData:
    """The evaluators' `Data` over a divided data set; histories are cut to `window`, "seen" never is."""

    def __init__(
        self,
        coded: Coded,
        division: Division,
        *,
        trained: tuple[str, ...],
        window: int | None,
        fields: Collection[str],
        seed: int,
        config: BatchConfig,
        odds: bool = False,
    ) -> None:
        self.coded, self.division, self.config = coded, division, config
        self.schema, self.trained, self.window, self.seed, self.odds = coded.schema, trained, window, seed, odds
        self.kept: dict[str, Any] = {}
        counts = np.bincount(division.train.fields["item"], minlength=coded.schema.spaces["item"])
        self.popularity = torch.from_numpy(counts)  # [n] int64
        self._collator = Collator(coded, coded.events, fields)
        self._asked: dict[tuple[str, str], Questions] = dict(division.questions)

    @property
    def repeats(self) -> float:
        """Share of training events whose item stands earlier in the same user's history."""
        return self.division.repeats

    def questions(self, split: str, task: str) -> int:
        """How many queries `batches` gives."""
        return len(self._questions(split, task))

    def _questions(self, split: str, task: str) -> Questions:
        if (split, task) not in self._asked:  # the training rows of a table of labels, which only a probe asks for
            labels = self.division.train_labels[task]
            self._asked[split, task] = ask_labels(labels, self.coded.events, self.schema.task(task).kind)
        return self._asked[split, task]

    def batches(self, split: str, task: str, users: int | None = None) -> Iterator[Batch]:
        """The questions, shortest histories first; only those of the fixed sample of `users` where told.

        Of a task that reads labels `split` may be `train`."""
        asked = self._questions(split, task)
        chosen = np.arange(len(asked))
        people = np.unique(asked.user)
        if users is not None and users < len(people):
            sample = np.random.default_rng(SAMPLE).choice(people, users, replace=False)
            chosen = chosen[np.isin(asked.user, sample)]
        rows = Rows(asked.user, asked.end, self.window)
        for part in self._portions(rows, chosen):
            yield self._batch(asked, rows, part, task)

    def _portions(self, rows: Rows, chosen: np.ndarray) -> Iterator[np.ndarray]:
        """The `chosen` rows, shortest first, cut into batches."""
        lengths = self._collator.lengths(rows)
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        for low, high in pairwise(cut(lengths[chosen], self.config.eval_rows, self.config.eval_tokens)):
            yield chosen[low:high]

    def _batch(self, asked: Questions, rows: Rows, chosen: np.ndarray, task: str) -> Batch:
        rows = rows.take(chosen)
        history = self._collator.history(rows, task, None if asked.time is None else asked.time[chosen], newest=True)
        start, stop = asked.offsets[chosen], asked.offsets[chosen + 1]
        place = np.arange(int((stop - start).max(initial=1)))
        real = place < (stop - start)[:, None]  # [B, P]
        ids = np.zeros(real.shape, np.int64)
        ids[real] = asked.ids[ragged(start, stop)]
        values = np.full(real.shape, np.nan, np.float32)
        values[real] = 1 if asked.values is None else asked.values[ragged(start, stop)]
        labels = torch.from_numpy(values)[:, None, :, None]  # [B, 1, P, 1]
        query = Query(history.last[:, None], torch.from_numpy(ids)[:, None], last_asked(history))
        return Batch(history, Targets(query, labels=labels), torch.from_numpy(rows.user), torch.from_numpy(rows.stop))

    def pieces(self, split: str, back: int, *, events: int, shots: int = 1, gap: int = 0) -> Iterator[Batch]:
        """One piece a user of his history before the last question of `split`; see `Data`."""
        user, begin, stop, size = self._pieces(split, events, shots, gap)
        end = stop if back == 0 else begin - (back - 1) * size
        rows = Rows(user, end, size if self.window is None else np.minimum(size, self.window))
        task = next(iter(self.trained), "")
        for part in self._portions(rows, np.arange(len(user))):
            taken = rows.take(part)
            history = self._collator.history(taken, task, newest=True)
            yield Batch(history, None, torch.from_numpy(taken.user), torch.from_numpy(taken.stop))

    def _pieces(self, split: str, events: int, shots: int, gap: int) -> tuple[np.ndarray, ...]:
        """(user [U], where his older pieces end [U], where the newest ends [U], events a piece [U]), as long as they can be."""
        store = self.coded.events
        tasks = [task for task in self.schema.all_tasks if task.events] or list(self.schema.all_tasks)
        asked = [self._questions(split, task.name) for task in tasks]
        stop = np.zeros(store.users, np.int64)  # where each user's last question stands
        np.maximum.at(stop, np.concatenate([q.user for q in asked]), np.concatenate([q.end for q in asked]))
        start = store.offsets[:-1]
        user = np.flatnonzero(stop - start >= (1 + shots) * FEWEST)
        start, stop = start[user], stop[user]
        opens = _opens(store)
        size = np.zeros(len(user), np.int64)
        most = np.minimum(events, (stop - start) // (1 + shots))
        while (size < most).any():  # a longer newest piece never leaves the older ones more room: halve
            tried = np.maximum((size + most + 1) // 2, 1)
            fits = _before(store, opens, user, stop - tried, stop, gap) - start >= shots * tried
            size, most = np.where(fits, tried, size), np.where(fits, most, tried - 1)
        user, stop, size = (column[size >= FEWEST] for column in (user, stop, size))
        return user, _before(store, opens, user, stop - size, stop, gap), stop, size

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(row [N], id [N]) of each row's whole history before its question, with repetitions."""
        assert batch.users is not None
        assert batch.ends is not None
        stop = batch.ends.cpu().numpy()
        start = self.coded.events.offsets[batch.users.cpu().numpy()]
        row = torch.from_numpy(np.repeat(np.arange(len(stop)), stop - start))
        ids = torch.from_numpy(self.coded.events.fields["item"][ragged(start, stop)].astype(np.int64))
        return row.to(batch.users.device), ids.to(batch.users.device)


def _opens(store: Events) -> np.ndarray | None:
    """Where the session of each event has its first event: [E] int64; one of no session is its own. None without sessions."""
    if "session" not in store.fields:
        return None
    session = store.fields["session"].astype(np.int64)
    _, first, which = np.unique(store.owner * (int(session.max(initial=0)) + 1) + session, return_index=True, return_inverse=True)
    return np.where(session < FIRST, np.arange(len(session)), first[which])


def _before(
    store: Events, opens: np.ndarray | None, user: np.ndarray, first: np.ndarray, stop: np.ndarray, gap: int
) -> np.ndarray:
    """The end [U] of what is apart from the events `first`..`stop` - 1 [U] of each `user` [U]: more than `gap` seconds earlier
    than the first of them, and of none of their sessions."""
    end = first
    if "time" in store.fields and len(user):
        time = store.fields["time"]
        low, span = int(time.min()), int(time.max() - time.min()) + 1
        latest = (time[first] - low - min(gap, span)).clip(min=0)  # the first moment that is too late
        end = np.minimum(end, np.searchsorted(store.owner * span + (time - low), user * span + latest))
    if opens is not None and len(user):
        end = np.minimum(end, np.minimum.reduceat(opens, np.stack([first, stop - 1], 1).reshape(-1))[::2])
        end = np.minimum(end, opens[stop - 1])
    return end
