"""Intervals of means over users."""

from __future__ import annotations

import numpy as np
import pytest

from userec.evaluator import statistics
from userec.evaluator.statistics import by_user, intervals


def test_a_user_counts_once() -> None:
    users, values = by_user(np.array([7, 3, 7, 7]), np.array([[1.0, 0], [0, 2], [0, 0], [0, 3]]))
    assert users.tolist() == [3, 7]
    assert values == pytest.approx(np.array([[0, 2], [1 / 3, 1]]))
    users, values = by_user(np.array([5, 2]), np.array([[1.0], [2.0]]))
    assert (users.tolist(), values.tolist()) == ([2, 5], [[2.0], [1.0]])


def test_interval_is_that_of_the_normal_law_for_many_users() -> None:
    values = np.random.default_rng(3).random((4000, 3))
    low, high = intervals(values, seed=1)
    half = 1.96 * values.std(0) / np.sqrt(len(values))
    assert low == pytest.approx(values.mean(0) - half, abs=0.15 * half.max())
    assert high == pytest.approx(values.mean(0) + half, abs=0.15 * half.max())


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((100, 300)) < 0.3  # 300 studies of 100 users
    low, high = intervals(values.astype(np.float64))
    covered = ((low <= 0.3) & (high >= 0.3)).mean()
    assert 0.90 < covered < 0.985


def test_seeded_and_columns_do_not_touch_each_other() -> None:
    values = np.random.default_rng(4).random((50, 4))
    low, high = intervals(values, seed=9)
    assert np.array_equal(low, intervals(values, seed=9)[0])
    assert not np.array_equal(low, intervals(values, seed=10)[0])
    assert intervals(values[:, 2:3], seed=9)[1][0] == pytest.approx(high[2], abs=1e-12)


def test_memory_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(4).random((50, 2))
    whole = intervals(values)
    monkeypatch.setattr(statistics, "DRAWS", 500)
    statistics._kept.cache_clear()  # or the draws of before answer
    assert np.stack(intervals(values)) == pytest.approx(np.stack(whole), abs=1e-12)


def test_degenerate_cases() -> None:
    assert np.isnan(intervals(np.zeros((0, 2)))).all()
    assert intervals(np.ones((1, 1))) == (pytest.approx([1.0]), pytest.approx([1.0]))
    low, high = intervals(np.full((statistics.MANY, 1), 0.25))
    assert (low[0], high[0]) == (0.25, 0.25)
