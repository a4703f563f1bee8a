"""The contract of an evaluator: an encoder and a data set in, metrics with their definition and per-user values out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor

from userec.batch import Batch
from userec.capability import Can
from userec.config import Plugin, Ref
from userec.encoder.contract import Encoder
from userec.evaluator import statistics
from userec.schema import Kind, Schema

Split = Literal["train", "valid", "test"]
"""Evaluators are asked about `valid` and `test`; a probe is fitted on `train`."""


@dataclass(frozen=True)
class Metric:
    """One number with all that is needed to trust it. The engine stamps evaluator, split, encoder and `after`."""

    task: str
    metric: str  # lower case: ndcg@10
    definition: str  # ndcg@10[gain=binary,idcg=min(k,targets),ties=expected,seen=dropped,catalogue=full]
    value: float
    low: float = float("nan")  # 95 % bootstrap interval over users; NaN where there is none (coverage)
    high: float = float("nan")
    n: int = 0  # users behind it
    better: Literal["higher", "lower"] = "higher"
    slice: str = ""
    period: int | None = None
    users: np.ndarray | None = None  # [n] coded user rows, each once
    values: np.ndarray | None = None  # [n] per-user values, where the metric is their mean
    measure: statistics.Measure | None = None
    """Where it is no mean: its value from how often each of `users` counts, so that intervals and slices can be had of it."""

    @classmethod
    def measured(
        cls,
        task: str,
        metric: str,
        definition: str,
        users: np.ndarray,
        measure: statistics.Measure,
        *,
        better: Literal["higher", "lower"] = "higher",
        seed: int = 0,
    ) -> Metric:
        """A metric that is no mean over users (AUC, macro-F1), with its bootstrap interval over `users` [n]."""
        value = float(measure(np.ones((1, len(users))))[0])
        low, high = statistics.bounds(measure, len(users), seed)
        return cls(task, metric, definition, value, low, high, len(users), better, users=users, measure=measure)


class Data(Protocol):
    """What an evaluator, and the trainer's validation, see of a data set."""

    schema: Schema
    trained: tuple[str, ...]
    """Tasks that have a trained head; others are probed."""
    popularity: Tensor
    """[n] training events of each id of the item space; reserved ids 0."""
    seed: int
    odds: bool
    """Whether the trained tasks' scores are log-odds: then 1 / (1 + exp(-score)) is a probability."""
    kept: dict[str, Any]
    """Room for an evaluator: what it found on one split of this encoder and needs again on the other."""

    @property
    def repeats(self) -> float:
        """Share of training events whose item stands earlier in the same user's history: do people return to items here?"""
        ...

    def batches(self, split: Split, task: str, users: int | None = None) -> Iterator[Batch]:
        """One row and one question a query, bucketed by length: `targets.query.ids` [B, 1, P] are the relevant ids (0 = padding),
        `targets.labels` [B, 1, P, 1] is 1 there, NaN at padding. `users` = only a fixed seeded sample of that many.

        Of a `click` or `rating` task the ids are all that a label judges, and `targets.labels` is its value: right (1) or wrong
        (0), or the rating. `split` may be `train` for a task that reads labels: what a probe is fitted on.

        Histories are `newest`, here and in `pieces`: an evaluator that reads other tokens than the last unsets it first."""
        ...

    def pieces(self, split: Split, back: int, *, events: int, shots: int = 1, gap: int = 0) -> Iterator[Batch]:
        """One piece a user of his history before the last question of `split`, without targets: `back` 0 is the newest, 1 to
        `shots` the older ones, backwards. The pieces of a user are equally long, at most `events`, and do not overlap; users
        whose pieces would be shorter than five events are left out. Between the newest and the older ones lie more than `gap`
        seconds: what is of the newest one's first moment, or session, is in no older one."""
        ...

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(row [N], id [N]): the items of each row's whole history before the question, whatever the encoder's window."""
        ...

    def questions(self, split: Split, task: str) -> int:
        """How many queries `batches` will give."""
        ...


class Evaluator(Plugin, ABC):
    """Judges an encoder. One class, one protocol; every choice is in `Config` and in each metric's definition."""

    needs: Can = Can.NOTHING
    reads: frozenset[str] = frozenset({"item"})
    hides: frozenset[str] = frozenset()
    judges: frozenset[Kind] = frozenset({"item"})
    """Kinds of task that it judges; empty = none, it judges the users' embeddings alone."""
    headline: tuple[str, ...] = ()
    """Metrics that a run's closing table shows (with their sampled forms); empty = all. The report has all of them."""
    baselines: tuple[Ref, ...] = ()
    """Encoders fitted and evaluated the same way by the engine, reported beside the model where they fit the data."""

    def __init__(self, config: Any, build: Any) -> None:
        self.config = config

    def refuses(self, encoder: Encoder, data: Data) -> list[str]:
        """Reasons why it does not fit this data or encoder, beyond needs, reads and hides."""
        return []

    @abstractmethod
    def evaluate(self, encoder: Encoder, data: Data, split: Split) -> Iterable[Metric]:
        """The metrics. Called in eval mode, without gradients."""
