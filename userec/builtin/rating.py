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


class RatingConfig(Config):
    """Settings of `rating`."""

    seed: int = Field(0, ge=0)
    """Of the resamples."""


class Rating(Evaluator):
    """Root mean squared and mean absolute error over rows, the score taken as the rating, unclipped and unrounded.

    Intervals are over users: one with many ratings is drawn with all of them. An item that occurs in held-out ratings alone
    is predicted by whatever its untrained row gives."""

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
            people, scores, values = scorer.judged(*scorer.labelled)
            users.append(people)
            errors.append(scores - values)
        return np.concatenate(users), np.concatenate(errors)


def root(measure: statistics.Measure) -> statistics.Measure:
    """The square root of it."""
    return lambda weights: np.sqrt(measure(weights))


@hookimpl
def userec_evaluators() -> Iterable[type[Evaluator]]:
    return [Rating]
