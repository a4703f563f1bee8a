"""Session-parallel reading: every transition once, a state goes only to who it belongs to."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.batch import Batch
from userec.dataset.events import Coded, Events, Vocabulary
from userec.dataset.loader import BatchConfig
from userec.dataset.split import Division, SplitConfig
from userec.dataset.stream import StreamLoader
from userec.schema import NEXT, Field, Schema


def stream(lengths: list[int], slots: int, carry: int, ahead: int = 1) -> StreamLoader:
    item = np.arange(sum(lengths), dtype=np.int32) + 2
    store = Events(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), {"item": item})
    vocabulary = {"user": Vocabulary(np.arange(len(lengths))), "item": Vocabulary(np.arange(len(item)))}
    schema = Schema({"item": Field("item")}, {"user": len(lengths) + 2, "item": len(item) + 2}, ((NEXT,),))
    coded = Coded("toy", store, None, vocabulary, schema, {}, {}, {})
    division = Division("toy", SplitConfig(), store, np.arange(len(store)), {}, {}, None, "")
    return StreamLoader(
        coded, division, config=BatchConfig(rows=slots), carry=carry, task="next", ahead=ahead, fields=["item"], seed=3
    )


@given(st.lists(st.integers(0, 11), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 5), st.integers(1, 2))
@settings(derandomize=True, deadline=None)
def test_each_stretch_follows_the_one_before_in_its_slot(lengths: list[int], slots: int, carry: int, ahead: int) -> None:
    loader = stream(lengths, slots, carry, ahead)
    read: dict[int, list[int]] = {}  # items so far by user
    before: list[int] = []
    batches = list(loader.batches(1))
    assert len(batches) == loader.steps(1)
    for batch in batches:
        assert 0 < len(batch.users) <= slots
        users = batch.users.tolist()
        assert len(set(users)) == len(users)
        for user, row, mask, source in zip(users, batch.history.events["item"], batch.history.mask, batch.carried, strict=True):
            items = row[mask].tolist()
            assert 1 + ahead <= len(items) <= carry + ahead
            assert (source >= 0) == (user in read)
            if source >= 0:
                assert before[source] == user
                assert read[user][-ahead:] == items[:ahead]  # what was looked ahead at
            read.setdefault(user, []).extend(items if source < 0 else items[ahead:])
        before = users
    starts = np.cumsum([0, *lengths])
    assert read == {u: list(range(starts[u] + 2, starts[u + 1] + 2)) for u, size in enumerate(lengths) if size > ahead}


def test_the_order_of_users_is_another_each_epoch_and_a_start_in_the_middle_is_the_same_plan() -> None:
    loader = stream([7, 5, 9, 4, 6, 8], 2, 3)

    def seen(batches: list[Batch]) -> list[list[int]]:
        return [batch.users.tolist() for batch in batches]

    first, again, later = (seen(list(loader.batches(epoch))) for epoch in (0, 0, 1))
    assert first == again
    assert first != later
    assert seen(list(loader.batches(0, 4))) == first[4:]


@pytest.mark.parametrize("slots", [1, 3])
def test_slots_are_kept_busy(slots: int) -> None:
    loader = stream([11, 3, 3, 3, 3, 3], slots, 2)  # stretches: 5, then 5 of one each
    assert loader.steps(0) in {1: (10,), 3: (5, 6)}[slots]  # six where the long one does not begin at once
    assert dataclasses.is_dataclass(next(loader.batches(0)))
