from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from userec.errors import UserError
from userec.kernel.jagged import EDGES, GROWTH, buckets, gathered, offsets_of, pad, slots, unpad

LENGTHS = st.lists(st.integers(0, 12), max_size=12)
LAYOUTS = [*EDGES.values(), (4, 4, 4), (4, 5, 4), (0, 4, 0, 4), (1, 1, 9, 9, 0, 9)]


def numbered(lengths: tuple[int, ...] | list[int]) -> Tensor:
    """[S, 2]: no two values are one, none is zero."""
    return torch.arange(1.0, 2 * sum(lengths) + 1, dtype=torch.float64).view(-1, 2)


def rows_of(values: Tensor, lengths: tuple[int, ...] | list[int]) -> list[Tensor]:
    return list(values.split(list(lengths)))


@given(LENGTHS, st.integers(0, 3))
@settings(derandomize=True, deadline=None)
def test_padded_rows_hold_their_events_then_zeros_and_unpad_takes_them_back(lengths: list[int], room: int) -> None:
    values, offsets, longest = numbered(lengths), offsets_of(lengths), max(lengths, default=0) + room
    padded = pad(values, offsets, longest)
    assert padded.shape == (len(lengths), longest, 2)
    for row, own in zip(padded, rows_of(values, lengths), strict=True):
        assert torch.equal(row[: len(own)], own)
        assert not row[len(own) :].any()
    assert torch.equal(unpad(padded, offsets, len(values)), values)
    assert torch.equal(slots(offsets.int(), longest, len(values)), slots(offsets, longest, len(values)))


@given(LENGTHS)
@settings(derandomize=True, deadline=None)
def test_every_user_with_events_is_in_one_bucket_among_users_of_like_length(lengths: list[int]) -> None:
    found = buckets(offsets_of(lengths), total=sum(lengths))
    rows = [int(row) for bucket in found for row in bucket.rows]
    assert sorted(rows) == [row for row, length in enumerate(lengths) if length]
    assert len(set(rows)) == len(rows)
    for bucket in found:
        own = [lengths[row] for row in bucket.rows]
        assert max(own) == bucket.length <= max(GROWTH * min(own), min(own))
        assert bucket.rows.tolist() == sorted(bucket.rows.tolist())
        assert (bucket.slot is None) == (len(set(own)) == 1)
        assert bucket.whole == (sum(own) == sum(lengths))
    assert [bucket.length for bucket in found] == sorted(bucket.length for bucket in found)


@given(LENGTHS)
@settings(derandomize=True, deadline=None)
def test_a_bucket_holds_its_rows_then_zeros_and_all_go_back_to_their_places(lengths: list[int]) -> None:
    values = numbered(lengths)
    users = rows_of(values, lengths)
    found = buckets(offsets_of(lengths), total=sum(lengths))
    parts = []
    for bucket in found:
        padded = bucket.pad(values)
        assert padded.shape == (len(bucket.rows), bucket.length, 2)
        for row, user in zip(padded, bucket.rows, strict=True):
            own = users[int(user)]
            assert torch.equal(row[: len(own)], own)
            assert not row[len(own) :].any()
        assert torch.equal(bucket.pack(padded), values[bucket.events])
        parts.append(bucket.pack(padded))
    assert torch.equal(gathered(parts, found, values), values)


@pytest.mark.parametrize("lengths", LAYOUTS, ids=str)
def test_gradients_go_where_the_values_came_from(lengths: tuple[int, ...]) -> None:
    values = numbered(lengths).requires_grad_()
    offsets = offsets_of(lengths)
    factors = torch.randn(len(values), 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = buckets(offsets, total=len(values))
    parts = [bucket.pack(bucket.pad(values) * bucket.pad(factors)) for bucket in found]
    for out in (
        gathered(parts, found, values),
        unpad(
            pad(values, offsets, max(lengths, default=0)) * pad(factors, offsets, max(lengths, default=0)), offsets, len(values)
        ),
    ):
        assert torch.equal(out, values * factors)
        if found:
            assert torch.equal(torch.autograd.grad(out.sum(), values)[0], factors)


BAD = {
    "begins late": ([1, 3, 5], 3, "these go from 1 to 5"),
    "ends early": ([0, 2, 4], 3, "offsets must rise from 0 to the 5 events, these go from 0 to 4"),
    "ends late": ([0, 2, 6], 4, "these go from 0 to 6"),
    "falls": ([0, 4, 2, 5], 4, "these go from 0 to 5"),
    "of nobody": ([0], 3, "these go from 0 to 0"),
}
JAGGED = ("hstu_attention", "retention", "augru", "jagged_attention")


def arguments_of(op: str) -> dict[str, Any]:
    """A case of two users, of 2 and 3 events."""
    module = import_module(f"userec.kernel.reference.{op}")
    return dict(module._arguments((2, 3), torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("room", ["reference", "cpu"])
@pytest.mark.parametrize("op", JAGGED)
@pytest.mark.parametrize("name", ["begins late", "ends early", "ends late"])
def test_offsets_that_do_not_cover_the_events_are_told_by_every_sequence_op(op: str, room: str, name: str) -> None:
    offsets, longest, told = BAD[name]
    form = getattr(import_module(f"userec.kernel.{room}.{op}"), op)
    with pytest.raises(UserError, match=told):
        form(**{**arguments_of(op), "offsets": torch.tensor(offsets), "max_len": longest})


@pytest.mark.parametrize("op", JAGGED)
def test_a_reference_tells_of_users_longer_than_max_len(op: str) -> None:
    form = getattr(import_module(f"userec.kernel.reference.{op}"), op)
    with pytest.raises(UserError, match="a user has 3 events, max_len is 2"):
        form(**{**arguments_of(op), "max_len": 2})


@pytest.mark.parametrize("name", BAD)
def test_offsets_rise_from_nothing_to_the_end(name: str) -> None:
    offsets, longest, told = BAD[name]
    with pytest.raises(UserError, match=told):
        buckets(torch.tensor(offsets), total=5)
    with pytest.raises(UserError, match=told):
        slots(torch.tensor(offsets), longest, 5)


def test_padding_is_zero_beside_a_number_that_is_none() -> None:
    values = numbered((9, 10))
    values[8] = torch.nan
    (bucket,) = buckets(offsets_of((9, 10)), total=sum((9, 10)))
    assert not bucket.pad(values)[0, 9:].any()
    assert bucket.pad(values)[1].isfinite().all()


def test_rows_that_are_full_and_all_there_are_no_copies() -> None:
    values = numbered((4, 4, 0, 4))
    (bucket,) = buckets(offsets_of((4, 4, 0, 4)), total=sum((4, 4, 0, 4)))
    padded = bucket.pad(values)
    assert padded.data_ptr() == values.data_ptr()
    assert gathered([bucket.pack(padded)], [bucket], values).data_ptr() == values.data_ptr()


def test_values_without_a_further_axis_and_of_any_dtype_are_padded_too() -> None:
    time = torch.arange(1, 12)
    for bucket in buckets(offsets_of((5, 6)), total=sum((5, 6))):
        assert bucket.pad(time).tolist() == [[1, 2, 3, 4, 5, 0], [6, 7, 8, 9, 10, 11]]
    (bucket,) = buckets(offsets_of((5, 6)), total=sum((5, 6)))
    assert bucket.pad(time > 1).dtype == torch.bool
