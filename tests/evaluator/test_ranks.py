"""Counts per tie group: exact, whatever the chunks; the lists of the best."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.evaluator import ranks as ranks_module
from userec.evaluator.ranks import Ranks, Tally, Tops, best

quick = settings(derandomize=True, deadline=None, max_examples=60)
cases = st.tuples(st.integers(1, 5), st.integers(3, 14), st.integers(1, 4), st.integers(0, 2**31 - 1))


def make(rows: int, size: int, targets: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids [B, P] with padding, unknown ones and repeats; scores [B, size] full of ties; voids [B, size])."""
    rng = np.random.default_rng(seed)
    ids = torch.from_numpy(rng.integers(0, size, (rows, targets)))
    scores = torch.from_numpy(rng.choice([-np.inf, -1.0, 0.0, 0.5, 2.0, np.inf], (rows, size))).float()
    return ids, scores, torch.from_numpy(rng.random((rows, size)) < 0.3)


def tally(ids: torch.Tensor, scores: torch.Tensor, voids: torch.Tensor, chunk: int) -> Ranks:
    left = scores.masked_fill(voids, torch.nan)
    left[:, :2] = torch.nan
    left.scatter_(1, ids, torch.nan)
    counter = Tally(ids, scores.gather(1, ids))
    for first in range(0, left.shape[1], chunk):
        counter.add(left[:, first : first + chunk])
    return counter.ranks()


@quick
@given(cases, st.integers(1, 20))
def test_counts_equal_the_definition(case: tuple[int, int, int, int], chunk: int) -> None:
    ids, scores, voids = make(*case)
    found = tally(ids, scores, voids, chunk)
    expected = []
    for row in range(len(ids)):
        relevant = {int(i) for i in ids[row] if i >= 2}
        pool = relevant | {i for i in range(2, scores.shape[1]) if not voids[row, i]}
        assert found.targets[row] == len(relevant) + int((ids[row] == 1).sum())
        for item in relevant:
            s = scores[row, item]
            expected.append(
                (
                    row,
                    sum(bool(scores[row, j] > s) for j in pool),
                    sum(bool(scores[row, j] == s) for j in pool),
                    sum(bool(scores[row, j] == s) for j in relevant),
                    sum(bool(scores[row, j] > s) for j in relevant),
                )
            )
    got = zip(found.query, found.above, found.tied, found.relevant, found.before, strict=True)
    assert sorted(tuple(map(int, one)) for one in got) == sorted(expected)


def test_blocks_do_not_change_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, scores, voids = make(7, 50, 3, 1)
    whole = tally(ids, scores, voids, 50)
    monkeypatch.setattr(ranks_module, "BLOCK", 20)
    monkeypatch.setattr(ranks_module, "EXACT", 9)
    small = tally(ids, scores, voids, 50)
    for name in ("query", "above", "tied", "relevant", "before", "targets"):
        assert np.array_equal(getattr(whole, name), getattr(small, name)), name


def test_join_shifts_the_queries() -> None:
    ids, scores, voids = make(6, 12, 3, 5)
    whole = tally(ids, scores, voids, 12)
    parts = Ranks.join([tally(ids[a:b], scores[a:b], voids[a:b], 5) for a, b in ((0, 1), (1, 4), (4, 6))])
    assert all(np.array_equal(getattr(whole, name), getattr(parts, name)) for name in ("query", "above", "tied", "targets"))
    assert len(Ranks.join([]).targets) == 0


def test_no_target_has_no_row() -> None:
    found = tally(torch.tensor([[0, 0], [1, 0]]), torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bool), 5)
    assert found.targets.tolist() == [0, 1]
    assert len(found.query) == 0


@quick
@given(cases, st.integers(1, 6), st.integers(1, 20))
def test_lists_take_the_lower_id_of_ties_and_no_void(case: tuple[int, int, int, int], k: int, chunk: int) -> None:
    _, scores, _ = make(*case)
    tops = Tops(k)
    for first in range(0, scores.shape[1], chunk):
        tops.add(scores[:, first : first + chunk], first + 2)
    lists = tops.lists()
    for row in range(len(scores)):
        order = sorted(range(scores.shape[1]), key=lambda i: (-float(scores[row, i]), i))[:k]
        expected = {i + 2 for i in order if scores[row, i] != -torch.inf}
        assert {int(i) for i in lists[row] if i} == expected


def test_best_is_ascending() -> None:
    assert best(torch.tensor([[3.0, 1.0, 3.0, 3.0, 9.0]]), 3).tolist() == [[0, 2, 4]]
