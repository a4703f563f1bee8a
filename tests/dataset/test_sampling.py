"""Samplers: never the positive, frequencies as the probabilities say."""

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
    ids = Uniform(n).draw(positives, 40, seeded(seed))
    assert int(ids.min()) >= 2
    assert int(ids.max()) < n
    assert not (ids == positives[:, None]).any()
    assert ids.shape == (n, 40)


def test_uniform_is_uniform() -> None:
    ids = Uniform(7).draw(torch.tensor([4]), 40_000, seeded())
    share = torch.bincount(ids[0], minlength=7) / 40_000
    assert torch.allclose(share, torch.tensor([0, 0, 0.25, 0.25, 0, 0.25, 0.25]), atol=0.01)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_popularity_follows_its_probabilities(alpha: float) -> None:
    counts = torch.tensor([9, 9, 1, 4, 0, 16])
    sampler = Popularity(counts, alpha)
    ids = sampler.draw(torch.tensor([0]), 60_000, seeded())  # no positive: no redraw
    weight = torch.where(counts > 0, counts.float() ** alpha, 0.0)
    weight[:2] = 0
    share = torch.bincount(ids[0], minlength=6) / 60_000
    assert torch.allclose(share, weight / weight.sum(), atol=0.01)
    assert torch.allclose(sampler.p.float(), weight / weight.sum())


def test_popularity_redraws_collisions_and_leaves_few() -> None:
    counts = torch.tensor([0, 0, 50, 50])
    ids = Popularity(counts).draw(torch.tensor([2, 3]), 1000, seeded())
    hit = ids == torch.tensor([[2], [3]])
    assert int(hit.sum()) < 20  # 2 ** -9 of 2000 remain after eight redraws
    alone = Popularity(torch.tensor([0, 0, 5])).draw(torch.tensor([2]), 3, seeded())
    assert alone.tolist() == [[2, 2, 2]]


def test_a_draw_rounded_up_to_one_is_the_last_id_that_was_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Popularity(torch.tensor([0, 0, 3, 4, 0, 0]))
    monkeypatch.setattr(torch, "rand", lambda shape, dtype, **_: torch.ones(shape, dtype=dtype))
    assert sampler.draw(torch.tensor([0]), 2, seeded()).tolist() == [[3, 3]]


def test_chance_lies_in_the_generator_alone() -> None:
    counts, positives = torch.tensor([0, 0, 3, 4, 5, 6]), torch.tensor([2, 3, 4])
    for sampler in (Uniform(6), Popularity(counts)):
        first = sampler.draw(positives, 3, seeded(1))
        assert torch.equal(first, sampler.draw(positives, 3, seeded(1)))


def test_spaces_too_small_are_refused() -> None:
    with pytest.raises(UserError, match="at least two items"):
        Uniform(3)
    with pytest.raises(UserError, match="at least one training event"):
        Popularity(torch.tensor([5, 5, 0]))
