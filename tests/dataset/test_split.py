"""Splits: what trains, what is asked, that nothing overlaps or leaks unsaid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.config import parse
from userec.dataset.events import Coded, Events, Labels, Vocabulary
from userec.dataset.split import Division, SplitConfig, divide, ragged, target_hash
from userec.errors import UserError
from userec.schema import NEXT, Field, Schema, Task

AGE = Task("age", "label", "age")


def store(
    sequences: list[list[int]],
    times: list[list[int]] | None = None,
    split: list[int] | None = None,
    labels: Mapping[str, Labels] | None = None,
) -> Coded:
    """Coded events of these items (2 or more) by user."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in sequences])]).astype(np.int64)
    fields = {"item": np.array([item for row in sequences for item in row], np.int32)}
    if times is not None:
        fields["time"] = np.array([time for row in times for time in row], np.int64)
    size = int(fields["item"].max(initial=2)) + 1
    vocabulary = {
        "user": Vocabulary(np.arange(len(sequences)) + 100),
        "item": Vocabulary(np.arange(2, size)),
        "age": Vocabulary(np.arange(5)),
    }
    spaces = {name: len(entry) for name, entry in vocabulary.items()}
    schema = Schema({name: Field(name) for name in fields}, spaces, ((NEXT,), (AGE,)) if labels else ((NEXT,),))
    parts = None if split is None else np.array(split, np.int8)
    return Coded("toy", Events(offsets, fields), parts, vocabulary, schema, {}, {}, labels or {})


def asked(division: Division, split: str, task: str = "next") -> list[tuple[int, int, list[int]]]:
    """(user, end, ids) of each question."""
    found = division.questions[split, task]
    bounds = found.offsets
    return [
        (int(u), int(e), found.ids[bounds[i] : bounds[i + 1]].tolist())
        for i, (u, e) in enumerate(zip(found.user, found.end, strict=True))
    ]


def test_leave_last_is_the_published_leave_one_out() -> None:
    division = divide(store([[2, 3, 4, 5], [6, 7], [8], [9, 10, 11], []]), SplitConfig(name="leave_last"))
    assert asked(division, "test") == [(0, 3, [5]), (3, 9, [11])]
    assert asked(division, "valid") == [(0, 2, [4]), (3, 8, [10])]
    assert division.train.fields["item"].tolist() == [2, 3, 6, 7, 8, 9]
    assert division.train.offsets.tolist() == [0, 2, 4, 5, 6, 6]
    assert division.kept.tolist() == [0, 1, 4, 5, 6, 7]
    assert division.leaky is None
    assert "cannot be checked" in division.note


TIMES = [[0, 1, 2, 8, 9], [3, 4, 5, 6, 7]]
ITEMS = [[2, 3, 4, 5, 6], [2, 7, 8, 9, 9]]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("last", [(0, 4, [6]), (1, 9, [9])]),
        ("first", [(0, 3, [5]), (1, 8, [9])]),
        ("all", [(0, 3, [5, 6]), (1, 8, [9])]),
        ("successive", [(0, 3, [5]), (0, 4, [6]), (1, 8, [9]), (1, 9, [9])]),
    ],
)
def test_by_time_target_rules(target: str, expected: list[object]) -> None:
    config = parse(SplitConfig, {"name": "by_time", "target": target, "valid": 0.2, "test": 0.4}, "split")
    division = divide(store(ITEMS, TIMES), config)  # cuts at 4 and 6
    assert asked(division, "test") == expected
    assert division.train.fields["time"].tolist() == [0, 1, 2, 3]
    assert [user for user, _, _ in asked(division, "valid")] == ([1, 1] if target == "successive" else [1])
    assert division.leaky is False
    assert division.questions["test", "next"].time is not None
    assert division.questions["test", "next"].time[0] == (9 if target == "last" else 8)


def test_equal_times_at_a_cut_stay_together() -> None:
    division = divide(
        store([[2, 3, 4, 5, 6, 7, 8, 9, 10, 11]], [[0, 0, 0, 5, 5, 5, 5, 5, 5, 9]]),
        SplitConfig(name="by_time", valid=0.3, test=0.3),
    )
    assert division.train.fields["time"].tolist() == [0, 0, 0]
    assert "no validation question" in division.note


@given(
    st.lists(st.lists(st.integers(0, 30), max_size=9).map(sorted), min_size=1, max_size=8),
    st.sampled_from(["by_time", "leave_last", "by_user"]),
    st.sampled_from(["last", "first", "random", "all", "successive"]),
    st.integers(0, 3),
)
@settings(derandomize=True, deadline=None, max_examples=200)
def test_parts_never_overlap_and_targets_come_after_their_history(
    times: list[list[int]], name: str, target: str, seed: int
) -> None:
    if not any(times):
        return
    coded = store([[2 + 9 * u + i for i in range(len(row))] for u, row in enumerate(times)], times)  # every event its own item
    target = "last" if name == "leave_last" else target
    try:
        division = divide(
            coded, parse(SplitConfig, {"name": name, "target": target, "valid": 0.3, "test": 0.3, "seed": seed}, "split")
        )
    except UserError:
        return
    item, offsets = coded.events.fields["item"], coded.events.offsets
    assert np.array_equal(item[division.kept], division.train.fields["item"])
    train = set(division.train.fields["item"].tolist())
    targets: dict[str, set[int]] = {}
    for split in ("valid", "test"):
        targets[split] = set()
        for user, end, ids in asked(division, split):
            assert offsets[user] < end
            where = np.searchsorted(item, ids)
            assert (where >= end).all()
            assert (where < offsets[user + 1]).all()
            own = division.train.offsets[user : user + 2]
            assert (division.kept[own[0] : own[1]] < end).all()
            targets[split] |= set(ids)
    assert not train & (targets["valid"] | targets["test"])
    assert not targets["valid"] & targets["test"]
    first = min(division.questions["test", "next"].time)  # type: ignore[type-var]
    assert division.leaky == any(time > first for time in division.train.fields["time"])
    if name == "by_time":
        assert division.leaky is False


def test_by_user_holds_users_out_wholly_and_repeats() -> None:
    coded = store([[2, 3, 4]] * 20)
    division = divide(coded, SplitConfig(name="by_user", valid=0.2, test=0.1))
    valid, test = ({user for user, _, _ in asked(division, split)} for split in ("valid", "test"))
    assert (len(valid), len(test)) == (4, 2)
    assert not valid & test
    assert set(np.flatnonzero(division.train.lengths).tolist()) == set(range(20)) - valid - test
    assert asked(divide(coded, SplitConfig(name="by_user", valid=0.2, test=0.1)), "test") == asked(division, "test")
    other = divide(coded, SplitConfig(name="by_user", valid=0.2, test=0.1, seed=1))
    assert asked(other, "test") != asked(division, "test")


def test_given_honours_the_published_parts() -> None:
    coded = store([[2, 3, 4, 5, 6], [7, 8]], split=[0, 0, 1, 2, 2, 0, 2])
    division = divide(coded, SplitConfig())
    assert division.name == "given"
    assert asked(division, "test") == [(0, 4, [6]), (1, 6, [8])]
    assert asked(division, "valid") == [(0, 2, [4])]
    interleaved = divide(store([[2, 3, 4, 5, 6]], split=[0, 2, 0, 2, 1]), SplitConfig(target="all"))
    assert asked(interleaved, "test") == [(0, 1, [3, 5])]
    assert interleaved.train.fields["item"].tolist() == [2, 4]


def test_training_after_ones_own_test_question_leaks_with_or_without_times() -> None:
    for times in (None, [[1, 2, 2, 2, 2], [1, 2]]):
        made = divide(store([[2, 3, 4, 5, 6], [7, 8]], times, split=[0, 2, 0, 0, 0, 0, 2]), SplitConfig(valid=0))
        assert made.leaky is True
        assert made.note.startswith("leaky: 50.0% of test users have training events after their test question")
    sound = divide(store([[2, 3, 4, 5, 6], [7, 8]], split=[0, 0, 0, 2, 2, 0, 2]), SplitConfig(valid=0))
    assert sound.leaky is None


def test_given_without_validation_takes_the_last_of_training() -> None:
    division = divide(store([[2, 3, 4, 5], [6, 7, 8]], split=[0, 0, 0, 2, 0, 0, 2]), SplitConfig())
    assert asked(division, "valid") == [(0, 2, [4])]
    assert division.train.fields["item"].tolist() == [2, 3, 6, 7]
    assert asked(divide(store([[2, 3, 4, 5]], split=[0, 0, 0, 2]), SplitConfig(valid=0)), "valid") == []


def test_auto_follows_times() -> None:
    assert divide(store(ITEMS, TIMES), SplitConfig()).name == "by_time"
    assert divide(store(ITEMS), SplitConfig()).name == "leave_last"


@pytest.mark.parametrize(
    ("coded", "settings", "message"),
    [
        (store(ITEMS), {"name": "by_time"}, "needs times"),
        (store(ITEMS), {"name": "given"}, "publishes no split: add a column 'split'"),
        (store([[2, 3], [4]]), {"name": "leave_last"}, "asks nothing of the test part.*others are by_time, by_user, given"),
        (store([[2, 3]], [[5, 5]]), {"name": "by_time"}, "leaves no event for training"),
        (store(ITEMS), {"target": "all"}, "asks for the last event, not target='all'"),
    ],
)
def test_what_cannot_be_split_says_why(coded: Coded, settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        divide(coded, parse(SplitConfig, settings, "split"))
    with pytest.raises(UserError, match="share for training"):
        parse(SplitConfig, {"valid": 0.5, "test": 0.5}, "split")


def labelled(split: list[int] | None = None) -> Coded:
    """Ten users of four events; two labels each at the end of the history."""
    user = np.repeat(np.arange(10), 2)
    parts = None if split is None else np.array(split, np.int8)
    labels = Labels(user, np.tile([2, 3], 10), np.tile(np.float32([1, 1]), 10), user * 4 + 4, parts)
    return store([[2, 3, 4, 5]] * 10, labels={"age": labels})


def test_label_users_are_divided_never_pairs() -> None:
    division = divide(labelled(), SplitConfig(valid=0.2, test=0.3))
    users = {split: {user for user, _, _ in asked(division, split, "age")} for split in ("valid", "test")}
    users["train"] = set(division.train_labels["age"].user.tolist())
    assert [len(users[split]) for split in ("train", "valid", "test")] == [5, 2, 3]
    assert set.union(*users.values()) == set(range(10))
    assert all(ids == [2, 3] for _, _, ids in asked(division, "test", "age"))
    assert all(end == user * 4 + 4 for user, end, _ in asked(division, "test", "age"))
    own = division.train_labels["age"]
    assert np.array_equal(own.end, own.user * 4 + 2)  # training labels see training events only


def test_requests_of_one_history_are_questions_of_their_own_by_time() -> None:
    ids, time = np.array([2, 3, 4]), np.array([7, 7, 8])
    labels = Labels(np.zeros(3, np.int64), ids, np.ones(3, np.float32), np.full(3, 4), np.full(3, 2, np.int8), time)
    coded = store([[2, 3, 4, 5]] * 3, labels={"age": labels})
    division = divide(coded, SplitConfig(name="leave_last"))
    assert asked(division, "test", "age") == [(0, 4, [2, 3]), (0, 4, [4])]
    assert division.questions["test", "age"].time.tolist() == [7, 8]  # type: ignore[union-attr]


def test_published_label_split_is_honoured() -> None:
    division = divide(labelled([0, 2] * 10), SplitConfig())
    assert asked(division, "test", "age") == [(user, user * 4 + 4, [3]) for user in range(10)]
    assert len(division.train_labels["age"].user) == 10


@pytest.mark.parametrize("seed", range(4))
def test_by_user_holds_the_same_users_out_of_the_labels(seed: int) -> None:
    coded = labelled()
    few = replace(coded, labels={"age": coded.labels["age"].take(coded.labels["age"].user >= 4)})  # not all users are labelled
    division = divide(few, SplitConfig(name="by_user", valid=0.2, test=0.5, seed=seed))
    held = {split: {user for user, _, _ in asked(division, split) if user >= 4} for split in ("valid", "test")}
    assert held["test"]
    assert {split: {user for user, _, _ in asked(division, split, "age")} for split in held} == held
    assert set(division.train_labels["age"].user.tolist()) == set(range(4, 10)) - held["valid"] - held["test"]


@pytest.mark.parametrize(("target", "ids"), [("first", [3]), ("all", [3, 4]), ("last", [4])])
def test_by_user_keeps_the_first_event_as_history(target: str, ids: list[int]) -> None:
    config = parse(SplitConfig, {"name": "by_user", "target": target, "test": 0.5}, "split")
    found = asked(divide(store([[2, 3, 4]] * 4), config), "test")
    assert [entry[2] for entry in found] == [ids, ids]


def test_target_hash_knows_targets_and_nothing_else() -> None:
    config = SplitConfig(name="leave_last")
    coded = store([[2, 3, 4], [5, 6, 7]])
    swapped = store([[5, 6, 7], [2, 3, 4]])
    swapped.vocabulary["user"].values[:] = [101, 100]  # the same users, coded in another order
    value = target_hash(coded, divide(coded, config))
    assert value == target_hash(swapped, divide(swapped, config)) == "5a5a2dca4106c81b"
    sets = [store([[2, 3, *order]], split=[0, 0, 2, 2]) for order in ([4, 5], [5, 4])]
    assert len({target_hash(each, divide(each, SplitConfig(target="all", valid=0))) for each in sets}) == 1
    other = store([[2, 3, 4], [5, 7, 6]])
    assert target_hash(other, divide(other, config)) != value


def test_target_hash_knows_judged_values_but_not_their_order() -> None:
    def value(rows: list[tuple[int, int, float]]) -> str:
        user, ids, values = (np.array(column) for column in zip(*rows, strict=True))
        labels = Labels(user, ids, values.astype(np.float32), user * 4 + 4, np.full(len(rows), 2, np.int8))
        coded = store([[2, 3, 4, 5]] * 2, labels={"age": labels})
        judged = replace(coded, schema=replace(coded.schema, tasks=((NEXT,), (Task("age", "rating", "age"),))))
        return target_hash(judged, divide(judged, SplitConfig(name="leave_last")))

    rows = [(0, 2, 1.0), (0, 3, 5.0), (1, 2, 5.0), (1, 3, 0.0)]
    assert value([rows[1], rows[0], rows[3], rows[2]]) == value(rows)
    others = [[(0, 2, 5.0), (0, 3, 1.0), *rows[2:]], [(0, 2, 5.0), (0, 3, 0.0), (1, 2, 1.0), (1, 3, 5.0)], rows[:3]]
    assert len({value(each) for each in (rows, *others)}) == 4  # values swapped inside a user, users swapped, a row less


def test_ragged() -> None:
    assert ragged(np.array([3, 5, 0]), np.array([5, 5, 2])).tolist() == [3, 4, 0, 1]
