"""Metrics against enumeration of every ordering of ties, and against trec_eval where there are none."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.evaluator import metrics
from userec.evaluator.ranks import Ranks, Tally

KS = (1, 2, 3, 5, 10)


def ranks_of(scores: np.ndarray, ids: list[list[int]]) -> Ranks:
    """`scores` [N, n] of ids 2.., every one a candidate; `ids` the relevant ones."""
    width = max(map(len, ids))
    padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
    table = torch.from_numpy(np.concatenate([np.zeros((len(scores), 2)), scores], 1))
    counter = Tally(padded, table.gather(1, padded))
    left = table.clone()
    left[:, :2] = torch.nan
    counter.add(left.scatter_(1, padded, torch.nan))
    return counter.ranks()


def of_ordering(order: tuple[int, ...], relevant: set[int], targets: int, k: int) -> dict[str, float]:
    """The textbook definitions on one ranking without ties."""
    hits = [item in relevant for item in order]
    cut = hits[:k]
    places = [t + 1 for t, hit in enumerate(cut) if hit]
    ideal = sum(1 / math.log2(t + 1) for t in range(1, min(k, targets) + 1))
    return {
        f"hr@{k}": float(any(cut)),
        f"recall@{k}": sum(cut) / targets,
        f"precision@{k}": sum(cut) / k,
        f"ndcg@{k}": sum(1 / math.log2(t + 1) for t in places) / ideal,
        f"map@{k}": sum((i + 1) / t for i, t in enumerate(places)) / min(k, targets),
        "mrr": next((1 / (t + 1) for t, hit in enumerate(hits) if hit), 0.0),
    }


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=2, max_size=6), st.data())
def test_ties_get_the_mean_over_all_orderings(scores: list[float], data: st.DataObject) -> None:
    n = len(scores)
    relevant = data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n))
    unknown = data.draw(st.integers(0, 1))
    found = metrics.measure(ranks_of(np.array([scores]), [[i + 2 for i in relevant] + [1] * unknown]), KS)
    orderings = [
        order for order in itertools.permutations(range(n)) if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    for k in KS:
        each = [of_ordering(order, relevant, len(relevant) + unknown, k) for order in orderings]
        for name in each[0]:
            assert found[name][0] == pytest.approx(np.mean([one[name] for one in each]), abs=1e-12), name


def test_a_constant_scorer_is_random() -> None:
    found = metrics.measure(ranks_of(np.zeros((1, 101)), [[50]]), (10,))
    assert found["hr@10"][0] == pytest.approx(10 / 101, abs=1e-15)
    assert found["mrr"][0] == pytest.approx(sum(1 / t for t in range(1, 102)) / 101, abs=1e-15)
    several = metrics.measure(ranks_of(np.zeros((1, 101)), [[50, 60, 70]]), (10,))
    assert several["hr@10"][0] == pytest.approx(1 - math.comb(98, 10) / math.comb(101, 10), abs=1e-14)
    assert several["recall@10"][0] == pytest.approx(10 / 101, abs=1e-15)


def test_against_trec_eval_without_ties() -> None:
    rng = np.random.default_rng(0)
    users, n = 50, 60
    scores = np.stack([rng.permutation(n) for _ in range(users)]).astype(np.float64)
    ids = [sorted((rng.choice(n, rng.integers(1, 15), replace=False) + 2).tolist()) for _ in range(users)]
    found = metrics.measure(ranks_of(scores, ids), KS)
    judged = {str(u): {str(i - 2): 1 for i in row} for u, row in enumerate(ids)}
    run = {str(u): {str(i): float(s) for i, s in enumerate(row)} for u, row in enumerate(scores)}
    cuts = ",".join(map(str, KS))
    names = {f"{name}.{cuts}" for name in ("recall", "P", "ndcg_cut", "map_cut", "success")} | {"recip_rank"}
    oracle = pytrec_eval.RelevanceEvaluator(judged, names).evaluate(run)
    for u in range(users):
        trec, targets = oracle[str(u)], len(ids[u])
        assert found["mrr"][u] == pytest.approx(trec["recip_rank"], abs=1e-9)
        for k in KS:
            assert found[f"recall@{k}"][u] == pytest.approx(trec[f"recall_{k}"], abs=1e-9)
            assert found[f"precision@{k}"][u] == pytest.approx(trec[f"P_{k}"], abs=1e-9)
            assert found[f"ndcg@{k}"][u] == pytest.approx(trec[f"ndcg_cut_{k}"], abs=1e-9)
            assert found[f"hr@{k}"][u] == pytest.approx(trec[f"success_{k}"], abs=1e-9)
            over = targets / min(k, targets)  # trec_eval divides by all targets, we by those that fit
            assert found[f"map@{k}"][u] == pytest.approx(trec[f"map_cut_{k}"] * over, abs=1e-9)


def test_a_great_catalogue_is_exact() -> None:
    def ranks(b: int, n: int, r: int) -> Ranks:
        one = np.ones(r, np.int64)
        return Ranks(0 * one, b * one, n * one, r * one, 0 * one, np.array([r]))

    n = 1_000_000
    harmonic = float(np.sum(1 / np.arange(1, n + 1)))
    assert metrics.measure(ranks(0, n, 1), (10,))["mrr"][0] == pytest.approx(harmonic / n, rel=1e-12)
    assert metrics.measure(ranks(0, n, 1), (10,))["hr@10"][0] == pytest.approx(1e-5, rel=1e-12)
    # two of n tied at the top: E[1/J] = 2 (H(n) n / (n - 1) - n / (n - 1)) / n ... by the sum itself
    j = np.arange(1, n, dtype=np.float64)
    assert metrics.measure(ranks(0, n, 2), (10,))["mrr"][0] == pytest.approx((2 * (n - j) / (n * (n - 1)) / j).sum(), rel=1e-10)
    j = np.arange(1, 10, dtype=np.float64)
    far = (2 * (10 - j) / 90 / (500_000 + j)).sum()
    assert metrics.measure(ranks(500_000, 10, 2), (10,))["mrr"][0] == pytest.approx(far, rel=1e-12)


def test_a_missed_target_counts_and_an_empty_query_is_nan() -> None:
    found = metrics.measure(ranks_of(np.array([[3.0, 2.0, 1.0]] * 3), [[2, 1], [1, 1], [0, 0]]), (1, 2))
    assert found["recall@1"][:2].tolist() == [0.5, 0.0]
    assert found["ndcg@2"][1] == 0
    assert found["mrr"][:2].tolist() == [1.0, 0.0]
    assert all(np.isnan(values[2]) for values in found.values())


def test_beyond_accuracy() -> None:
    assert metrics.coverage(np.array([3, 0, 1, 0])) == 0.5
    assert metrics.gini(np.array([2, 2, 2])) == pytest.approx(0)
    assert metrics.gini(np.array([0, 0, 0, 9])) == pytest.approx(0.75)
    x = np.array([1.0, 5.0, 2.0])
    assert metrics.gini(x) == pytest.approx(np.abs(x[:, None] - x).sum() / (2 * 9 * x.mean()))
    assert metrics.information(np.array([7, 1, 5])) == pytest.approx([1.0, 3.0, -math.log2(6 / 16)])


def test_definitions_are_canonical() -> None:
    told = {"ties": "expected", "catalogue": "full(3706)", "mean": "users"}
    assert (
        metrics.define("ndcg@10", told)
        == "ndcg@10[gain=binary,idcg=min(k,targets),ties=expected,catalogue=full(3706),mean=users]"
    )
    assert metrics.define("mrr~uniform100", told).startswith("mrr~uniform100[rank=first,ties=expected")
