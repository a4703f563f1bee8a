"""The probe against scikit-learn, and what it does where there is nothing to fit."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler, normalize

from userec.evaluator import probe
from userec.evaluator.probe import Probe, Scale, choose, hold_out, solve

STRENGTHS = (100.0, 10.0, 1.0, 0.1, 0.01)


def drawn(classes: int, rows: int = 200, width: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(3, 5, (rows, width)).astype(np.float32)
    logits = x @ rng.normal(size=(width, classes)) / 5 + rng.gumbel(size=(rows, classes))
    return x, logits.argmax(1)


def bag(rows: int = 150, width: int = 90, seed: int = 0) -> tuple[Any, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = (rng.random((rows, width)) < 0.05) * rng.integers(1, 4, (rows, width))
    return sparse.csr_array(x.astype(np.float32)), (x[:, :30].sum(1) > x[:, 30:60].sum(1)).astype(np.int64) + 2


def oracle(x: Any, y: np.ndarray, c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x, y)


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("l2", [10.0, 0.3])
def test_solve_equals_scikit_learn_at_equal_strength(classes: int, l2: float) -> None:
    x, y = drawn(classes)
    x = StandardScaler().fit_transform(x.astype(np.float64))
    weight = solve(x, y, classes, l2)
    told = oracle(x, y, (2 if classes == 2 else 1) / l2)
    mine = weight[:, 1:] - weight[:, :1] if classes == 2 else weight
    coefficients = mine[:-1].T
    assert coefficients == pytest.approx(told.coef_, abs=1e-4)
    assert mine[-1] - mine[-1].mean() == pytest.approx(told.intercept_ - told.intercept_.mean(), abs=1e-4)


def test_probabilities_equal_scikit_learn_on_standardised_rows() -> None:
    (x, y), (new, _) = drawn(4), drawn(4, seed=1)
    fitted = Probe.fit(x, y, 4, (2.0,))
    assert fitted.told == "probe(logistic,l2=2,standardised)"
    assert fitted.rows == 200
    scaler = StandardScaler().fit(x.astype(np.float64))
    told = oracle(scaler.transform(x.astype(np.float64)) / 6**0.5, y, 1 / 2.0)
    want = told.predict_proba(scaler.transform(new.astype(np.float64)) / 6**0.5)
    assert fitted(new) == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize("dense", [False, True])
def test_bags_are_fitted_on_unit_rows_sparse_or_not(dense: bool) -> None:
    (x, y), (new, _) = bag(), bag(seed=1)
    fitted = Probe.fit(x.toarray() if dense else x, y, 5, (0.5,))
    assert fitted.told == "probe(logistic,l2=0.5,unit-norm)"
    told = oracle(normalize(x.astype(np.float64)), y, 2 / 0.5)
    found = fitted(new.toarray() if dense else new)
    assert found[:, 2:4] == pytest.approx(told.predict_proba(normalize(new.astype(np.float64))), abs=1e-5)
    assert not found[:, [0, 1, 4]].any()  # no training row was of these


def test_scale_of_training_rows_alone_and_of_columns_that_do_not_vary() -> None:
    x, _ = drawn(3)
    x[:, 2] = 7.3
    scale = Scale.of(x)
    assert (scale(x) ** 2).sum(1).mean() == pytest.approx(1)
    assert not scale(x + 1e6)[:, 2].any()
    assert scale(x[:5]) == pytest.approx(scale(x)[:5])


def test_hold_out_is_a_fifth_of_each_class_and_spares_the_rare() -> None:
    y = np.repeat([0, 1, 2], [100, 11, 4])
    held = hold_out(y, 0)
    assert np.bincount(y[held], minlength=3).tolist() == [20, 2, 0]
    assert np.array_equal(held, hold_out(y, 0))
    assert not np.array_equal(held, hold_out(y, 1))


def test_noise_is_fitted_weakly_and_what_is_clear_strongly() -> None:
    rng = np.random.default_rng(5)
    noise, clear = rng.normal(size=(300, 40)), drawn(3, 300)[0]
    label = clear[:, 0] > 3
    weak, _ = choose(Scale.of(noise)(noise), rng.integers(0, 2, 300), 2, STRENGTHS, 0)
    strong, start = choose(Scale.of(clear)(clear), label.astype(int), 2, STRENGTHS, 0)
    assert weak == 100
    assert strong <= 0.1
    assert start is not None


def test_the_chosen_strength_has_the_least_held_out_loss() -> None:
    x, y = drawn(3, 120)
    x = Scale.of(x)(x)
    held = hold_out(y, 3)
    losses = {}
    for l2 in STRENGTHS:
        told = oracle(x[~held], y[~held], 1 / l2)
        losses[l2] = -told.predict_log_proba(x[held])[np.arange(held.sum()), y[held]].mean()
    assert choose(x, y, 3, STRENGTHS[::-1], 3)[0] == min(losses, key=lambda l2: losses[l2])


def test_a_warm_start_changes_nothing() -> None:
    x, y = drawn(3)
    x = Scale.of(x)(x)
    warm = solve(x, y, 3, 0.5, solve(x, y, 3, 50.0))
    assert warm == pytest.approx(solve(x, y, 3, 0.5), abs=1e-4)


@pytest.mark.parametrize(
    ("x", "y", "want"),
    [
        (np.zeros((0, 3), np.float32), [], [1 / 3, 1 / 3, 1 / 3]),
        (np.ones((4, 3), np.float32), [1, 1, 1, 1], [0, 1, 0]),
        (np.full((4, 1), 0.1, np.float32), [2, 0, 2, 2], [0.25, 0, 0.75]),
        (sparse.csr_array((4, 9), dtype=np.float32), [2, 0, 2, 2], [0.25, 0, 0.75]),
    ],
)
def test_the_prior_where_there_is_nothing_to_fit(x: Any, y: list[int], want: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = Probe.fit(x, np.array(y, np.int64), 3, STRENGTHS)
        found = fitted(x[:2] if x.shape[0] else np.ones((2, 3), np.float32))
    assert found.tolist() == [want, want]
    assert fitted.told == "probe(prior)"


def test_two_rows_are_enough() -> None:
    fitted = Probe.fit(np.array([[0.0], [1.0]]), np.array([0, 1]), 2, STRENGTHS)
    assert fitted.l2 == 1.0  # nobody held out: the middle one
    assert fitted(np.array([[0.0], [1.0]])).argmax(1).tolist() == [0, 1]


def test_the_search_never_needs_more_than_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.array([[0.0], [1.0], [0.2], [0.9]] * 20)
    y = np.array([0, 1, 0, 1] * 20)
    monkeypatch.setattr(probe, "STEPS", 3)
    assert np.isfinite(Probe.fit(x, y, 2, (1e-9,))(x)).all()
