"""The area under the ROC curve, ties counted half, as a function of how often each user counts."""

from __future__ import annotations

import numpy as np

from userec.evaluator.statistics import Measure


def auc(scores: np.ndarray, right: np.ndarray, unit: np.ndarray) -> Measure:
    """P(a right row scores higher than a wrong one) + P(they tie) / 2 (Mann-Whitney), over all pairs of rows.

    `scores` [N], `right` [N] bool; row i belongs to the user at `unit[i]` of the weights [R, U] and weighs as much. NaN where
    either kind is absent."""
    order = np.argsort(scores, kind="stable")
    scores, right, unit = scores[order], right[order], unit[order]
    groups = np.flatnonzero(np.append(True, scores[1:] != scores[:-1])) if len(scores) else np.zeros(0, np.int64)

    def measure(weights: np.ndarray) -> np.ndarray:
        if not len(groups):
            return np.full(len(weights), np.nan)
        rows = weights[:, unit]  # [R, N]
        high = np.add.reduceat(rows * right, groups, axis=1)  # [R, G]
        low = np.add.reduceat(rows * ~right, groups, axis=1)
        below = np.cumsum(low, axis=1) - low
        pairs = high.sum(1) * low.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, (high * (below + low / 2)).sum(1) / pairs, np.nan)

    return measure
