"""The area under the ROC curve against scikit-learn, ties and weights included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from userec.evaluator.roc import auc

ROWS = st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 5)), min_size=1, max_size=30)


@given(ROWS, st.lists(st.integers(0, 3), min_size=6, max_size=6))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_equals_scikit_learn_with_ties_and_weights(rows: list[tuple[int, bool, int]], times: list[int]) -> None:
    scores, right, unit = (np.array(column) for column in zip(*rows, strict=True))
    weights = np.array([times, [1] * 6], np.float64)
    found = auc(scores / 4, right, unit)(weights)
    for value, row in zip(found, weights, strict=True):
        counts = row[unit]
        if counts[right].sum() and counts[~right].sum():
            assert value == pytest.approx(roc_auc_score(right, scores, sample_weight=counts), abs=1e-9)
        else:
            assert np.isnan(value)


def test_a_user_drawn_twice_weighs_as_his_rows_twice() -> None:
    scores, right, unit = np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, True, False, True]), np.array([0, 0, 1, 2])
    again = np.array([0, 0, 1, 1, 2, 3])  # user 0 has the first two rows
    (once,) = auc(scores, right, unit)(np.array([[2.0, 1, 1]]))
    (plain,) = auc(scores[again], right[again], np.arange(6))(np.ones((1, 6)))
    assert once == plain


@pytest.mark.parametrize(("right", "value"), [([True, True], np.nan), ([False, False], np.nan), ([False, True], 0.5)])
def test_one_kind_alone_has_no_value_and_ties_are_half(right: list[bool], value: float) -> None:
    found = auc(np.zeros(2), np.array(right), np.arange(2))(np.ones((3, 2)))
    assert found == pytest.approx(np.full(3, value), nan_ok=True)


def test_no_rows_and_no_numbers() -> None:
    assert np.isnan(auc(np.zeros(0), np.zeros(0, bool), np.zeros(0, np.int64))(np.ones((2, 0)))).all()
    with pytest.raises(ValueError, match="no order"):
        auc(np.array([0.0, np.nan]), np.array([True, False]), np.arange(2))
    infinite = np.array([-np.inf, np.inf, -np.inf])
    assert auc(infinite, np.array([False, True, True]), np.arange(3))(np.ones((1, 3))) == 0.75
