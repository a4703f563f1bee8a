"""Coding: ids, order, fields, labels, notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.config import Config
from userec.dataset.contract import Dataset
from userec.dataset.events import Coded, Events, Vocabulary, code
from userec.errors import UserError
from userec.schema import NEXT, Field, Task


def coded(events: pd.DataFrame, **tables: object) -> Coded:
    """A data set of tables in memory, coded."""

    class Toy(Dataset):
        name = "toy"
        fields = tables.get("fields", {})  # type: ignore[assignment]
        tasks = tables.get("tasks", ((NEXT,),))  # type: ignore[assignment]

        def events(self) -> pd.DataFrame:
            return events

        def users(self) -> pd.DataFrame | None:
            return tables.get("users")  # type: ignore[return-value]

        def items(self) -> pd.DataFrame | None:
            return tables.get("items")  # type: ignore[return-value]

        def labels(self, task: str) -> pd.DataFrame | None:
            return tables.get("labels", {}).get(task)  # type: ignore[attr-defined]

    return code(Toy(Config(), Path()))


@given(st.lists(st.tuples(st.integers(-3, 5), st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=60))
@settings(derandomize=True, deadline=None)
def test_order_equals_a_naive_stable_sort(rows: list[tuple[int, int, int]]) -> None:
    result = coded(pd.DataFrame(rows, columns=["user", "item", "time"]))
    naive = sorted(rows, key=lambda row: (row[0], row[2]))
    users, items = result.vocabulary["user"], result.vocabulary["item"]
    assert users.values[result.events.owner].tolist() == [row[0] for row in naive]
    assert items.decode(result.events.fields["item"]).tolist() == [row[1] for row in naive]
    assert result.events.fields["time"].tolist() == [row[2] for row in naive]
    assert result.events.fields["item"].dtype == np.int32


@pytest.mark.parametrize("values", [[5, 3, 9, 3], [10**15, 3, -4], ["b", "a", "ä", "b"]])
def test_vocabulary_codes_and_decodes(values: list[object]) -> None:
    column = np.array(values, dtype=object if isinstance(values[0], str) else np.int64)
    vocabulary = Vocabulary.of([column])
    assert vocabulary.values.tolist() == sorted(set(values))  # type: ignore[type-var]
    assert len(vocabulary) == len(set(values)) + 2
    ids = vocabulary.code(column)
    assert ids.min() >= 2
    assert vocabulary.decode(ids).tolist() == values
    assert vocabulary.code(np.array(["zz"], dtype=object) if column.dtype == object else np.array([-77])).tolist() == [1]


def test_vocabulary_of_numbers_and_text_is_text() -> None:
    vocabulary = Vocabulary.of([np.array([1, 2]), np.array(["2", "x"], dtype=object)])
    assert vocabulary.values.tolist() == ["1", "2", "x"]
    assert vocabulary.code(np.array([2, 7])).tolist() == [3, 1]
    assert Vocabulary.of([np.array([4, 6])]).code(np.array(["6", "x", "5"], dtype=object)).tolist() == [3, 1, 1]
    assert Vocabulary.of([np.array([4, 10**15])]).code(np.array(["4", "x"], dtype=object)).tolist() == [2, 1]


def test_reserved_ids_stand_for_nothing() -> None:
    with pytest.raises(ValueError, match="stand for no external id"):
        Vocabulary.of([np.array([1])]).decode([1])


def test_fields_many_profile_and_catalogue() -> None:
    result = coded(
        pd.DataFrame({"user": ["b", "a", "b"], "item": [1, 2, 2], "rating": [1.0, 2.0, np.nan], "action": ["buy", None, "pv"]}),
        users=pd.DataFrame({"user": ["a", "c"], "profile.age": [30, 20]}),
        items=pd.DataFrame({"item": [2, 1, 9], "item.genres": [["x", "y"], ["y"], ["z"]], "item.price": [2.5, 1.0, 7.0]}),
        fields={"item.genres": Field("item.genres", many=True)},
    )
    assert result.vocabulary["user"].values.tolist() == ["a", "b", "c"]
    assert result.events.lengths.tolist() == [1, 2, 0]
    assert result.events.fields["action"].tolist() == [1, 2, 3]  # missing is unknown
    np.testing.assert_array_equal(result.events.fields["rating"], np.float32([2.0, 1.0, np.nan]))
    assert result.profile["profile.age"].tolist() == [3, 1, 2]  # 30 -> 3, nothing known of b, 20 -> 2
    assert result.catalog["item"]["item.genres"].tolist() == [[0, 0], [0, 0], [3, 0], [2, 3]]
    assert result.catalog["item"]["item.price"].tolist() == [0, 0, 1.0, 2.5]
    assert result.schema.spaces["item"] == 4  # item 9 is in the catalogue alone
    assert result.schema.widths == {"item.genres": 2}
    assert result.schema.fields["rating"].kind == "number"
    assert "1 items of the catalogue are left out: no event or label names them" in result.notes


def test_labels_end_strictly_before_the_request() -> None:
    age = Task("age", "label", "age")
    result = coded(
        pd.DataFrame({"user": [1, 1, 1, 2], "item": [1, 2, 3, 1], "time": [10, 20, 20, 5]}),
        tasks=((NEXT,), (age, Task("gender", "label", "gender"))),
        labels={
            "age": pd.DataFrame({"user": [2, 1, 1, 3], "id": ["o", "y", "y", "o"], "time": [6, 20, 21, 1], "value": [1, 0, 1, 1]})
        },
    )
    labels = result.labels["age"]
    assert labels.user.tolist() == [0, 0, 1, 2]
    assert labels.end.tolist() == [1, 3, 4, 4]
    assert labels.value.tolist() == [0, 1, 1, 1]
    assert result.vocabulary["age"].decode(labels.id).tolist() == ["y", "y", "o", "o"]
    assert [task.name for task in result.schema.all_tasks] == ["next", "age"]
    assert "task 'gender' is left out: its file is absent" in result.notes


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=20),
    st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 11)), max_size=9),
)
@settings(derandomize=True, deadline=None)
def test_label_history_equals_a_naive_filter(rows: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    rows = [*rows, (0, 5)]
    task = Task("t", "label", "t")
    events = pd.DataFrame({"user": [r[0] for r in rows], "item": 1, "time": [r[1] for r in rows]})
    requests = pd.DataFrame({"user": [a[0] for a in asked], "id": 0, "time": [a[1] for a in asked]}, dtype="int64")
    result = coded(events, tasks=((NEXT,), (task,)), labels={"t": requests})
    labels = result.labels["t"]
    users = result.vocabulary["user"].values
    counts = labels.end - result.events.offsets[labels.user]
    naive = [sum(r[0] == user and r[1] < time for r in rows) for user, time in zip(users[labels.user], labels.time, strict=True)]
    assert counts.tolist() == naive


def test_numbers_written_as_text_are_numbers() -> None:
    frame = pd.DataFrame({"user": [1, 1], "item": [1, 2], "rating": ["4.5", None]})
    np.testing.assert_array_equal(coded(frame).events.fields["rating"], np.float32([4.5, np.nan]))
    with pytest.raises(UserError, match="column 'value': row 1 holds 'x'"):
        coded(frame, tasks=((Task("t", "label", "t"),),), labels={"t": pd.DataFrame({"user": [1], "id": [1], "value": ["x"]})})


def test_labels_of_one_user_stand_in_order_of_their_request() -> None:
    requests = pd.DataFrame({"user": 1, "id": ["c", "a", "b"], "time": [9, 7, 8]})
    labels = coded(
        pd.DataFrame({"user": [1], "item": [1], "time": [1]}), tasks=((Task("t", "label", "t"),),), labels={"t": requests}
    ).labels["t"]
    assert labels.time is not None
    assert labels.time.tolist() == [7, 8, 9]


def test_notes_count_duplicates_and_single_events() -> None:
    frame = pd.DataFrame({"user": [1, 1, 1, 2], "item": [7, 8, 7, 7], "time": [1, 1, 1, 1]})
    assert coded(frame).notes == (
        "1 duplicated events (equal in every field) are kept",
        "1 users have one event: trained on, not evaluated",
    )
    assert len(coded(frame).events) == 4
    different = frame.assign(action=["pv", "pv", "buy", "pv"])
    assert not any("duplicated" in note for note in coded(different).notes)


def test_take_keeps_all_users() -> None:
    events = Events(np.array([0, 2, 2, 5]), {"item": np.arange(5)})
    kept = events.take(np.array([False, False, True, False, True]))
    assert kept.offsets.tolist() == [0, 0, 0, 2]
    assert kept.fields["item"].tolist() == [2, 4]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame({"user": [1], "itm": [1]}), "no column 'item' among user, itm; did you mean 'itm'"),
        (pd.DataFrame({"user": [1, None], "item": [1, 2]}), "no 'user' in row 2"),
        (pd.DataFrame({"user": [], "item": []}), "has no event"),
        (pd.DataFrame({"user": [1], "item": [1], "time": ["x"]}), "must hold int64 seconds"),
        (
            pd.DataFrame({"user": 1, "item": 1, "rating": [4, None, "good"]}),
            "column 'rating': row 3 holds 'good', which is",
        ),
        (pd.DataFrame({"user": 1, "item": 1, "rating": ["4", "NA"]}), "column 'rating': row 2 holds 'NA'"),
        (pd.DataFrame({"user": [1], "item": [1], "split": ["dev"]}), "unknown split 'dev'"),
    ],
)
def test_bad_tables_are_named(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(UserError, match=message):
        coded(frame)
