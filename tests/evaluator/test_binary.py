"""Judged candidates against scikit-learn, by hand, and by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from userec.evaluator import binary, roc
from userec.evaluator.binary import Judged

ROWS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0]), st.booleans()), min_size=1, max_size=40
)


def judged(rows: list[tuple[int, float, bool]]) -> Judged:
    users, scores, right = (np.array(column) for column in zip(*rows, strict=True))
    return Judged.of(users, scores, right)


def once(measure: binary.Measure, found: Judged) -> float:
    return float(measure(np.ones((1, len(found.users))))[0])


def pairs(rows: list[tuple[int, float, bool]]) -> float:
    """AUC pair by pair."""
    won = [(high > low) + (high == low) / 2 for _, high, right in rows if right for _, low, other in rows if not other]
    return float(np.mean(won)) if won else float("nan")


@settings(derandomize=True, deadline=None)
@given(ROWS, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_auc_counts_pairs_and_a_user_drawn_twice_counts_twice(rows: list[tuple[int, float, bool]], times: list[int]) -> None:
    found = judged(rows)
    assert once(binary.auc(found), found) == pytest.approx(pairs(rows), nan_ok=True)
    if len({right for *_, right in rows}) == 2:
        assert once(binary.auc(found), found) == pytest.approx(roc_auc_score(found.right, found.scores))
    weights = np.array([[times[user] for user in found.users]], np.float64)
    repeated = [row for row in rows for _ in range(times[row[0]])]
    assert float(binary.auc(found)(weights)[0]) == pytest.approx(pairs(repeated), nan_ok=True)


@settings(derandomize=True, deadline=None)
@given(ROWS)
def test_auc_by_user_is_the_auc_of_his_rows(rows: list[tuple[int, float, bool]]) -> None:
    found = judged(rows)
    brute = [pairs([row for row in rows if row[0] == user]) for user in found.users]
    assert binary.auc_by_user(found) == pytest.approx(np.array(brute), nan_ok=True)
    kept = [(user, own, sum(row[0] == user for row in rows)) for user, own in zip(found.users, brute, strict=True) if own == own]
    for by_rows in (True, False):
        users, measure = binary.gauc(found, by_rows)
        assert users.tolist() == [user for user, *_ in kept]
        weight = [count if by_rows else 1 for *_, count in kept]
        mean = np.average([own for _, own, _ in kept], weights=weight) if kept else np.nan
        assert float(measure(np.ones((1, len(users))))[0]) == pytest.approx(mean, nan_ok=True)


def test_gauc_by_hand() -> None:
    # User 0 wins one of two pairs (3 rows); user 1 wins one and ties one of two (3 rows); user 2 has right rows alone and is left
    # out; user 3 loses his one pair (2 rows).
    rows = [(0, 3.0, True), (0, 1.0, False), (0, 4.0, False), (1, 2.0, True), (1, 5.0, True), (1, 2.0, False)]
    rows += [(2, 1.0, True), (3, 1.0, True), (3, 2.0, False)]
    found = judged(rows)
    users, measure = binary.gauc(found, True)
    assert users.tolist() == [0, 1, 3]
    assert measure(np.ones((1, 3)))[0] == pytest.approx((3 * 0.5 + 3 * 0.75 + 2 * 0) / 8)
    assert binary.gauc(found, False)[1](np.ones((1, 3)))[0] == pytest.approx((0.5 + 0.75 + 0) / 3)


@settings(derandomize=True, deadline=None)
@given(ROWS)
def test_log_loss_is_scikit_learns(rows: list[tuple[int, float, bool]]) -> None:
    found = judged(rows)
    chance = 1 / (1 + np.exp(-found.scores))
    assert once(binary.log_loss(found), found) == pytest.approx(log_loss(found.right, chance, labels=[False, True]))


def test_log_loss_stays_finite_at_any_score() -> None:
    found = judged([(0, 1e4, False), (0, -1e4, True), (1, 1e4, True), (1, -1e4, False)])
    assert once(binary.log_loss(found), found) == pytest.approx(5e3)
    assert binary.log_loss(found)(np.array([[0.0, 1.0]]))[0] == 0


def test_calibration_error_by_hand() -> None:
    scores = np.log(np.array([0.25, 0.25, 0.75, 0.75]) / np.array([0.75, 0.75, 0.25, 0.25]))
    found = Judged.of(np.arange(4), scores, np.array([True, False, True, True]))
    # two bins of two rows: |1/2 - 1/4| and |1 - 3/4|, each half the rows
    assert binary.calibration_error(found, 2) == pytest.approx(0.25)
    assert binary.calibration_error(found, 1) == pytest.approx(0.75 - 0.5)
    sure = Judged.of(np.arange(2), np.array([800.0, -800.0]), np.array([True, True]))
    assert binary.calibration_error(sure, 10) == pytest.approx(0.5)  # the highest P lies in the last bin


@settings(derandomize=True, deadline=None)
@given(ROWS, st.integers(1, 12))
def test_calibration_error_bin_by_bin(rows: list[tuple[int, float, bool]], bins: int) -> None:
    found = judged(rows)
    chance = 1 / (1 + np.exp(-found.scores))
    total = 0.0
    for b in range(bins):
        inside = (chance >= b / bins) & (chance < (b + 1) / bins)
        if inside.any():
            total += inside.sum() / len(rows) * abs(found.right[inside].mean() - chance[inside].mean())
    assert binary.calibration_error(found, bins) == pytest.approx(total, abs=1e-12)


def test_a_few_resamples_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    found = Judged.of(rng.integers(0, 6, 50), rng.integers(0, 5, 50).astype(float), rng.random(50) < 0.4)
    weights = rng.integers(0, 3, (9, len(found.users))).astype(float)
    whole = binary.auc(found)(weights)
    monkeypatch.setattr(roc, "CELLS", 100)
    assert np.array_equal(binary.auc(found)(weights), whole)


def test_no_row_is_no_number() -> None:
    found = Judged.of(np.zeros(0, np.int64), np.zeros(0), np.zeros(0, bool))
    for measure in (binary.auc(found), binary.gauc(found, True)[1], binary.log_loss(found)):
        assert np.isnan(measure(np.ones((1, 0)))).all()
    assert np.isnan(binary.calibration_error(found, 10))
