"""How sure a number over users is. Users are the unit: one with several queries counts once, with his mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
from scipy.special import ndtri

RESAMPLES = 1000
DRAWS = 1 << 21
"""Users drawn at once: bounds the memory (16 MB of indices)."""

KEPT = 1 << 24
"""Bytes of draws that are kept for the next interval over as many users."""

MANY = 100_000
"""From here on the normal interval: the bootstrap of a mean differs from it by O(1/sqrt n) of its own width."""

WORK = 20_000_000
"""Users drawn in all for a number that is no mean; beyond it fewer resamples are taken, but 100 at least."""

TAIL = 0.025
"""On either side of an interval: 95 % lie inside."""

Measure = Callable[[np.ndarray], np.ndarray]
"""How often each user counts, [R, U] -> the number in each of R such worlds, [R] float64; NaN where it has no value."""


def by_user(users: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`users` [N] and `values` [N, M] of queries -> the distinct users [U] ascending and each one's mean [U, M]."""
    distinct, which, counts = np.unique(users, return_inverse=True, return_counts=True)
    if len(distinct) == len(users):
        return distinct, values[np.argsort(users, kind="stable")]
    sums = [np.bincount(which, weights=column, minlength=len(distinct)) for column in values.T]
    return distinct, np.stack(sums, 1) / counts[:, None]


def intervals(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean over users of each column: (low [M], high [M]) of `values` [U, M].

    All columns share each resample. Pure in (values, seed); NaN without users."""
    users, columns = values.shape
    if users == 0:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    if users >= MANY:
        half = ndtri(1 - TAIL) * values.std(0) / np.sqrt(users)
        return values.mean(0) - half, values.mean(0) + half
    means = [times @ values / users for times in draws(users, seed, resamples)]
    low, high = np.quantile(np.concatenate(means), [TAIL, 1 - TAIL], axis=0)
    return low, high


def bounds(measure: Measure, users: int, seed: int = 0, work: int | None = None) -> tuple[float, float]:
    """Percentile bootstrap interval over users of any number; resamples without a value are left out, NaN if all are."""
    resamples = min(RESAMPLES, max(100, WORK // max(users, work or 0, 1)))
    found = np.concatenate([measure(times) for times in draws(users, seed, resamples)]) if users else np.zeros(0)
    found = found[~np.isnan(found)]
    if not len(found):
        return float("nan"), float("nan")
    low, high = np.quantile(found, [TAIL, 1 - TAIL])
    return float(low), float(high)


def ratio(above: np.ndarray, below: np.ndarray) -> Measure:
    """sum(above) / sum(below) over users, [U] each: a mean over rows from each user's sum and count. NaN where below is 0."""
    parts = np.stack([above, below], 1).astype(np.float64)  # [U, 2]

    def measure(weights: np.ndarray) -> np.ndarray:
        top, bottom = (weights @ parts).T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(bottom > 0, top / bottom, np.nan)

    return measure


def draws(users: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each user was drawn, [R, users] float64, `resamples` rows in all: users with replacement."""
    few = users * resamples <= KEPT
    for times in _kept(users, seed, resamples) if few else _drawn(users, seed, resamples):
        yield times.astype(np.float64)


@lru_cache(maxsize=2)
def _kept(users: int, seed: int, resamples: int) -> list[np.ndarray]:
    """The draws of a validation are those of the next, and of every metric."""
    return [times.astype(np.uint8) for times in _drawn(users, seed, resamples)]


def _drawn(users: int, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Parts [R, users]; no user is drawn 256 times."""
    rng = np.random.default_rng(seed)
    step = max(1, DRAWS // users)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, users, (rows, users))
        drawn += np.arange(rows)[:, None] * users
        yield np.bincount(drawn.reshape(-1), minlength=rows * users).reshape(rows, users)
