"""Session-parallel reading: every transition once, a state goes only to who it belongs to."""

from __future__ import annotations

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


def stream(lengths: list[int], slots: int, carry: int) -> StreamLoader:
    item = np.arange(sum(lengths), dtype=np.int32) + 2
    store = Events(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), {"item": item})
    vocabulary = {"user": Vocabulary(np.arange(len(lengths))), "item": Vocabulary(np.arange(len(item)))}
    schema = Schema({"item": Field("item")}, {"user": len(lengths) + 2, "item": len(item) + 2}, ((NEXT,),))
    coded = Coded("toy", store, None, vocabulary, schema, {}, {}, {})
    division = Division("toy", SplitConfig(), store, np.arange(len(store)), {}, {}, None, "")
    return StreamLoader(coded, division, config=BatchConfig(rows=slots), carry=carry, task="next", fields=["item"], seed=3)


@given(st.lists(st.integers(0, 11), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 5))
@settings(derandomize=True, deadline=None)
def test_each_stretch_follows_the_one_before_in_its_slot(lengths: list[int], slots: int, carry: int) -> None:
    loader = stream(lengths, slots, carry)
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
            assert 2 <= len(items) <= carry + 1
            assert (source >= 0) == (user in read)
            if source >= 0:
                assert before[source] == user
                assert read[user][-1] == items[0]  # the event that was asked for
            read.setdefault(user, []).extend(items if source < 0 else items[1:])
        before = users
    starts = np.cumsum([0, *lengths])
    assert read == {u: list(range(starts[u] + 2, starts[u + 1] + 2)) for u, size in enumerate(lengths) if size > 1}


def test_the_order_of_users_is_another_each_epoch_and_a_start_in_the_middle_is_the_same_plan() -> None:
    loader = stream([7, 5, 9, 4, 6, 8], 2, 3)

    def seen(batches: list[Batch]) -> list[list[int]]:
        return [batch.users.tolist() for batch in batches]

    first, again, later = (seen(list(loader.batches(epoch))) for epoch in (0, 0, 1))
    assert first == again
    assert first != later
    assert seen(list(loader.batches(0, 4))) == first[4:]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_slot_is_free_only_once_every_user_has_begun(slots: int) -> None:
    lengths = [11, 3, 3, 9, 3, 5, 3, 7]  # 5, 1, 1, 4, 1, 2, 1 and 3 stretches
    loader = stream(lengths, slots, 2)
    for epoch in range(5):
        begun: set[int] = set()
        for batch in loader.batches(epoch):
            begun |= set(batch.users.tolist())
            assert len(batch.users) == slots or len(begun) == len(lengths)
        assert loader.steps(epoch) <= 18 / slots + 5 * (1 - 1 / slots)  # Graham's bound: longer is to wait for one another
