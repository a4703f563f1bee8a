"""Cosines on a grid, the area under the ROC curve and the equal error rate: by hand and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import roc_auc_score, roc_curve

from userec.evaluator import verification
from userec.evaluator.verification import GRID, auc, equal_error, levels, unit


def counts(others: list[int], size: int = 10) -> np.ndarray:
    return np.bincount(np.array(others, np.int64), minlength=size)


def eer(own: list[int], others: list[int], weights: list[float] | None = None) -> float:
    measure = equal_error(np.array(own)[:, None], counts(others))
    return float(measure(np.array([weights or [1.0] * len(own)]))[0])


@pytest.mark.parametrize(
    ("own", "others", "error", "area"),
    [
        ([7, 8, 9], [1, 2, 3], 0.0, 1.0),  # separable
        ([1, 2, 3], [7, 8, 9], 1.0, 0.0),  # reversed
        ([5, 5], [5, 5, 5], 0.5, 0.5),  # all tied: the diagonal
        ([9, 4], [6, 2], 0.5, 0.75),  # (0,0) (0,.5) (.5,.5): half accepted, half refused
        # (0,0) (0,1/2) then level 5: (1/4,1), x = 1 - y on it at x = 1/6; area 1 - 1/4 * 1/2 / 2 = 15/16
        ([9, 5], [5, 1, 1, 1], 1 / 6, 15 / 16),
        # level 8: (1/2,1/3); level 3: (1/2,1); level 1: (1,1): upright at x = 1/2; area (1/6/2) + 1/2
        ([8, 3, 3], [8, 1], 0.5, 1 / 12 + 1 / 2),
    ],
)
def test_worked_cases(own: list[int], others: list[int], error: float, area: float) -> None:
    assert eer(own, others) == pytest.approx(error, abs=1e-12)
    assert auc(np.array(own), counts(others)).mean() == pytest.approx(area, abs=1e-12)


def test_area_of_each_own_pair() -> None:
    assert auc(np.array([[9, 5], [0, 2]]), counts([5, 1, 1, 2])).tolist() == [[1.0, 0.875], [0.0, 0.625]]


LEVELS = st.lists(st.integers(0, 9), min_size=1, max_size=30)


@given(LEVELS, LEVELS)
@settings(derandomize=True, deadline=None)
def test_against_scikit_learn(own: list[int], others: list[int]) -> None:
    right, scores = np.repeat([1, 0], [len(own), len(others)]), np.array(own + others)
    assert auc(np.array(own), counts(others)).mean() == pytest.approx(roc_auc_score(right, scores))
    assert eer(own, others) == pytest.approx(crossing(right, scores), abs=1e-9)


@given(LEVELS, LEVELS, st.randoms(use_true_random=False))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_own_pairs_count_as_often_as_their_user(own: list[int], others: list[int], random: object) -> None:
    times = [random.randint(0, 3) for _ in own]  # type: ignore[attr-defined]
    if not any(times):
        assert np.isnan(eer(own, others, times))  # type: ignore[arg-type]
        return
    repeated = [level for level, count in zip(own, times, strict=True) for _ in range(count)]
    assert eer(own, others, times) == pytest.approx(eer(repeated, others), abs=1e-9)  # type: ignore[arg-type]


def crossing(right: np.ndarray, scores: np.ndarray) -> float:
    """Where scikit-learn's ROC curve meets 1 - x, by bisection along its length."""
    x, y, _ = roc_curve(right, scores, drop_intermediate=False)
    low, high = 0.0, float(len(x) - 1)
    place = np.arange(len(x))
    for _ in range(60):
        middle = (low + high) / 2
        if np.interp(middle, place, x) + np.interp(middle, place, y) < 1:
            low = middle
        else:
            high = middle
    return float(np.interp(high, place, x))


def test_several_own_pairs_of_a_user_weigh_alike() -> None:
    measure = equal_error(np.array([[9, 5], [3, 3]]), counts([5, 1, 4]))
    assert measure(np.array([[2.0, 1.0]]))[0] == pytest.approx(eer([9, 5, 9, 5, 3, 3], [5, 1, 4]))


def test_without_others_there_is_no_number() -> None:
    none = np.zeros(10, np.int64)
    assert np.isnan(auc(np.array([3]), none)).all()
    assert np.isnan(equal_error(np.array([[3]]), none)(np.ones((2, 1)))).all()
    assert np.isnan(equal_error(np.zeros((0, 1), np.int64), counts([3]))(np.ones((2, 0)))).all()


def gathered(queries: object, *galleries: object) -> np.ndarray:
    return np.concatenate([found for _, found in levels(queries, galleries)])


def test_levels_are_rounded_cosines(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    asking, older, oldest = (rng.normal(size=(n, 5)).astype(np.float32) for n in (9, 4, 4))
    cosines = [(asking @ x.T) / np.linalg.norm(asking, axis=1)[:, None] / np.linalg.norm(x, axis=1) for x in (older, oldest)]
    whole = gathered(unit(asking), unit(older), unit(oldest))
    assert whole == pytest.approx(np.concatenate(cosines, 1) * GRID, abs=1)
    assert (whole == np.rint(whole)).all()
    monkeypatch.setattr(verification, "BLOCK", 16)  # two queries at once
    starts = [start for start, _ in levels(unit(asking), [unit(older), unit(oldest)])]
    assert starts == [0, 2, 4, 6, 8]
    assert (gathered(unit(asking), unit(older), unit(oldest)) == whole).all()


def test_sparse_and_dense_agree() -> None:
    rng = np.random.default_rng(1)
    bags = (rng.random((30, 200)) < 0.04) * rng.integers(1, 4, (30, 200))
    bags[3] = 0
    dense = np.asarray(bags, np.float32)
    assert sparse.issparse(unit(dense)), "mostly zeros: the sparse product is the faster one"
    mixed = np.random.default_rng(2).normal(size=(30, 200)).astype(np.float32)
    lengths = np.maximum(np.linalg.norm(dense.astype(np.float64), axis=1, keepdims=True), 1e-300)
    wanted = np.rint((dense / lengths) @ (dense / lengths).T * GRID)
    assert (gathered(unit(dense), unit(sparse.csr_array(dense))) == wanted).all()
    assert pytest.approx(gathered(unit(dense), unit(mixed)), abs=1) == gathered(unit(mixed), unit(dense)).T


def test_a_row_of_zeros_has_cosine_zero_and_no_level_leaves_the_grid() -> None:
    rows = np.array([[0, 0], [3e-30, 4e-30], [3e30, 4e30], [-3, -4]], np.float32)
    wanted = [[0, 0, 0, 0], [0, GRID, GRID, -GRID], [0, GRID, GRID, -GRID], [0, -GRID, -GRID, GRID]]
    assert gathered(unit(rows), unit(rows)).tolist() == wanted
