"""Evaluator `rating`: how far are predicted ratings from those that people gave?"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from pydantic import Field

from userec.config import Config, Ref
from userec.encoder.contract import Encoder
from userec.evaluator import statistics
from userec.evaluator.contract import Data, Evaluator, Metric, Split
from userec.evaluator.scorer import Scorer
from userec.markers import hookimpl
from userec.schema import FIRST


class RatingConfig(Config):
    """Settings of `rating`."""

    seed: int = Field(0, ge=0)
    """Of the resamples."""


class Rating(Evaluator):
    """Root mean squared and mean absolute error over rows, the score taken as the rating, unclipped and unrounded.

    Intervals are over users: one with many ratings is drawn with all of them. A rating of an item that training does not know at
    all (id 1) has no score and is left out."""

    name = "rating"
    Config = RatingConfig
    judges = frozenset({"rating"})
    headline = ("rmse", "mae")
    baselines = (Ref(name="global_mean"), Ref(name="rating_bias"))

    config: RatingConfig

    def refuses(self, encoder: Encoder, data: Data) -> list[str]:
        """It needs a rating task with a trained head."""
        return [] if self._tasks(data) else ["no rating task is trained: there is no rating to judge"]

    def evaluate(self, encoder: Encoder, data: Data, split: Split) -> Iterable[Metric]:
        """RMSE and MAE of every trained rating task."""
        for task in self._tasks(data):
            users, errors = self._errors(encoder, data, split, task)
            people, unit, rows = np.unique(users, return_inverse=True, return_counts=True)
            squares, sizes = (np.bincount(unit, weights=x, minlength=len(people)) for x in (errors**2, np.abs(errors)))
            for name, measure in (("rmse", root(statistics.ratio(squares, rows))), ("mae", statistics.ratio(sizes, rows))):
                told = f"{name}[over=rows,prediction=score]"
                yield Metric.measured(task, name, told, people, measure, better="lower", seed=self.config.seed)

    def _tasks(self, data: Data) -> list[str]:
        return [task.name for task in data.schema.all_tasks if task.kind == "rating" and task.name in data.trained]

    @torch.no_grad()
    def _errors(self, encoder: Encoder, data: Data, split: Split, task: str) -> tuple[np.ndarray, np.ndarray]:
        """(user row [N], prediction less rating [N] float64) of every judged candidate."""
        scorer = Scorer(encoder, task, split, data.schema.spaces[data.schema.task(task).space])
        users, errors = [np.zeros(0, np.int64)], [np.zeros(0)]
        for batch in data.batches(split, task):
            scorer.read(batch)
            query, labels = scorer.targets.query, scorer.targets.labels
            if query.ids is None or labels is None:
                raise ValueError("evaluation targets name the judged ids and their labels")
            ids, values = query.ids[:, 0], labels[:, 0, :, 0]  # [B, P]
            known = ((ids >= FIRST) & ~values.isnan()).cpu().numpy()
            people = (batch.history.user if batch.users is None else batch.users).cpu().numpy()
            users.append(np.broadcast_to(people[:, None], known.shape)[known])
            errors.append((scorer.each(ids).double() - values.double()).cpu().numpy()[known])
        return np.concatenate(users), np.concatenate(errors)


def root(measure: statistics.Measure) -> statistics.Measure:
    """The square root of it."""
    return lambda weights: np.sqrt(measure(weights))


@hookimpl
def userec_evaluators() -> Iterable[type[Evaluator]]:
    return [Rating]
