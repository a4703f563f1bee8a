"""Labels with request times are divided as the events are; judged labels keep their values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.dataset.events import Coded, Events, Labels, Vocabulary
from userec.dataset.split import Division, Questions, SplitConfig, divide, target_hash
from userec.schema import NEXT, Field, Kind, Schema, Task

Row = tuple[int, int, float, int | None]
"""(user, id, value, time)"""


def coded(times: list[list[int]], rows: list[Row], kind: Kind = "click", ids: int = 12) -> Coded:
    """Events at these times; a label's history ends before the first event at its time or later."""
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in times])]).astype(np.int64)
    moments = np.array([time for row in times for time in row], np.int64)
    items = 2 + np.arange(len(moments), dtype=np.int32) % 7
    user = np.array([row[0] for row in rows], np.int64)
    timed = bool(rows) and rows[0][3] is not None
    time = np.array([row[3] for row in rows], np.int64) if timed else None
    end = offsets[user + 1]
    if time is not None:
        end = offsets[user] + [np.searchsorted(times[u], t) for u, t in zip(user, time, strict=True)]
    table = Labels(user, np.array([row[1] for row in rows]), np.array([row[2] for row in rows], np.float32), end, None, time)
    order = np.lexsort((end, user) if time is None else (time, end, user))
    vocabulary = {"user": Vocabulary(np.arange(len(times)) + 100), "item": Vocabulary(np.arange(2, ids))}
    tasks = ((NEXT,), (Task("shown", kind, "item"),))
    schema = Schema({"item": Field("item")}, {name: len(entry) for name, entry in vocabulary.items()}, tasks)
    return Coded(
        "toy", Events(offsets, {"item": items, "time": moments}), None, vocabulary, schema, {}, {}, {"shown": table.take(order)}
    )


def rows_of(found: Questions) -> list[tuple[int, int, dict[int, float] | list[int]]]:
    """(user, time, {id: value} or ids)."""
    assert found.time is not None
    out = []
    for i in range(len(found)):
        part = slice(found.offsets[i], found.offsets[i + 1])
        ids = found.ids[part].tolist()
        answer = ids if found.values is None else dict(zip(ids, found.values[part].tolist(), strict=True))
        out.append((int(found.user[i]), int(found.time[i]), answer))
    return out


def asked(division: Division) -> Mapping[str, list[int]]:
    """{split: the request times of `shown`}."""
    labels = division.train_labels["shown"]
    assert labels.time is not None
    held = {split: [time for _, time, _ in rows_of(division.questions[split, "shown"])] for split in ("valid", "test")}
    return {"train": labels.time.tolist(), **held}


def test_by_time_divides_labels_by_the_cuts_of_the_events() -> None:
    times = [list(range(100))]  # cuts at 80 and 90
    data = coded(times, [(0, 2 + i % 5, 1.0, t) for i, t in enumerate([5, 79, 80, 89, 90, 99, 500])])
    division = divide(data, SplitConfig(name="by_time"))
    assert asked(division) == {"train": [5, 79], "valid": [80, 89], "test": [90, 99, 500]}


def test_leave_last_takes_each_users_last_requests() -> None:
    times = [list(range(10)), list(range(10)), list(range(10))]
    rows: list[Row] = [(0, 2, 1.0, t) for t in (9, 3, 5, 7)]  # not in order
    rows += [(1, 2, 1.0, 4), (1, 3, 0.0, 4), (1, 2, 1.0, 6), (1, 4, 1.0, 8), (1, 5, 0.0, 8)]  # three requests of several rows
    rows += [(2, 2, 1.0, 3), (2, 3, 1.0, 3), (2, 4, 1.0, 6)]  # two requests alone: all train
    division = divide(coded(times, rows), SplitConfig(name="leave_last"))
    assert rows_of(division.questions["valid", "shown"]) == [(0, 7, {2: 1}), (1, 6, {2: 1})]
    assert rows_of(division.questions["test", "shown"]) == [(0, 9, {2: 1}), (1, 8, {4: 1, 5: 0})]
    labels = division.train_labels["shown"]
    assert labels.time is not None
    assert list(zip(labels.user.tolist(), labels.time.tolist(), strict=True)) == [
        (0, 3),
        (0, 5),
        (1, 4),
        (1, 4),
        (2, 3),
        (2, 3),
        (2, 6),
    ]


def test_without_request_times_users_are_held_out() -> None:
    data = coded([list(range(5)) for _ in range(20)], [(u, 2 + i, float(i), None) for u in range(20) for i in range(2)])
    division = divide(data, SplitConfig(name="leave_last"))
    people = [set(division.train_labels["shown"].user), *(set(division.questions[s, "shown"].user) for s in ("valid", "test"))]
    assert [len(part) for part in people] == [16, 2, 2]
    assert set.union(*people) == set(range(20))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(2, 9), st.sampled_from([0.0, 1.0]), st.integers(1, 25)), min_size=1),
    st.sampled_from(["by_time", "leave_last"]),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_every_request_is_in_one_part_and_never_before_training(rows: list[Row], name: str) -> None:
    data = coded([list(range(20)) for _ in range(4)], rows)
    division = divide(data, SplitConfig(name=name))  # type: ignore[arg-type]
    labels = division.train_labels["shown"]
    assert labels.time is not None
    requests = {
        "train": set(zip(labels.user.tolist(), labels.time.tolist(), strict=True)),
        **{s: {(u, t) for u, t, _ in rows_of(division.questions[s, "shown"])} for s in ("valid", "test")},
    }
    told = [request for part in requests.values() for request in part]
    assert sorted(told) == sorted({(row[0], row[3]) for row in rows})
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        for user in range(4):
            early = [t for u, t in requests[one] if u == user]
            late = [t for u, t in requests[other] if u == user]
            assert not early or not late or max(early) < min(late)
    bounds = data.events.offsets
    assert (data.events.fields["time"][labels.end - 1] < labels.time).all()
    assert (labels.end > bounds[labels.user]).all()
    for split in ("valid", "test"):
        found = division.questions[split, "shown"]
        assert found.time is not None
        assert (data.events.fields["time"][found.end - 1] < found.time).all()


ONE_REQUEST: list[Row] = [(0, 4, 0.0, 95), (0, 3, 1.0, 95), (0, 5, float("nan"), 95), (0, 6, 3.5, 96), (0, 3, 0.0, 95)]


@pytest.mark.parametrize("kind", ["click", "rating"])
def test_judged_labels_keep_every_candidate_with_its_value(kind: Kind) -> None:
    division = divide(coded([list(range(100))], ONE_REQUEST, kind), SplitConfig(name="by_time"))
    assert rows_of(division.questions["test", "shown"]) == [(0, 95, {4: 0, 3: 1}), (0, 96, {6: 3.5})], (
        "the first of two judgements"
    )


@pytest.mark.parametrize("kind", ["item", "label"])
def test_other_labels_keep_what_is_right(kind: Kind) -> None:
    division = divide(coded([list(range(100))], ONE_REQUEST, kind), SplitConfig(name="by_time"))
    assert rows_of(division.questions["test", "shown"]) == [(0, 95, [3]), (0, 96, [6])]


def hashed(rows: list[Row], kind: Kind = "rating") -> str:
    data = coded([list(range(100))], rows, kind)
    return target_hash(data, divide(data, SplitConfig(name="by_time")))


def test_the_hash_covers_the_values_and_not_the_order() -> None:
    one: list[Row] = [(0, 4, 1.0, 95), (0, 3, 2.0, 95), (0, 6, 3.0, 97)]
    assert hashed(one) == hashed(one[::-1])
    assert hashed(one) != hashed([(0, 4, 2.0, 95), (0, 3, 1.0, 95), (0, 6, 3.0, 97)]), "the values change places"
    assert hashed(one) != hashed([(0, 4, 1.0, 95), (0, 3, 2.0, 95), (0, 6, 3.5, 97)])
    assert hashed(one, "item") == hashed([(user, item, 1.0, time) for user, item, _, time in one], "item")


def test_a_value_that_the_test_would_tell_does_not_train() -> None:
    """Requests at 0..90; their values are known 15 later; the events go on to 200."""
    events = Events(np.array([0, 21]), {"item": np.full(21, 2, np.int32), "time": np.arange(0, 210, 10)})
    time = np.arange(5, 95, 10)
    labels = Labels(np.zeros(9, np.int64), np.full(9, 3), np.ones(9, np.float32), np.arange(1, 10), None, time, time + 15)
    schema = Schema({}, {"user": 3, "item": 4}, ((NEXT,), (Task("buy", "click", "item"),)))
    vocabulary = {"user": Vocabulary(np.arange(1)), "item": Vocabulary(np.arange(2))}
    coded = Coded("toy", events, None, vocabulary, schema, {}, {}, {"buy": labels})
    division = divide(coded, SplitConfig(name="by_time", valid=0.2, test=0.2))
    trained = division.train_labels["buy"]
    first = division.train.fields["time"].max()
    assert len(trained.user)
    assert (trained.until <= first + 10).all(), "what training knows, it knows before validation begins"
    assert len(labels.user[labels.time <= first]) > len(trained.user), "the last requests of the training part are left out"
    assert len(division.questions["test", "buy"]), "the cuts lie where labels are known"
