"""A logistic probe: how much of a class can be read off frozen embeddings by a linear model? Ours, in numpy and float64.

Multinomial logistic regression, the sum of log-losses + l2 / 2 * |W|^2 (the intercept is free), solved by L-BFGS (Liu & Nocedal,
Mathematical Programming 1989). scikit-learn's `C` is 1 / l2; of two classes, whose one vector there is the difference of two
here, 2 / l2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from userec.evaluator.embed import Matrix

SPARSE = 0.1
"""Embeddings of which a smaller share is not zero are bags: they stay sparse."""

FOLDS = 5
"""One of so many training rows of each class is held out to choose the strength."""

ROUGH, FINE = 1e-6, 1e-11
"""Least relative gain of a step, while strengths are compared and in the final fit."""

STEPS = 500


@dataclass(frozen=True)
class Scale:
    """How rows are scaled before they are weighed, so that one grid of strengths serves any embedding.

    Dense ones are standardised by the training rows' mean and deviation, then divided by the root of the columns that vary:
    the mean square norm of a training row is 1. Bags are not centred: each row is divided by its own norm."""

    mean: np.ndarray | None  # [D]; None = a bag
    factor: np.ndarray | None  # [D], 0 where a column does not vary

    @classmethod
    def of(cls, x: Matrix) -> Scale:
        """The scale of training rows [N, D]."""
        if sparse.issparse(x) or np.count_nonzero(x) < SPARSE * x.size:
            return cls(None, None)
        wide = x.astype(np.float64)
        mean, deviation = wide.mean(0), wide.std(0)
        varies = deviation > 1e-6 * np.maximum(np.abs(mean), np.abs(wide).max(initial=0) * 1e-6)
        factor = np.where(varies, 1 / np.where(varies, deviation, 1), 0.0) / max(np.sqrt(varies.sum()), 1)
        return cls(mean, factor)

    @property
    def told(self) -> str:
        """For a definition."""
        return "unit-norm" if self.mean is None else "standardised"

    def __call__(self, x: Matrix) -> Matrix:
        """[N, D] float64, sparse where the training rows were."""
        if self.mean is not None:
            dense = x.toarray() if sparse.issparse(x) else x
            return (dense.astype(np.float64) - self.mean) * self.factor
        rows = sparse.csr_array(x).astype(np.float64)
        norms = np.sqrt(rows.power(2).sum(1))
        return sparse.csr_array(sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ rows)


@dataclass(frozen=True)
class Probe:
    """A fitted probe, or the shares of the training rows where there is nothing to fit."""

    classes: int
    rows: int  # training rows
    prior: np.ndarray  # [K] share of each class; of no rows the same for all
    l2: float | None = None  # None = the prior alone
    scale: Scale | None = None
    weight: np.ndarray | None = None  # [D + 1, C], the intercept last, of the classes that occur
    known: np.ndarray | None = None  # [C] these classes

    @classmethod
    def fit(cls, x: Matrix, y: np.ndarray, classes: int, strengths: Sequence[float], seed: int = 0) -> Probe:
        """Fit to embeddings `x` [N, D] and classes `y` [N] in 0..`classes`-1.

        Of several `strengths` (l2) the best by log-loss on a seeded fifth of each class's training rows is taken, from the
        strongest on until one is worse, then all rows are fitted with it. A class of fewer than five rows holds none out; where
        none does, the middle one is taken. Without rows, with one class, or where no column varies, the prior is all."""
        counts = np.bincount(y, minlength=classes)
        prior = counts / len(y) if len(y) else np.full(classes, 1 / classes)
        known = np.flatnonzero(counts)
        if len(known) < 2:
            return cls(classes, len(y), prior)
        scale = Scale.of(x)
        scaled, place = scale(x), np.searchsorted(known, y)
        if not (scaled.nnz if sparse.issparse(scaled) else scaled.any()):
            return cls(classes, len(y), prior)
        l2, start = choose(scaled, place, len(known), strengths, seed)
        weight = solve(scaled, place, len(known), l2, start)
        return cls(classes, len(y), prior, l2, scale, weight, known)

    @property
    def told(self) -> str:
        """For a definition: `probe(logistic,l2=1,standardised)`."""
        if self.l2 is None or self.scale is None:
            return "probe(prior)"
        return f"probe(logistic,l2={self.l2:g},{self.scale.told})"

    def __call__(self, x: Matrix) -> np.ndarray:
        """Probabilities [N, K] of embeddings [N, D]; 0 of a class that no training row had."""
        if self.scale is None or self.weight is None:
            return np.tile(self.prior, (x.shape[0], 1))
        out = np.zeros((x.shape[0], self.classes))
        out[:, self.known] = softmax(_logits(self.scale(x), self.weight), axis=1)
        return out


def choose(x: Matrix, y: np.ndarray, classes: int, strengths: Sequence[float], seed: int) -> tuple[float, np.ndarray | None]:
    """(the strength, its weights on the rows that were not held out, or None where nothing was compared)."""
    path = sorted(strengths, reverse=True)
    held = hold_out(y, seed)
    if len(path) == 1 or not held.any():
        return path[len(path) // 2], None
    inside, outside = x[~held], x[held]
    best, start = np.inf, None
    chosen: tuple[float, np.ndarray | None] = (path[0], None)
    for l2 in path:
        start = solve(inside, y[~held], classes, l2, start, ROUGH)
        logs = log_softmax(_logits(outside, start), axis=1)
        loss = -logs[np.arange(len(logs)), y[held]].mean()
        if loss >= best:
            break
        best, chosen = loss, (l2, start)
    return chosen


def hold_out(y: np.ndarray, seed: int) -> np.ndarray:
    """[N] bool: every fifth row of each class, in a seeded order."""
    order = np.random.default_rng(seed).permutation(len(y))
    order = order[np.argsort(y[order], kind="stable")]  # class by class
    counts = np.bincount(y)
    place = np.arange(len(y)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.zeros(len(y), bool)
    held[order] = place % FOLDS == FOLDS - 1
    return held


def solve(x: Matrix, y: np.ndarray, classes: int, l2: float, start: np.ndarray | None = None, gain: float = FINE) -> np.ndarray:
    """Weights [D + 1, C], the intercept last, of rows `x` [N, D] and classes `y` [N], all of which occur; `start` warms it up."""
    rows, width = x.shape
    across = sparse.csr_array(x.T) if sparse.issparse(x) else x.T
    truth = np.zeros((rows, classes))
    truth[np.arange(rows), y] = 1
    if start is None:
        start = np.zeros((width + 1, classes))
        start[-1] = np.log(truth.mean(0))
        start[-1] -= start[-1].mean()

    def price(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = flat.reshape(width + 1, classes)
        logs = log_softmax(_logits(x, weight), axis=1)
        rest = np.exp(logs) - truth  # [N, C]
        slope = np.concatenate([across @ rest + l2 * weight[:-1], rest.sum(0)[None]])
        loss = -(logs * truth).sum() + l2 / 2 * (weight[:-1] ** 2).sum()
        return loss / rows, slope.reshape(-1) / rows

    found = minimize(
        price, start.reshape(-1), jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "ftol": gain, "gtol": 1e-9}
    )
    return found.x.reshape(width + 1, classes)


def _logits(x: Matrix, weight: np.ndarray) -> np.ndarray:
    """[N, C]"""
    return x @ weight[:-1] + weight[-1]
