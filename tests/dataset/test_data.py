"""What evaluators see: questions, relevant ids, seen items, popularity."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.batch import Batch
from userec.dataset.data import SplitData
from userec.dataset.events import Coded, Events, Labels, Vocabulary
from userec.dataset.loader import BatchConfig
from userec.dataset.split import SplitConfig, divide
from userec.schema import NEXT, Field, Schema, Task

ITEMS = [[2, 3, 4, 5, 3], [6, 7, 2], [8, 9], [3, 3, 4, 7, 2, 9]]


def data(window: int | None = 2, target: str = "last", seed: int = 7, **settings: int) -> SplitData:
    items = np.concatenate(ITEMS).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ITEMS])]).astype(np.int64)
    store = Events(offsets, {"item": items, "time": np.arange(len(items)) * 10})
    spaces = {"user": 6, "item": 10, "age": 4}
    vocabulary = {name: Vocabulary(np.arange(size - 2)) for name, size in spaces.items()}
    schema = Schema({"item": Field("item")}, spaces, ((NEXT,), (Task("age", "label", "age"),)))
    labels = {
        "age": Labels(
            np.array([0, 1]),
            np.array([2, 3]),
            np.ones(2, np.float32),
            np.array([5, 7]),
            np.full(2, 2, np.int8),
            np.array([99, 98]),
        )
    }
    coded = Coded("toy", store, None, vocabulary, schema, {}, {}, labels)
    if target == "all":
        part = np.array([0, 0, 0, 2, 2, 0, 0, 2, 0, 0, 0, 0, 0, 2, 2, 2], np.int8)
        coded = Coded("toy", store, part, vocabulary, schema, {}, {}, labels)
    division = divide(coded, SplitConfig(name="given" if target == "all" else "leave_last", target=target))  # type: ignore[arg-type]
    return SplitData(
        coded, division, trained=("next",), window=window, fields=["asked.time"], seed=seed, config=BatchConfig(**settings)
    )


def test_repeats_are_counted_in_training_alone() -> None:
    assert data().repeats == pytest.approx(1 / 10)  # of 2 3 4 | 6 | 8 9 | 3 3 4 7, the second 3


def questions(batches: list[Batch]) -> Counter[tuple[object, ...]]:
    found: Counter[tuple[object, ...]] = Counter()
    for batch in batches:
        assert batch.targets is not None
        assert batch.targets.query.ids is not None
        assert batch.targets.labels is not None
        for row, mask in enumerate(batch.history.mask):
            ids, labels = batch.targets.query.ids[row, 0], batch.targets.labels[row, 0, :, 0]
            assert torch.equal(labels == 1, ids > 0)
            assert torch.equal(torch.isnan(labels), ids == 0)
            found[
                int(batch.history.user[row]),
                tuple(batch.history.events["item"][row][mask].tolist()),
                tuple(ids[ids > 0].tolist()),
            ] += 1
    return found


def test_one_question_a_row_with_the_window_cut() -> None:
    (batch,) = data().batches("test", "next")
    assert questions([batch]) == Counter({(2, (4, 5), (3,)): 1, (3, (6, 7), (2,)): 1, (5, (7, 2), (9,)): 1})
    assert batch.targets is not None
    assert batch.targets.query.at.tolist() == [[1]] * 3
    assert batch.targets.query.context["asked.time"].flatten().tolist() == [40, 70, 150]
    assert batch.history.asked["asked.time"].tolist() == [[30, 40], [60, 70], [140, 150]]
    assert data().questions("test", "next") == 3


def test_several_relevant_ids_are_padded() -> None:
    found = questions(list(data(target="all").batches("test", "next")))
    assert found == Counter({(2, (3, 4), (5, 3)): 1, (3, (6, 7), (2,)): 1, (5, (3, 4), (7, 2, 9)): 1})


@given(st.integers(1, 4), st.integers(1, 12))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_batch_size_does_not_change_the_questions(rows: int, tokens: int) -> None:
    whole = questions(list(data(window=None).batches("test", "next")))
    assert questions(list(data(window=None, eval_rows=rows, eval_tokens=tokens).batches("test", "next"))) == whole


def test_seen_is_the_whole_history_whatever_the_window() -> None:
    made = data(window=1)
    for batch in made.batches("test", "next"):
        row, ids = made.seen(batch)
        for at, user in enumerate(batch.users.tolist()):  # type: ignore[union-attr]
            assert ids[row == at].tolist() == ITEMS[user][:-1]


def test_popularity_counts_training_events() -> None:
    assert data().popularity.tolist() == [0, 0, 1, 3, 2, 0, 1, 1, 1, 1]


def test_a_sample_of_users_is_fixed() -> None:
    sample = questions(list(data().batches("test", "next", users=2)))
    assert sum(sample.values()) == 2
    assert sample == questions(list(data(eval_rows=1).batches("test", "next", users=2)))
    for seed in range(8):  # two runs of other seeds are compared over the same people
        other = data()
        other.seed = seed
        assert sample == questions(list(other.batches("test", "next", users=2)))
    assert sum(questions(list(data().batches("test", "next", users=99))).values()) == 3


def test_a_sample_of_users_is_the_same_for_every_seed_of_a_run() -> None:
    samples = [questions(list(data(seed=seed).batches("test", "next", users=1))) for seed in range(12)]
    assert all(sample == samples[0] for sample in samples)


def test_label_questions_use_the_whole_history_and_their_time() -> None:
    (batch,) = data(window=None).batches("test", "age")
    assert questions([batch]) == Counter({(3, (6, 7), (3,)): 1, (2, (2, 3, 4, 5, 3), (2,)): 1})
    assert batch.targets is not None
    assert batch.targets.query.context["asked.time"].flatten().tolist() == [98, 99]
