"""Judged candidates: how well scores tell right rows from wrong ones, over all rows, inside each user, and as probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from userec.evaluator import roc, statistics
from userec.evaluator.statistics import Measure


@dataclass(frozen=True)
class Judged:
    """Scored rows, each of a user and right or wrong."""

    users: np.ndarray  # [U] user rows, distinct, ascending
    unit: np.ndarray  # [N] where each row's user stands in `users`
    scores: np.ndarray  # [N] float64
    right: np.ndarray  # [N] bool

    @classmethod
    def of(cls, users: np.ndarray, scores: np.ndarray, right: np.ndarray) -> Judged:
        """From rows [N] in any order."""
        distinct, unit = np.unique(users, return_inverse=True)
        return cls(distinct, unit.reshape(-1), scores.astype(np.float64), right.astype(bool))

    def sums(self, values: np.ndarray) -> np.ndarray:
        """`values` [N] summed by user: [U]."""
        return np.bincount(self.unit, weights=values, minlength=len(self.users))

    @property
    def rows(self) -> np.ndarray:
        """Rows a user: [U]."""
        return np.bincount(self.unit, minlength=len(self.users))


def auc(judged: Judged) -> Measure:
    """The area over all pairs of rows, whosever they are."""
    return roc.auc(judged.scores, judged.right, judged.unit)


def auc_by_user(judged: Judged) -> np.ndarray:
    """[U] float64: each user's own area, ties counted half; NaN for one who has right rows alone, or wrong ones alone."""
    order = np.lexsort((judged.scores, judged.unit))
    scores, right, unit = judged.scores[order], judged.right[order], judged.unit[order]
    if not len(order):
        return np.zeros(0)
    groups = np.flatnonzero(np.append(True, (scores[1:] != scores[:-1]) | (unit[1:] != unit[:-1])))  # tied rows of one user
    high = np.add.reduceat(right.astype(np.float64), groups)  # [G]
    low = np.add.reduceat((~right).astype(np.float64), groups)
    owner = unit[groups]
    wrong = np.bincount(owner, weights=low, minlength=len(judged.users))  # [U]
    below = np.cumsum(low) - low - (np.cumsum(wrong) - wrong)[owner]
    won = np.bincount(owner, weights=high * (below + low / 2), minlength=len(judged.users))
    pairs = wrong * np.bincount(owner, weights=high, minlength=len(judged.users))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, won / pairs, np.nan)


def gauc(judged: Judged, by_rows: bool) -> tuple[np.ndarray, Measure]:
    """(users [K] who have both kinds of rows, the mean of their own areas): weighed by their rows (Zhou et al., KDD 2018,
    section 5.2, weighs by impressions), or each alike."""
    own = auc_by_user(judged)
    kept = ~np.isnan(own)
    weight = judged.rows[kept] if by_rows else np.ones(int(kept.sum()))
    return judged.users[kept], statistics.ratio(own[kept] * weight, weight)


def log_loss(judged: Judged) -> Measure:
    """Mean over rows of -ln P(what was seen), P(right) = 1 / (1 + exp(-score)): ln(1 + exp(-+score)), finite at any score."""
    lost = np.logaddexp(0.0, np.where(judged.right, -judged.scores, judged.scores))
    return statistics.ratio(judged.sums(lost), judged.rows)


def calibration_error(judged: Judged, bins: int) -> float:
    """Expected calibration error: over `bins` bins of equal width of P(right), the mean over rows of |share right - mean P|
    (Guo et al., ICML 2017, eq. 3, for the probability of one class). NaN without rows."""
    if not len(judged.scores):
        return float("nan")
    chance = np.exp(-np.logaddexp(0.0, -judged.scores))  # [N]
    place = np.minimum((chance * bins).astype(np.int64), bins - 1)  # bin b holds b/bins <= P < (b+1)/bins, the last one 1 too
    gaps = np.bincount(place, weights=judged.right - chance, minlength=bins)
    return float(np.abs(gaps).sum() / len(chance))
