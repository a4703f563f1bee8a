"""What evaluators and validation see: one row and one question a query, the whole history's items, popularity."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from userec.batch import Batch, Query, Targets
from userec.dataset.events import Coded
from userec.dataset.loader import BatchConfig, Collator, Rows, cut, last_asked
from userec.dataset.split import Division, Questions, ragged


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
    ) -> None:
        self.coded, self.division, self.config = coded, division, config
        self.schema, self.trained, self.window, self.seed = coded.schema, trained, window, seed
        counts = np.bincount(division.train.fields["item"], minlength=coded.schema.spaces["item"])
        self.popularity = torch.from_numpy(counts)  # [n] int64
        self._collator = Collator(coded, coded.events, fields)

    @cached_property
    def repeats(self) -> float:
        """Share of training events whose item stands earlier in the same user's history."""
        train = self.division.train
        pairs = np.unique(train.owner * self.coded.schema.spaces["item"] + train.fields["item"])
        return 1 - len(pairs) / len(train)

    def questions(self, split: str, task: str) -> int:
        """How many queries `batches` gives."""
        return len(self.division.questions[split, task])

    def batches(self, split: str, task: str, users: int | None = None) -> Iterator[Batch]:
        """The questions, shortest histories first; only those of a sample of `users` where told.

        The sample is the same whatever the run's seed: runs are compared over the same people."""
        asked = self.division.questions[split, task]
        chosen = np.arange(len(asked))
        people = np.unique(asked.user)
        if users is not None and users < len(people):
            sample = np.random.default_rng(0).choice(people, users, replace=False)
            chosen = chosen[np.isin(asked.user, sample)]
        rows = Rows(asked.user, asked.end, self.window)
        lengths = self._collator.lengths(rows)
        chosen = chosen[np.argsort(lengths[chosen], kind="stable")]
        bounds = cut(lengths[chosen], self.config.eval_rows, self.config.eval_tokens)
        for low, high in pairwise(bounds):
            yield self._batch(asked, rows, chosen[low:high], task)

    def _batch(self, asked: Questions, rows: Rows, chosen: np.ndarray, task: str) -> Batch:
        rows = rows.take(chosen)
        history = self._collator.history(rows, task, None if asked.time is None else asked.time[chosen])
        start, stop = asked.offsets[chosen], asked.offsets[chosen + 1]
        place = np.arange(int((stop - start).max(initial=1)))
        real = place < (stop - start)[:, None]  # [B, P]
        ids = np.zeros(real.shape, np.int64)
        ids[real] = asked.ids[ragged(start, stop)]
        labels = torch.from_numpy(np.where(real, np.float32(1), np.float32(np.nan)))[:, None, :, None]  # [B, 1, P, 1]
        query = Query(history.last[:, None], torch.from_numpy(ids)[:, None], last_asked(history))
        return Batch(history, Targets(query, labels=labels), torch.from_numpy(rows.user), torch.from_numpy(rows.stop))

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(row [N], id [N]) of each row's whole history before its question, with repetitions."""
        assert batch.users is not None
        assert batch.ends is not None
        stop = batch.ends.cpu().numpy()
        start = self.coded.events.offsets[batch.users.cpu().numpy()]
        row = torch.from_numpy(np.repeat(np.arange(len(stop)), stop - start))
        ids = torch.from_numpy(self.coded.events.fields["item"][ragged(start, stop)].astype(np.int64))
        return row.to(batch.users.device), ids.to(batch.users.device)
