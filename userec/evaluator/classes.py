"""What predicted classes are worth: accuracy, macro-F1 and AUC of the scores of N questions over K classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from userec.evaluator import roc, statistics
from userec.evaluator.contract import Metric
from userec.evaluator.metrics import define
from userec.evaluator.statistics import Measure


@dataclass(frozen=True)
class Judged:
    """Questions with one right class each. Of equal scores the lower class is the guess."""

    users: np.ndarray  # [N] int64 user row; a user may be asked several times
    truth: np.ndarray  # [N] int64 class, 0..K-1
    scores: np.ndarray  # [N, K]

    @property
    def guess(self) -> np.ndarray:
        """[N] int64"""
        return self.scores.argmax(1) if len(self.scores) else self.truth


def metrics(judged: Judged, task: str, protocol: dict[str, str], seed: int) -> list[Metric]:
    """`accuracy`, `macro_f1` and `auc` of a task, always all three: what is undefined is NaN."""
    people, unit = np.unique(judged.users, return_inverse=True)
    count = judged.scores.shape[1]
    present = f"present({len(np.unique(judged.truth))} of {count})"
    binary = count == 2
    told = {
        "accuracy": {**protocol, "classes": present, "mean": "users"},
        "macro_f1": {"mean": "classes", **protocol, "classes": present},
        "auc": {"over": "second class" if binary else "one-vs-rest", **protocol, "ties": "half"}
        | ({} if binary else {"classes": present, "mean": "classes"}),
    }
    users, values = statistics.by_user(judged.users, (judged.guess == judged.truth).astype(np.float64)[:, None])
    (low,), (high,) = statistics.intervals(values, seed)
    mean = float(values.mean()) if len(values) else float("nan")
    definition = define("accuracy", told["accuracy"])
    found = [Metric(task, "accuracy", definition, mean, float(low), float(high), len(users), users=users, values=values[:, 0])]
    for name, measure in (("macro_f1", macro_f1(judged, unit)), ("auc", auc(judged, unit))):
        found.append(Metric.measured(task, name, define(name, told[name]), people, measure, seed=seed))
    return found


def macro_f1(judged: Judged, unit: np.ndarray) -> Measure:
    """The plain mean of F1 = 2 tp / (true + guessed) over the classes that have a true row of weight; NaN where none has.

    Row i belongs to the user at `unit[i]` of the weights [R, U]."""
    hits = judged.guess == judged.truth
    guessed, true, both = (
        _by_user(unit[rows], classes[rows], judged.scores.shape[1], int(unit.max(initial=-1)) + 1)
        for classes, rows in ((judged.guess, slice(None)), (judged.truth, slice(None)), (judged.truth, hits))
    )

    def measure(weights: np.ndarray) -> np.ndarray:
        answers = weights @ true  # [R, K]
        here = answers > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            each = np.where(here, 2 * (weights @ both) / (answers + weights @ guessed), 0.0)
            return each.sum(1) / here.sum(1)

    return measure


def _by_user(unit: np.ndarray, classes: np.ndarray, count: int, users: int) -> sparse.csr_array:
    """[U, K]: how many rows of each class a user has."""
    return sparse.csr_array((np.ones(len(unit)), (unit, classes)), shape=(users, count))


def auc(judged: Judged, unit: np.ndarray) -> Measure:
    """Of two classes the AUC of the second one's score; of several the plain mean of each one's against the rest, over the
    classes of which there are rows of weight and others too. NaN where there is none."""
    count = judged.scores.shape[1]
    chosen = [1] if count == 2 else np.unique(judged.truth).tolist()
    each = [roc.auc(judged.scores[:, one], judged.truth == one, unit) for one in chosen]

    def measure(weights: np.ndarray) -> np.ndarray:
        total, defined = np.zeros(len(weights)), np.zeros(len(weights))
        for one in each:
            found = one(weights)
            total += np.nan_to_num(found)
            defined += ~np.isnan(found)
        return np.where(defined > 0, total / np.maximum(defined, 1), np.nan)

    return measure
