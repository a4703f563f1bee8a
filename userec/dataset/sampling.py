"""Negative samplers: ids other than the positive, memory bounded by what is asked for.

`draw(positives [N], count, rng)` gives ids [N, count]. One that is the positive all the same is void: the caller tells it by
that."""

from __future__ import annotations

import torch
from torch import Tensor

from userec.errors import UserError
from userec.schema import FIRST


class Uniform:
    """Every real id but the positive, equally likely."""

    def __init__(self, n: int) -> None:
        if n - FIRST < 2:
            raise UserError(f"uniform negatives need at least two items, the space has {n - FIRST}")
        self.n = n

    def draw(self, positives: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """Exact: one of the n - 3 other ids, those from the positive on shifted by one."""
        others = self.n - FIRST - 1
        ids = torch.randint(others, (len(positives), count), generator=rng, device=positives.device) + FIRST  # [N, count]
        return ids.add_(ids >= positives.clamp(min=FIRST)[:, None])


class Popularity:
    """p proportional to count ** alpha over the real ids; ids never counted are never drawn."""

    rounds = 8
    """Redraws of collisions with the positive; what still collides is void."""

    def __init__(self, counts: Tensor, alpha: float = 1.0) -> None:
        weight = torch.where(counts > 0, counts.double() ** alpha, 0.0)
        weight[:FIRST] = 0
        if not weight.sum() > 0:
            raise UserError("popularity negatives need at least one training event")
        self.p = weight / weight.sum()  # [n] float64
        self.cdf = self.p.cumsum(0)
        self.last = int(self.p.nonzero()[-1])

    def draw(self, positives: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """By inversion of the cumulative distribution."""
        ids = self._sample((len(positives), count), rng)  # [N, count]
        for _ in range(self.rounds):
            again = (ids == positives[:, None]).nonzero(as_tuple=True)
            if not len(again[0]):
                break
            ids[again] = self._sample(again[0].shape, rng)
        return ids

    def _sample(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        drawn = torch.rand(shape, generator=rng, dtype=torch.float64, device=self.cdf.device) * self.cdf[-1]
        return torch.searchsorted(self.cdf, drawn, right=True).clamp(max=self.last)
