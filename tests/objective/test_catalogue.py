from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from userec.batch import Encoded, History, Query, Targets
from userec.builtin.kernels import userec_kernels
from userec.capability import Can
from userec.encoder.contract import Encoder, NoConfig
from userec.encoder.table import EmbeddingTable
from userec.kernel.dispatch import Kernels
from userec.objective import catalogue, prices

N = 300


class Tower(Encoder):
    """Items are made of features by a network: each one asked for costs; `made` counts them."""

    name = "tower"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL

    def __init__(self) -> None:
        super().__init__(NoConfig(), None)  # type: ignore[arg-type]
        torch.manual_seed(0)
        self.features = EmbeddingTable(N, 5)
        self.features.reset(1.0)
        self.layer, self.bias = torch.nn.Linear(5, 4), torch.nn.Linear(5, 1)
        self.made: list[list[int]] = []

    def encode(self, history: History) -> Encoded:
        return Encoded(history, self.layer(self.features(history.events["item"])))

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        self.made.append([-1] if ids is None else ids.flatten().tolist())
        features = self.features.all() if ids is None else self.features(ids)
        return self.layer(features).tanh(), self.bias(features).squeeze(-1)


def question(count: int, shared: bool) -> tuple[History, Targets, Tensor]:
    """Rows of which not every position is asked, and log_q with a few voids."""
    generator = torch.Generator().manual_seed(count)
    item = torch.randint(2, N, (3, 5), generator=generator)
    answer = torch.randint(2, N, (3, 5), generator=generator)
    weight = (torch.rand(3, 5, generator=generator) < 0.7).float()
    drawn = torch.randint(2, N, (1, 1, count) if shared else (3, 5, count), generator=generator)
    ids = drawn if shared else torch.cat([answer.unsqueeze(-1), drawn], -1)
    log_q = torch.randn(int(weight.sum()), 1 + count, generator=generator)
    log_q[:, 1:].masked_fill_(torch.rand(log_q[:, 1:].shape, generator=generator) < 0.1, torch.inf)
    at = torch.arange(5).expand(3, 5)
    return History(torch.arange(3), {"item": item}, item > 0), Targets(Query(at, ids), answer, weight=weight), log_q


def priced(encoder: Encoder, history: History, targets: Targets, log_q: Tensor, shared: bool) -> Tensor:
    """The way of encoders that nobody may look into, and of the other prices."""
    encoded = encoder.encode(history)
    over: Any = catalogue.over_shared if shared else catalogue.over_candidates
    scores = over(encoder, encoded, targets) if shared else over(encoder, encoded, targets, N)
    return prices.sampled_softmax(scores / 0.3, log_q).mean()


@pytest.mark.parametrize("use", ["torch", "cpu"])
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
@pytest.mark.parametrize("count", [1, 6, 60, 400])
def test_the_op_costs_what_the_price_of_scores_costs(use: str, shared: bool, count: int) -> None:
    encoder = Tower()
    history, targets, log_q = question(count, shared)
    fused = Kernels(userec_kernels(), use=use).op("sampled_cross_entropy")
    ours = catalogue.mean_sampled_cross_entropy(encoder, encoder.encode(history), targets, log_q, fused, N, 0.3)
    theirs = priced(encoder, history, targets, log_q, shared)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    parameters = list(encoder.parameters())
    for got, want in zip(*(torch.autograd.grad(one, parameters) for one in (ours, theirs)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_each_drawn_item_is_made_once_and_no_other(shared: bool) -> None:
    fused = Kernels(userec_kernels()).op("sampled_cross_entropy")
    for count, whole in ((6, False), (400, True)):
        encoder = Tower()
        history, targets, log_q = question(count, shared)
        catalogue.mean_sampled_cross_entropy(encoder, encoder.encode(history), targets, log_q, fused, N)
        asked, answer = catalogue.where_asked(targets)
        ids = targets.query.ids.flatten() if shared else targets.query.ids[asked].flatten()
        assert encoder.made == [[-1] if whole else sorted({*answer.tolist(), *ids.tolist()})]


def test_one_question_of_one_row_is_not_taken_for_shared_draws() -> None:
    encoder, fused = Tower(), Kernels(userec_kernels()).op("sampled_cross_entropy")
    history, targets, _ = question(4, False)
    history = History(history.user[:1], {"item": history.events["item"][:1]}, history.mask[:1])
    query = Query(targets.query.at[:1, :1], targets.query.ids[:1, :1])
    one = Targets(query, targets.answer[:1, :1], weight=torch.ones(1, 1))
    for shared in (False, True):
        own = dataclasses.replace(one, query=dataclasses.replace(query, ids=query.ids[..., 1:])) if shared else one
        log_q = torch.zeros(1, 5)
        encoded = encoder.encode(history)
        ours = catalogue.mean_sampled_cross_entropy(encoder, encoded, own, log_q, fused, N, 0.3)
        assert float(ours.detach()) == pytest.approx(float(priced(encoder, history, own, log_q, shared).detach()), rel=1e-6)


def test_no_question_costs_nothing() -> None:
    encoder, fused = Tower(), Kernels(userec_kernels()).op("sampled_cross_entropy")
    for shared in (False, True):
        history, targets, log_q = question(4, shared)
        targets = dataclasses.replace(targets, weight=torch.zeros(3, 5))
        loss = catalogue.mean_sampled_cross_entropy(encoder, encoder.encode(history), targets, log_q[:0], fused, N)
        loss.backward()
        assert float(loss.detach()) == 0
