"""Accuracy, macro-F1 and AUC of classes against scikit-learn; users as the unit; what has no value."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from userec.evaluator import classes
from userec.evaluator.classes import Judged
from userec.evaluator.contract import Metric


def drawn(count: int, rows: int = 60, seed: int = 0) -> Judged:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, (rows, count)) + 1e-3
    return Judged(rng.permutation(rows) + 7, rng.integers(0, count, rows), scores / scores.sum(1, keepdims=True))


def told(judged: Judged) -> dict[str, Metric]:
    return {m.metric: m for m in classes.metrics(judged, "age", {"head": "own", "ties": "lower-id"}, 0)}


@pytest.mark.parametrize("count", [2, 3, 9])
def test_values_equal_scikit_learn(count: int) -> None:
    judged = drawn(count)
    found = told(judged)
    truth, guess = judged.truth, judged.scores.argmax(1)
    assert found["accuracy"].value == pytest.approx(accuracy_score(truth, guess), abs=1e-9)
    present = np.unique(truth)
    assert found["macro_f1"].value == pytest.approx(f1_score(truth, guess, labels=present, average="macro"), abs=1e-9)
    one = judged.scores[:, 1] if count == 2 else judged.scores
    assert found["auc"].value == pytest.approx(roc_auc_score(truth, one, multi_class="ovr", average="macro"), abs=1e-9)
    assert all(m.low <= m.value <= m.high and m.n == 60 for m in found.values())


def test_a_class_without_a_true_row_counts_in_neither() -> None:
    judged = drawn(5)
    judged.truth[judged.truth == 3] = 1
    found = told(judged)
    want = f1_score(judged.truth, judged.scores.argmax(1), labels=[0, 1, 2, 4], average="macro")
    assert found["macro_f1"].value == pytest.approx(want, abs=1e-9)
    assert "classes=present(4 of 5)" in found["macro_f1"].definition
    each = [roc_auc_score(judged.truth == one, judged.scores[:, one]) for one in (0, 1, 2, 4)]
    assert found["auc"].value == pytest.approx(np.mean(each), abs=1e-9)


@given(st.lists(st.integers(0, 3), min_size=20, max_size=20), st.integers(2, 4))
@settings(derandomize=True, deadline=None, max_examples=60)
def test_weights_are_repetitions(times: list[int], count: int) -> None:
    judged = drawn(count, 30, seed=3)
    unit = np.arange(30) % 20  # ten users of two rows
    rows = np.repeat(np.arange(30), np.array(times)[unit])
    again = Judged(judged.users[rows], judged.truth[rows], judged.scores[rows])
    weights = np.array([times], np.float64)
    ones = np.ones((1, len(rows)))
    for measure in (classes.macro_f1, classes.auc):
        (found,) = measure(judged, unit)(weights)
        (want,) = measure(again, np.arange(len(rows)))(ones)
        assert found == pytest.approx(want, abs=1e-12, nan_ok=True)


def test_a_user_asked_twice_counts_once() -> None:
    scores = np.array([[1.0, 0], [1, 0], [0, 1]])
    found = told(Judged(np.array([4, 4, 9]), np.array([0, 1, 1]), scores))
    assert found["accuracy"].value == pytest.approx(0.75)
    assert found["accuracy"].users is not None
    assert found["accuracy"].users.tolist() == [4, 9]
    assert [m.n for m in found.values()] == [2, 2, 2]


def test_of_equal_scores_the_lower_class_is_the_guess() -> None:
    found = told(Judged(np.arange(4), np.array([0, 1, 0, 0]), np.full((4, 2), 0.5)))
    assert found["accuracy"].value == 0.75
    assert found["auc"].value == 0.5


@pytest.mark.parametrize("rows", [0, 3])
def test_what_is_undefined_is_nan_and_still_told(rows: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = told(Judged(np.arange(rows), np.zeros(rows, np.int64), np.full((rows, 4), 0.25)))
    assert list(found) == ["accuracy", "macro_f1", "auc"]
    assert np.isnan(found["auc"].value)
    assert np.isnan(found["macro_f1"].value) == np.isnan(found["accuracy"].value) == (rows == 0)


def test_definitions_say_the_whole() -> None:
    found = told(drawn(2))
    assert found["accuracy"].definition == "accuracy[head=own,ties=lower-id,classes=present(2 of 2),mean=users]"
    assert found["macro_f1"].definition == "macro_f1[mean=classes,head=own,ties=lower-id,classes=present(2 of 2)]"
    assert found["auc"].definition == "auc[over=second class,head=own,ties=half]"
    assert "over=one-vs-rest" in told(drawn(3))["auc"].definition
