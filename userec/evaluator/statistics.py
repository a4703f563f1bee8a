"""How sure a mean over users is. Users are the unit: one with several queries counts once, with his mean."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

RESAMPLES = 1000
DRAWS = 1 << 21
"""Users drawn at once: bounds the memory (16 MB of indices)."""

MANY = 100_000
"""From here on the normal interval: the bootstrap of a mean differs from it by O(1/sqrt n) of its own width."""


def by_user(users: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`users` [N] and `values` [N, M] of queries -> the distinct users [U] ascending and each one's mean [U, M]."""
    distinct, which, counts = np.unique(users, return_inverse=True, return_counts=True)
    if len(distinct) == len(users):
        return distinct, values[np.argsort(users, kind="stable")]
    sums = [np.bincount(which, weights=column, minlength=len(distinct)) for column in values.T]
    return distinct, np.stack(sums, 1) / counts[:, None]


def intervals(
    values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of the mean over users of each column: (low [M], high [M]) of `values` [U, M].

    All columns share each resample. Pure in (values, seed); NaN without users."""
    users, columns = values.shape
    if users == 0:
        return np.full(columns, np.nan), np.full(columns, np.nan)
    tail = (1 - level) / 2
    if users >= MANY:
        half = ndtri(1 - tail) * values.std(0) / np.sqrt(users)
        return values.mean(0) - half, values.mean(0) + half
    rng = np.random.default_rng(seed)
    means, step = [], max(1, DRAWS // users)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, users, (rows, users))
        drawn += np.arange(rows)[:, None] * users
        times = np.bincount(drawn.reshape(-1), minlength=rows * users).reshape(rows, users)  # how often each user was drawn
        means.append(times.astype(np.float64) @ values / users)
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low, high
