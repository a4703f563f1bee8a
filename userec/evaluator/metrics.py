"""Ranking metrics as the expected value over all orderings of ties, from the counts in `Ranks`; and what they mean, as strings.

Closed forms after McSherry & Najork (ECIR 2008), checked in the tests by enumeration. All arithmetic is float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import digamma

from userec.evaluator.ranks import Ranks

FACTS: Mapping[str, Mapping[str, str]] = {
    "hr": {"hit": "any"},
    "recall": {"over": "targets"},
    "precision": {"over": "k"},
    "ndcg": {"gain": "binary", "idcg": "min(k,targets)"},
    "mrr": {"rank": "first"},
    "map": {"over": "min(k,targets)"},
    "coverage": {"share": "catalogue"},
    "gini": {"over": "catalogue"},
    "novelty": {"bits": "-log2((count+1)/(events+catalogue))"},
}
"""What is settled by the metric itself; the protocol's facts follow it in a definition."""


def define(metric: str, protocol: Mapping[str, str]) -> str:
    """`ndcg@10[gain=binary,idcg=min(k,targets),ties=expected,...]`: what `metric` (name, `@k`, `~set`) means, canonically."""
    base = metric.split("~")[0].split("@")[0]
    return f"{metric}[{','.join(f'{key}={value}' for key, value in {**FACTS.get(base, {}), **protocol}.items())}]"


def measure(ranks: Ranks, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """{`hr@k`, `recall@k`, `precision@k`, `ndcg@k`, `map@k` for each k, `mrr`: [N] float64}; NaN where a query has no target."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {}
        for k in ks:
            found[f"hr@{k}"] = _hit(ranks, k)
            hits = _total(ranks, np.clip((k - ranks.above) / ranks.tied, 0.0, 1.0))
            found[f"recall@{k}"] = hits / ranks.targets
            found[f"precision@{k}"] = hits / k
            found[f"ndcg@{k}"] = _ndcg(ranks, k)
            found[f"map@{k}"] = average_precision(ranks, k)
        found["mrr"] = _reciprocal(ranks)
    return {name: np.where(ranks.targets > 0, values, np.nan) for name, values in found.items()}


def _total(ranks: Ranks, values: np.ndarray) -> np.ndarray:
    """`values` [M] of the relevant candidates, summed by query: [N]."""
    return np.bincount(ranks.query, weights=values, minlength=len(ranks.targets))


def _by_first(ranks: Ranks, values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The value of each query's best tie group (its members hold the same one), 0 where it has none: [N]."""
    out = np.zeros(len(ranks.targets))
    out[ranks.query[where]] = values
    return out


def _hit(ranks: Ranks, k: int) -> np.ndarray:
    """P(a relevant one within k) = 1 - C(n-r, m) / C(n, m): the best tie group has n members, r relevant, m places within k."""
    first = ranks.before == 0
    n, r = ranks.tied[first], ranks.relevant[first]
    m = np.clip(k - ranks.above[first], 0, n)
    missed = np.ones(len(n))
    for place in range(int(m.max(initial=0))):
        inside = place < m
        missed[inside] *= np.maximum(n - r - place, 0)[inside] / (n - place)[inside]
    return _by_first(ranks, np.where(m == n, 1.0, 1.0 - missed), first)


def _ndcg(ranks: Ranks, k: int) -> np.ndarray:
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, k + 2)))])  # [k + 1]
    gained = discounts[np.minimum(ranks.above + ranks.tied, k)] - discounts[np.minimum(ranks.above, k)]
    return _total(ranks, gained / ranks.tied) / discounts[np.minimum(ranks.targets, k)]


def average_precision(ranks: Ranks, k: int) -> np.ndarray:
    """Expected average precision over the first k, [N]; 0 where a query has no target.

    Up to a relevant one at rank t, its tie group of n, stand on average 1 + before + (r-1)(t-above-1)/(n-1) relevant ones."""
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, k + 1))])  # [k + 1]
    start, end = np.minimum(ranks.above, k), np.minimum(ranks.above + ranks.tied, k)
    mates = (ranks.relevant - 1) / np.maximum(ranks.tied - 1, 1)
    precisions = (ranks.before + 1 - mates * (ranks.above + 1)) * (harmonic[end] - harmonic[start]) + mates * (end - start)
    return _total(ranks, precisions / ranks.tied) / np.minimum(ranks.targets, k)


def _reciprocal(ranks: Ranks) -> np.ndarray:
    first = ranks.before == 0
    b, n, r = ranks.above[first], ranks.tied[first], ranks.relevant[first]
    values = 1.0 / (b + 1)  # no tie, or a group relevant throughout
    alone = (r == 1) & (n > 1)
    values[alone] = (digamma(b[alone] + n[alone] + 1.0) - digamma(b[alone] + 1.0)) / n[alone]
    several = (r > 1) & (n > r)
    groups, which = np.unique(np.stack([b, n, r], 1)[several], axis=0, return_inverse=True)
    values[several] = np.array([_expected_reciprocal(*group) for group in groups.tolist()])[which.reshape(-1)]
    return _by_first(ranks, values, first)


def _expected_reciprocal(b: int, n: int, r: int) -> float:
    """E[1 / (b + J)], J the least of r places drawn from 1..n: P(J > j) = prod_{i<=j} (1 - r / (n - i + 1)).

    Terms past P(J > j) < 1e-17 add nothing, so at most 40 n / r of them are summed."""
    places = min(n - r + 1, int(40 * n / r) + 1)
    j = np.arange(1, places + 1, dtype=np.float64)
    here = r / (n - j + 1)  # P(J = j | J >= j)
    alive = np.concatenate([[1.0], np.cumprod(1 - here)[:-1]])  # P(J >= j)
    return float((alive * here / (b + j)).sum())


def coverage(counts: np.ndarray) -> float:
    """The share of the catalogue that is recommended to anybody; `counts` [n] recommendations of each real item."""
    return float((counts > 0).mean())


def gini(counts: np.ndarray) -> float:
    """Inequality of `counts` [n] over the whole catalogue: 0 = all recommended alike, 1 - 1/n = one item alone."""
    ordered = np.sort(counts.astype(np.float64))
    n, total = len(ordered), ordered.sum()
    if total == 0:
        return float("nan")
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * total))


def information(popularity: np.ndarray) -> np.ndarray:
    """Bits of each real item's training share, add-one smoothed so that an item never seen in training stays finite: [n]."""
    return -np.log2((popularity + 1.0) / (popularity.sum() + len(popularity)))
