"""The area under the ROC curve, ties counted half, as a function of how often each user counts."""

from __future__ import annotations

import numpy as np

from userec.evaluator.statistics import Measure

CELLS = 1 << 21
"""Rows x resamples held at once (16 MB in float64)."""


def auc(scores: np.ndarray, right: np.ndarray, unit: np.ndarray) -> Measure:
    """P(a right row scores higher than a wrong one) + P(they tie) / 2 (Mann-Whitney), over all pairs of rows.

    `scores` [N], `right` [N] bool; row i belongs to the user at `unit[i]` of the weights [R, U] and weighs as much. NaN where
    either kind is absent. Raises ValueError at a score that is not a number: it has no place in an order."""
    if np.isnan(scores).any():
        raise ValueError("scores that are not numbers have no order")
    order = np.argsort(scores, kind="stable")
    scores, right, unit = scores[order], right[order], unit[order]
    low, high = unit[~right], unit[right]  # users of the wrong and the right rows, by score
    first = np.searchsorted(scores[~right], scores[right])  # wrong rows below each right one
    last = np.searchsorted(scores[~right], scores[right], side="right")  # and those that tie with it too
    ties = not np.array_equal(first, last)
    most = max(CELLS // max(len(scores), 1), 1)

    def part(weights: np.ndarray) -> np.ndarray:
        columns = np.ascontiguousarray(weights.T)  # [U, R]: a row's weights in all resamples lie side by side
        below = np.zeros((len(low) + 1, len(weights)))
        np.cumsum(columns[low], axis=0, out=below[1:])
        total = below[-1]
        won = (below[first] + below[last]) / 2 if ties else below[first]  # [right rows, R]
        rows = columns[high]
        pairs = rows.sum(0) * total
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, np.einsum("nr,nr->r", rows, won) / pairs, np.nan)

    def measure(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([part(weights[start : start + most]) for start in range(0, len(weights), most)])

    return measure
