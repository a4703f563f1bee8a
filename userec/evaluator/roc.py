"""The area under the ROC curve, ties counted half, as a function of how often each user counts."""

from __future__ import annotations

import numpy as np

from userec.evaluator.statistics import Measure


def auc(scores: np.ndarray, right: np.ndarray, unit: np.ndarray) -> Measure:
    """P(a right row scores higher than a wrong one) + P(they tie) / 2 (Mann-Whitney), over all pairs of rows.

    `scores` [N], `right` [N] bool; row i belongs to the user at `unit[i]` of the weights [R, U] and weighs as much. NaN where
    either kind is absent. Raises ValueError at a score that is not a number: it has no place in an order."""
    if np.isnan(scores).any():
        raise ValueError("scores that are not numbers have no order")
    order = np.flatnonzero(~right)[np.argsort(scores[~right], kind="stable")]
    wrong, others, own = scores[order], unit[order], unit[right]
    below = np.searchsorted(wrong, scores[right], side="left")  # wrong rows that each right one beats
    upto = np.searchsorted(wrong, scores[right], side="right")  # and ties with

    def measure(weights: np.ndarray) -> np.ndarray:
        low = np.zeros((len(weights), len(others) + 1))
        np.cumsum(weights[:, others], axis=1, out=low[:, 1:])  # weight of the wrong rows up to each score
        high = weights[:, own]
        pairs = high.sum(1) * low[:, -1]
        won = (high * (low[:, below] + low[:, upto])).sum(1) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, won / pairs, np.nan)

    return measure
