"""Training rows and batches: what is asked, in which order, and how it is padded."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.batch import Batch
from userec.dataset.events import Coded, Events, Labels, Vocabulary
from userec.dataset.loader import BatchConfig, Rows, TrainLoader, cut, prefixes, windows
from userec.dataset.split import SplitConfig, divide
from userec.errors import UserError
from userec.schema import NEXT, Field, Schema, Task

LENGTHS = st.lists(st.integers(0, 17), min_size=1, max_size=8)


def events(lengths: list[int]) -> Events:
    """Users of these lengths; every event is its own item, its time ten times as large."""
    item = np.arange(sum(lengths), dtype=np.int32) + 2
    return Events(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), {"item": item, "time": item.astype(np.int64) * 10})


def coded(lengths: list[int], labels: dict[str, Labels] | None = None) -> Coded:
    store = events(lengths)
    vocabulary = {
        "user": Vocabulary(np.arange(len(lengths))),
        "item": Vocabulary(np.arange(2, len(store) + 2)),
        "age": Vocabulary(np.arange(3)),
    }
    schema = Schema(
        {"item": Field("item")},
        {name: len(entry) for name, entry in vocabulary.items()},
        ((NEXT,), (Task("age", "label", "age"),)),
    )
    return Coded(
        "toy", store, None, vocabulary, schema, {"profile.age": np.arange(len(lengths), dtype=np.int32) + 2}, {}, labels or {}
    )


def loader(lengths: list[int], labels: dict[str, Labels] | None = None, task: str = "next", **settings: object) -> TrainLoader:
    data = coded(lengths, labels)
    division = divide(data, SplitConfig(name="leave_last"))
    chosen = {
        "window": 5,
        "ahead": 1,
        "whole": True,
        "fields": ["time"],
        "seed": 3,
        "config": BatchConfig(rows=4, bucket=2),
        **settings,
    }
    return TrainLoader(data, division, task=task, **chosen)  # type: ignore[arg-type]


def spans(rows: Rows, store: Events) -> list[list[int]]:
    return [list(range(low, high)) for low, high in zip(rows.start(store), rows.stop, strict=True)]


@given(LENGTHS, st.integers(1, 6), st.integers(0, 3))
@settings(derandomize=True, deadline=None)
def test_windows_overlap_by_ahead_and_ask_each_transition_once(lengths: list[int], window: int, ahead: int) -> None:
    store = events(lengths)
    found = spans(windows(store, window, ahead, last=False), store)
    assert all(1 + min(ahead, 1) <= len(row) <= window + ahead for row in found)
    # a row asks at all but its last `ahead` events; each event that has `ahead` after it is asked at exactly once
    places = Counter(place for row in found for place in row[: max(len(row) - ahead, 0)])
    # and nobody with an event to ask for is left out
    assert {int(store.owner[row[0]]) for row in found} == {u for u, size in enumerate(lengths) if size > min(ahead, 1)}
    wanted = [
        place for user, size in enumerate(lengths) for place in range(store.offsets[user], store.offsets[user] + size - ahead)
    ]
    assert places == Counter(wanted)


@given(LENGTHS, st.one_of(st.none(), st.integers(1, 6)))
@settings(derandomize=True, deadline=None)
def test_prefixes_end_with_each_target(lengths: list[int], window: int | None) -> None:
    store = events(lengths)
    found = spans(prefixes(store, window, 1, last=False), store)
    wanted = []
    for begin, size in zip(store.offsets[:-1], lengths, strict=True):
        wanted += [
            list(range(begin if window is None else max(begin, t - window), t + 1)) for t in range(begin + 1, begin + size)
        ]
    assert found == wanted


def test_last_windows_and_whole_sequences() -> None:
    store = events([7, 1, 3])
    assert spans(windows(store, 4, 1, last=True), store) == [[2, 3, 4, 5, 6], [8, 9, 10]]
    assert spans(windows(store, None, 0, last=False), store) == [list(range(7)), [7], [8, 9, 10]]
    assert [row[-1] for row in spans(prefixes(store, 2, 1, last=True), store)] == [5, 6, 9, 10]


@given(st.lists(st.integers(1, 30), max_size=40), st.integers(1, 7), st.one_of(st.none(), st.integers(1, 90)))
@settings(derandomize=True, deadline=None)
def test_cut_respects_rows_and_tokens(lengths: list[int], rows: int, tokens: int | None) -> None:
    sizes = np.array(lengths, np.int64)
    bounds = cut(sizes, rows, tokens)
    assert bounds[0] == 0
    assert bounds[-1] == len(lengths)
    for low, high in pairwise(bounds):
        assert 0 < high - low <= rows
        assert tokens is None or high - low == 1 or (high - low) * sizes[low:high].max() <= tokens


def rows_of(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [
        tuple(row[mask].tolist()) for b in batches for row, mask in zip(b.history.events["item"], b.history.mask, strict=True)
    ]


@given(LENGTHS, st.integers(1, 9), st.booleans())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_batch_size_does_not_change_what_is_asked(lengths: list[int], rows: int, whole: bool) -> None:
    lengths = [*lengths, 5]
    one = loader(lengths, whole=whole)
    other = loader(lengths, whole=whole, config=BatchConfig(rows=rows, tokens=20))
    assert Counter(rows_of(list(one.batches(0)))) == Counter(rows_of(list(other.batches(1))))


@given(st.integers(0, 30), st.integers(0, 2))
@settings(derandomize=True, deadline=None, max_examples=20)
def test_resume_skips_exactly_the_first_batches(start: int, epoch: int) -> None:
    lengths = list(range(3, 40))
    whole, rest = list(loader(lengths).batches(epoch)), list(loader(lengths).batches(epoch, start))
    assert len(whole) == loader(lengths).steps(epoch)
    assert rows_of(rest) == rows_of(whole[start:])


def test_order_is_seeded_and_differs_between_epochs() -> None:
    lengths = list(range(3, 40))
    first = rows_of(list(loader(lengths).batches(0)))
    assert first == rows_of(list(loader(lengths).batches(0)))
    assert first != rows_of(list(loader(lengths).batches(1)))
    assert first != rows_of(list(loader(lengths, seed=4).batches(0)))


def test_rows_are_bucketed_by_length() -> None:
    lengths = [5 + 37 * i % 61 for i in range(400)]
    padding = [
        float((~b.history.mask).float().mean())
        for b in loader(lengths, window=None, config=BatchConfig(rows=8, bucket=50)).batches(0)
    ]
    assert np.mean(padding) < 0.06


def test_a_batch_is_padded_right_and_knows_where_it_was_cut() -> None:
    made = loader([7, 4, 0, 3], window=3, fields=["time", "asked.time", "profile.age"], config=BatchConfig(rows=9))
    (batch,) = made.batches(0)
    history = batch.history
    assert history.tasks == ("next",)
    assert history.events["item"].dtype == torch.int64
    by_end = {int(end): row for row, end in enumerate(batch.ends)}  # type: ignore[arg-type]
    assert sorted(by_end) == [2, 5, 9]  # one-event training row of the last user is dropped
    row = by_end[2]
    assert history.events["item"][row].tolist() == [2, 3, 0, 0]
    assert history.events["time"][row].tolist() == [20, 30, 0, 0]
    assert history.asked["asked.time"][row].tolist() == [30, 30, 0, 0]
    assert history.mask[row].tolist() == [True, True, False, False]
    assert (int(history.user[row]), int(batch.users[row]), int(history.profile["profile.age"][row])) == (2, 0, 2)  # type: ignore[index]
    assert history.events["item"][by_end[5]].tolist() == [3, 4, 5, 6]


def test_label_rows_carry_their_answer() -> None:
    labels = {
        "age": Labels(
            np.arange(6), np.full(6, 3), np.linspace(0, 1, 6, dtype=np.float32), np.arange(6) * 4 + 4, np.zeros(6, np.int8)
        )
    }
    made = loader([4] * 6, labels, "age", window=1, fields=["asked.time"])
    batches = list(made.batches(0))
    assert sum(len(b.history.user) for b in batches) == 6
    for batch in batches:
        assert batch.targets is not None
        assert batch.targets.query.at.tolist() == [[0]] * len(batch.history.user)
        assert batch.targets.answer is not None
        assert set(batch.targets.answer.flatten().tolist()) == {3}
        assert batch.targets.labels is not None
        assert batch.targets.labels.shape == (len(batch.history.user), 1, 1, 1)
        np.testing.assert_allclose(batch.targets.labels.flatten(), batch.users / 5)  # type: ignore[operator]
        assert torch.equal(batch.history.events["item"][:, 0], batch.ends + 1)  # type: ignore[operator]
        assert torch.equal(batch.targets.query.context["asked.time"], batch.history.events["item"] * 10)


def test_who_is_told_when_a_question_is_put_is_told_when_events_were() -> None:
    (batch,) = loader([4], window=3, fields=["asked.time"]).batches(0)
    assert batch.history.events["time"].tolist() == (batch.history.events["item"] * 10).tolist()


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown field 'tyme'.*did you mean 'time'"):
        loader([5], fields=["tyme"])
