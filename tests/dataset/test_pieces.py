"""Pieces of users: apart in time, of other sessions, equally long, as long as they can be."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.dataset.data import FEWEST, SplitData
from userec.dataset.events import Coded, Events, Vocabulary
from userec.dataset.loader import BatchConfig
from userec.dataset.split import SplitConfig, divide
from userec.schema import NEXT, Field, Schema


def data(
    times: list[list[int]] | None,
    sessions: list[list[int]] | None = None,
    lengths: list[int] | None = None,
    window: int | None = None,
    rows: int = 1024,
    split: str = "leave_last",
) -> SplitData:
    """Users with events at these times; event e of all has item e + 2."""
    lengths = [len(row) for row in times or sessions or []] if lengths is None else lengths
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    count = int(offsets[-1])
    fields: dict[str, np.ndarray] = {"item": np.arange(2, count + 2, dtype=np.int32)}
    if times is not None:
        fields["time"] = np.concatenate([np.array(row, np.int64) for row in times])
    if sessions is not None:
        fields["session"] = np.concatenate([np.array(row, np.int32) for row in sessions])
    spaces = {"user": len(lengths) + 2, "item": count + 2, "session": 100}
    schema = Schema({name: Field(name) for name in fields}, spaces, ((NEXT,),))
    vocabulary = {name: Vocabulary(np.arange(size - 2)) for name, size in spaces.items()}
    coded = Coded("toy", Events(offsets, fields), None, vocabulary, schema, {}, {}, {})
    division = divide(coded, SplitConfig(name=split))  # type: ignore[arg-type]
    reads = [*fields, "asked.time"] if times is not None else list(fields)
    return SplitData(coded, division, trained=("next",), window=window, fields=reads, seed=0, config=BatchConfig(eval_rows=rows))


def pieces(d: SplitData, split: str = "test", shots: int = 1, **told: int) -> dict[int, list[list[int]]]:
    """{user: the event indices of his pieces, the newest first}."""
    found: dict[int, list[list[int]]] = {}
    told = {"events": 50, **told}
    for back in range(shots + 1):
        for batch in d.pieces(split, back, shots=shots, **told):  # type: ignore[arg-type]
            assert batch.targets is None
            assert batch.users is not None
            for user, items, mask in zip(batch.users.tolist(), batch.history.events["item"], batch.history.mask, strict=True):
                found.setdefault(user, []).append((items[mask] - 2).tolist())
    assert all(len(own) == shots + 1 for own in found.values()), "a piece is missing"
    return found


def test_the_newest_and_the_older_ones_meet_before_the_last_question() -> None:
    times = [list(range(0, 210, 10)), list(range(0, 110, 10)), list(range(0, 100, 10))]
    found = pieces(data(times))
    assert found == {
        0: [list(range(10, 20)), list(range(10))],  # 20 events before the question
        1: [list(range(26, 31)), list(range(21, 26))],
    }, "the third user has nine events before his question: too short"
    assert pieces(data(times), "valid") == {0: [list(range(10, 19)), list(range(1, 10))]}


def test_shots_go_backwards_without_overlap_and_the_longest_is_bounded() -> None:
    found = pieces(data([list(range(41))]), shots=3, events=7)
    assert found == {0: [list(range(33, 40)), list(range(26, 33)), list(range(19, 26)), list(range(12, 19))]}
    assert pieces(data([list(range(20))]), shots=3) == {}


def test_the_moment_of_the_newest_piece_is_of_no_older_one() -> None:
    tied = [*range(9), *[100] * 6, *range(200, 206)]  # the natural cut, 10 | 10, falls into the moment 100
    found = pieces(data([tied]))[0]
    assert max(tied[e] for e in found[1]) < tied[found[0][0]]
    assert found == [list(range(11, 20)), list(range(9))]


def test_the_gap_is_more_than_told() -> None:
    times = [[*range(0, 80, 10), *range(100, 180, 10), 900]]  # 16 events, the pause between 70 and 100
    assert pieces(data(times), gap=29)[0] == [list(range(8, 16)), list(range(8))]
    assert pieces(data(times), gap=30)[0] == [list(range(9, 16)), list(range(1, 8))]
    assert pieces(data(times), gap=10**15) == {}


def test_a_session_is_not_cut_in_two_even_where_another_lies_inside() -> None:
    order = [[5] * 8 + [6] * 12 + [9]]
    assert pieces(data(None, order))[0] == [list(range(12, 20)), list(range(8))]
    inside = [[5] * 7 + [6, 5, 5, 6, 5] + [7] * 3 + [6] * 5 + [9]]  # session 6 opens at 7
    assert pieces(data(None, inside))[0] == [list(range(13, 20)), list(range(7))]
    unknown = [[1] * 21]  # no session is known: every event stands alone
    assert pieces(data(None, unknown))[0] == [list(range(10, 20)), list(range(10))]


def test_sessions_of_the_same_name_are_different_users_different_ones() -> None:
    assert pieces(data(None, [[2] * 6 + [3] * 6, [3] * 6 + [4] * 6])) == {
        0: [list(range(6, 11)), list(range(1, 6))],
        1: [list(range(18, 23)), list(range(13, 18))],
    }


def test_a_shorter_newest_piece_is_taken_where_a_longer_one_leaves_no_room() -> None:
    sessions = [[2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3] + [4] * 5 + [9]]  # 10 | 10 falls into session 3, which opens at 2
    assert pieces(data(None, sessions))[0] == [list(range(15, 20)), list(range(10, 15))]


def test_an_encoder_window_shortens_what_is_seen_of_each_piece() -> None:
    assert pieces(data([list(range(21))], window=3)) == {0: [[17, 18, 19], [7, 8, 9]]}


def test_asked_time_knows_nothing_after_the_piece() -> None:
    (batch,) = data([list(range(0, 210, 10))]).pieces("test", 1, events=50)
    assert batch.history.asked["asked.time"].tolist() == [[*range(10, 100, 10), 90]]


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=40), min_size=1, max_size=4),
    st.integers(1, 3), st.integers(5, 12), st.integers(0, 3), st.booleans(),
)  # fmt: skip
@settings(derandomize=True, deadline=None, max_examples=60)
def test_whatever_the_history_pieces_are_apart_and_as_long_as_can_be(
    users: list[list[tuple[int, int]]], shots: int, events: int, gap: int, split_sessions: bool
) -> None:
    users = [*users, [(step, 2) for step in range(1, 12)]]  # somebody to train on and to ask about
    times = [np.cumsum([step for step, _ in row]).tolist() if row else [] for row in users]
    sessions = [[session for _, session in row] for row in users] if split_sessions else None
    d = data(times, sessions, rows=2)
    found = pieces(d, shots=shots, events=events, gap=gap)
    for user, row in enumerate(times):
        start = int(d.coded.events.offsets[user])
        own = sessions[user] if sessions else [1] * len(row)
        wanted = brute(row, own, shots, events, gap)
        assert ([[e - start for e in piece] for piece in found[user]] if user in found else None) == wanted


def brute(times: list[int], sessions: list[int], shots: int, events: int, gap: int) -> list[list[int]] | None:
    """The longest pieces, found by trying every length."""
    stop = len(times) - 1  # leave_last asks for the last event, of at least three
    for size in range(min(events, stop), FEWEST - 1, -1):
        newest = list(range(stop - size, stop))
        barred = {sessions[e] for e in newest} - {1}
        end = 0
        while end < newest[0] and times[newest[0]] - times[end] > gap and sessions[end] not in barred:
            end += 1
        if end >= shots * size:
            return [newest, *(list(range(end - back * size, end - (back - 1) * size)) for back in range(1, shots + 1))]
    return None


@pytest.mark.parametrize(("back", "rows"), list(product((0, 1), (1, 3))))
def test_batch_size_changes_nothing(back: int, rows: int) -> None:
    times = [list(range(n)) for n in (12, 30, 17, 25, 11, 40)]
    wanted = pieces(data(times))
    found = pieces(data(times, rows=rows))
    assert {user: own[back] for user, own in found.items()} == {user: own[back] for user, own in wanted.items()}
