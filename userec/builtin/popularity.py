"""Popularity: the floor every model is measured against. The same for every user: what training saw most often comes first.

Of a table of labels (clicks, age classes) it counts the answers: the most clicked item, the majority class."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from userec.batch import Batch, Encoded, History, Query
from userec.capability import Can
from userec.encoder.contract import Build, Encoder, NoConfig
from userec.markers import hookimpl
from userec.schema import FIRST


class Popularity(Encoder):
    """score(item) = log((count + 1) / (events + items)); the one added to each count keeps unseen items finite, last and tied."""

    name = "popularity"
    fidelity = "paper"
    Config = NoConfig
    offers = Can.SCORE_CATALOG | Can.CAUSAL | Can.ANY_POSITION

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__(config, build)
        self.dim, self.schema, self.space = 1, build.schema, "item"
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(build.schema.spaces["item"], dtype=torch.float64))  # [n]; exact to 2^53

    def refuses(self, tasks: tuple[str, ...]) -> list[str]:
        """Ratings: how often an item is rated says nothing of the number."""
        return [
            f"{self.name!r} counts answers; task {task!r} asks for ratings"
            for task in tasks
            if self.schema.task(task).kind == "rating"
        ]

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Answers of another space are counted from nothing."""
        space = self.schema.task(tasks[0]).space
        if space != self.space:
            self.space, self.counts = space, self.counts.new_zeros(self.schema.spaces[space])

    def partial_fit(self, batch: Batch) -> None:
        """Count the events, or, of a table of labels, the real answers that are not labelled wrong."""
        if batch.targets is None:
            ids = batch.history.events["item"][batch.history.mask]  # [sum L]
        else:
            answer, labels = batch.targets.answer, batch.targets.labels
            assert answer is not None
            right = answer >= FIRST if labels is None else (answer >= FIRST) & (labels > 0).flatten(2).any(2)
            ids = answer[right]  # [N]
        self.counts += torch.bincount(ids, minlength=len(self.counts)).to(self.counts)

    def encode(self, history: History) -> Encoded:
        return Encoded(history, tokens=self.counts.new_zeros(*history.mask.shape, 1, dtype=torch.get_default_dtype()))

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        shares = ((self.counts + 1) / (self.counts.sum() + len(self.counts))).log().to(encoded.tokens.dtype)  # [n]
        scores = shares if query.ids is None else shares[query.ids]  # [n] or [B|1, Q|1, C]
        return scores.expand(*query.at.shape, scores.shape[-1]).unsqueeze(-1)  # [B, Q, C, 1]


class Majority(Popularity):
    """Popularity, and an embedding that is the same for all: what a probe makes of it is the majority class, with AUC 0.5."""

    name = "majority"
    offers = Popularity.offers | Can.EMBED_USER

    def encode(self, history: History) -> Encoded:
        encoded = super().encode(history)
        return replace(encoded, user=encoded.tokens.new_ones(len(history.user), 1))  # [B, 1]


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    return [Popularity, Majority]
