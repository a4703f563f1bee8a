"""The same user or another? Cosines of all (query, gallery) pairs, counted exactly and never held together.

A cosine is rounded to a millionth and kept as a whole number, its level: beyond that, embeddings in float32 are not sure.
So equal embeddings tie to the last bit whatever stands beside them, and all pairs of different users are one count a level."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse

from userec.evaluator.embed import Matrix
from userec.evaluator.statistics import Measure

GRID = 1_000_000
"""Levels between cosine 0 and 1; all are exact in float32."""

BLOCK = 1 << 22
"""Cosines held at once (32 MB in float64)."""

SPARSE = 0.1
"""Below this share of numbers that are not zero a product of sparse matrices is the faster one."""


def unit(embeddings: Matrix) -> Matrix:
    """`embeddings` [N, D] with rows of length 1 in float64, sparse where they mostly hold zeros; a row of zeros stays."""
    if sparse.issparse(embeddings) or np.count_nonzero(embeddings) < SPARSE * embeddings.size:
        rows = sparse.csr_array(embeddings, dtype=np.float64)
        length = np.sqrt(rows.multiply(rows).sum(axis=1))
        return sparse.csr_array(sparse.diags_array(1 / np.where(length > 0, length, 1.0)) @ rows)
    dense = embeddings.astype(np.float64)
    length = np.linalg.norm(dense, axis=1, keepdims=True)
    return dense / np.where(length > 0, length, 1.0)


def levels(queries: Matrix, galleries: Sequence[Matrix]) -> Iterator[tuple[int, np.ndarray]]:
    """(first query, [B, S G] float64) by blocks: levels, whole numbers of -`GRID`..`GRID`, of the cosines of the unit rows
    `queries` [N, D] with those of S galleries [G, D], one gallery after the other."""
    turned = [gallery.T for gallery in galleries]
    rows = max(BLOCK // max(sum(gallery.shape[1] for gallery in turned), 1), 1)
    for start in range(0, queries.shape[0], rows):
        products = [queries[start : start + rows] @ gallery for gallery in turned]
        found = np.concatenate([x.toarray() if sparse.issparse(x) else x for x in products], 1)
        yield start, np.rint(found * GRID)


def auc(own: np.ndarray, others: np.ndarray) -> np.ndarray:
    """P(a pair of another user stands lower) + P(it ties) / 2, for each own pair; their mean is the area under the ROC curve
    (Mann-Whitney). `own` [...] levels, `others` [n] pairs at each level; NaN where there is no other."""
    total = others.sum()
    if not total:
        return np.full(own.shape, np.nan)
    below = np.cumsum(others) - others
    return (below[own] + others[own] / 2) / total


def equal_error(own: np.ndarray, others: np.ndarray) -> Measure:
    """Where as many own pairs are refused as others are accepted, as a function of how often each user's own pairs count.

    `own` [U, S] levels of each user's own pairs, `others` [n] pairs at each level, which are never reweighted. The ROC curve is
    exact: one vertex a level, straight between them, so that a level at which both kinds stand is a diagonal; NaN where
    either kind is absent."""
    total = others.sum()
    steps, which = np.unique(-own, return_inverse=True)  # [V]: distinct levels, the highest first
    which = which.reshape(own.shape)
    upto = np.cumsum(others[::-1])[::-1][-steps] / max(int(total), 1)  # [V]: others accepted at each level
    before = upto - others[-steps] / max(int(total), 1)
    # vertices: the origin, then before and at each level, then everything accepted
    accepted = np.concatenate([[0.0], np.stack([before, upto], 1).reshape(-1), [1.0]])  # [2V + 2]

    def measure(weights: np.ndarray) -> np.ndarray:
        if not total or not own.size:
            return np.full(len(weights), np.nan)
        here = np.zeros((len(weights), len(steps)))  # [R, V]: own pairs at each level
        for shot in which.T:
            here += _spread(weights, shot, len(steps))
        whole = here.sum(1)
        right = np.cumsum(here, 1) / np.where(whole > 0, whole, 1.0)[:, None]
        right[:, -1] = 1.0
        kept = np.zeros((len(weights), len(accepted)))  # own pairs accepted at each vertex
        kept[:, 2:-1:2] = right
        kept[:, 3:-1:2] = right[:, :-1]
        kept[:, -1] = 1.0
        surplus = accepted + kept - 1  # rises from -1 to 1; the error is equal where it is 0
        after = (surplus < 0).sum(1)
        row = np.arange(len(weights))
        low, high = surplus[row, after - 1], surplus[row, after]
        found = accepted[after - 1] - low / (high - low) * (accepted[after] - accepted[after - 1])
        return np.where(whole > 0, found, np.nan)

    return measure


def _spread(weights: np.ndarray, to: np.ndarray, width: int) -> np.ndarray:
    """`weights` [R, U] added up in the columns `to` [U]: [R, width]."""
    cells = np.arange(len(weights))[:, None] * width + to
    return np.bincount(cells.reshape(-1), weights.reshape(-1), len(weights) * width).reshape(len(weights), width)
