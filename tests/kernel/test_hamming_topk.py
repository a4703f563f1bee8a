from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.cpu import hamming_topk as cpu
from userec.kernel.reference import hamming_topk as reference
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "hamming_topk"]
FORMS = {kernel.provider: kernel.load() for kernel in KERNELS if not kernel.opt_in}
ENDS = [0, 1, -1, 2**63 - 1, -(2**63), -(2**63) + 1, 0x5555555555555555, -0x5555555555555556, 2**62, -(2**62)]


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.one_of(st.sampled_from(ENDS), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=20))
def test_bits_are_counted_in_negative_words_too(words) -> None:
    want = [(word % 2**64).bit_count() for word in words]
    assert reference.bit_count(torch.tensor(words)).tolist() == want
    unsigned = np.array(words).view(np.uint64)
    assert cpu.bit_count(unsigned).tolist() == want
    assert cpu.by_table(unsigned).tolist() == want


def nearest(query: list[int], codes: list[list[int]], mask: list[bool], count: int) -> tuple[list[int], list[int]]:
    """One query, in Python's own whole numbers."""
    apart = [sum(((a ^ b) % 2**64).bit_count() for a, b in zip(query, code, strict=True)) for code in codes]
    found = sorted((distance, -event) for event, distance in enumerate(apart) if mask[event])[:count]
    missing = count - len(found)
    return [-event for _, event in found] + [-1] * missing, [distance for distance, _ in found] + [64 * len(query) + 1] * missing


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 150), st.sampled_from([1, 2, 4])),
    st.integers(1, 12),
    st.sampled_from([0, 2, 3]),
    st.sampled_from([0, 1, 4, 64]),
    st.integers(0, 2**31),
)
def test_both_forms_are_a_sort_in_python(shape, count, masked, varying, seed) -> None:
    users, candidates, length, words = shape
    rng = np.random.default_rng(seed)
    queries, codes = (
        rng.integers(-(2**63), 2**63, (users, many, words)) >> (64 - varying if varying else 63) for many in (candidates, length)
    )
    if not varying:
        queries, codes = np.zeros_like(queries), np.zeros_like(codes)
    mask = rng.random((users, candidates, length) if masked == 3 else (users, length)) < 0.6 if masked else None
    every = np.ones((users, candidates, length), bool)
    allowed = every if mask is None else every & (mask if mask.ndim == 3 else mask[:, None])
    want = [
        [nearest(queries[b, c].tolist(), codes[b].tolist(), allowed[b, c].tolist(), count) for c in range(candidates)]
        for b in range(users)
    ]
    for form in FORMS.values():
        index, distance = form(
            torch.from_numpy(queries), torch.from_numpy(codes), None if mask is None else torch.from_numpy(mask), count=count
        )
        assert index.dtype == distance.dtype == torch.int64
        assert [
            [(i, d) for i, d in zip(*rows, strict=True)] for rows in zip(index.tolist(), distance.tolist(), strict=True)
        ] == want


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_of_equal_codes_the_later_event_comes_first(form) -> None:
    index, distance = form(torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 5000, 1, dtype=torch.int64), count=3)
    assert index.tolist() == [[[4999, 4998, 4997]]]
    assert distance.tolist() == [[[0, 0, 0]]]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_where_fewer_are_allowed_the_rest_is_told_from_events(form) -> None:
    codes = torch.tensor([[[-1], [0], [0]]])  # 64 bits away is farther than no other event, and still an event
    index, distance = form(torch.zeros(1, 1, 1, dtype=torch.int64), codes, torch.tensor([[True, True, False]]), count=4)
    assert index.tolist() == [[[1, 0, -1, -1]]]
    assert distance.tolist() == [[[0, 64, 65, 65]]]


def test_the_table_of_older_numpy_serves(monkeypatch) -> None:
    monkeypatch.setattr(cpu, "bit_count", cpu.by_table)
    for case in KERNELS[0].cases():
        arguments = case.make(torch.Generator().manual_seed(5))
        for got, want in zip(FORMS["cpu"](**arguments), FORMS["torch"](**arguments), strict=True):
            assert torch.equal(got, want), case.name


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"queries": torch.zeros(2, 1, 1)}, "must be int64"),
        ({"codes": torch.zeros(2, 3, 2, dtype=torch.int64)}, r"give \[B, C, W\]"),
        ({"codes": torch.zeros(1, 3, 1, dtype=torch.int64)}, r"give \[B, C, W\]"),
        ({"mask": torch.ones(2, 3)}, "give bool"),
        ({"mask": torch.ones(2, 4, dtype=torch.bool)}, "give bool"),
        ({"count": 0}, "1 event or more"),
    ],
)
def test_bad_arguments_are_told(form, change, told) -> None:
    arguments = {
        "queries": torch.zeros(2, 1, 1, dtype=torch.int64),
        "codes": torch.zeros(2, 3, 1, dtype=torch.int64),
        "count": 2,
    }
    with pytest.raises(UserError, match=told):
        form(**arguments | change)
