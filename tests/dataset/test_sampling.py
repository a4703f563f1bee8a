"""Samplers: never the positive, frequencies as log_q says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.dataset.sampling import Popularity, Uniform
from userec.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(4, 30), st.integers(0, 9))
@settings(derandomize=True, deadline=None)
def test_uniform_draws_real_ids_never_the_positive(n: int, seed: int) -> None:
    positives = torch.arange(n)
    ids, log_q = Uniform(n).draw(positives, 40, seeded(seed))
    assert int(ids.min()) >= 2
    assert int(ids.max()) < n
    assert not (ids == positives[:, None]).any()
    assert torch.allclose(log_q.exp(), torch.tensor(1 / (n - 3)))


def test_uniform_is_uniform() -> None:
    ids, log_q = Uniform(7).draw(torch.tensor([4]), 40_000, seeded())
    share = torch.bincount(ids[0], minlength=7) / 40_000
    assert torch.allclose(share, torch.tensor([0, 0, 0.25, 0.25, 0, 0.25, 0.25]), atol=0.01)
    assert float(log_q[0, 0].exp()) == pytest.approx(0.25)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_popularity_follows_its_log_q(alpha: float) -> None:
    counts = torch.tensor([9, 9, 1, 4, 0, 16])
    ids, log_q = Popularity(counts, alpha).draw(torch.tensor([0]), 60_000, seeded())  # no positive: no redraw
    weight = torch.where(counts > 0, counts.float() ** alpha, 0.0)
    weight[:2] = 0
    share = torch.bincount(ids[0], minlength=6) / 60_000
    assert torch.allclose(share, weight / weight.sum(), atol=0.01)
    assert torch.allclose(log_q.exp()[0], (weight / weight.sum())[ids[0]])


def test_popularity_redraws_collisions_and_voids_the_rest() -> None:
    counts = torch.tensor([0, 0, 50, 50])
    ids, log_q = Popularity(counts).draw(torch.tensor([2, 3]), 1000, seeded())
    hit = ids == torch.tensor([[2], [3]])
    assert int(hit.sum()) < 20  # 2 ** -9 of 2000 remain after eight redraws
    assert torch.isinf(log_q[hit]).all()
    assert torch.isfinite(log_q[~hit]).all()
    alone, void = Popularity(torch.tensor([0, 0, 5])).draw(torch.tensor([2]), 3, seeded())
    assert alone.tolist() == [[2, 2, 2]]
    assert (void == float("inf")).all()


def test_chance_lies_in_the_generator_alone() -> None:
    counts, positives = torch.tensor([0, 0, 3, 4, 5, 6]), torch.tensor([2, 3, 4])
    for sampler in (Uniform(6), Popularity(counts)):
        first = sampler.draw(positives, 3, seeded(1))[0]
        assert torch.equal(first, sampler.draw(positives, 3, seeded(1))[0])


def test_spaces_too_small_are_refused() -> None:
    with pytest.raises(UserError, match="at least two items"):
        Uniform(3)
    with pytest.raises(UserError, match="at least one training event"):
        Popularity(torch.tensor([5, 5, 0]))
