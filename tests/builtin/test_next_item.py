from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from userec.batch import Batch, Encoded, History, Query
from userec.builtin.kernels import userec_kernels
from userec.builtin.next_item import NextItem
from userec.capability import Can
from userec.config import Config, parse
from userec.encoder.contract import Encoder
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.objective import prices
from userec.schema import Field, Schema

N = 12  # ids, of which 10 are real

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


class ToyConfig(Config):
    dim: int = 6


class Toy(Encoder):
    """The running sum of item embeddings; a dot product with a bias."""

    name = "toy"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.ANY_POSITION
    Config = ToyConfig

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.items = build.table("item", config.dim)
        self.items.reset(std=1.0)
        self.bias = torch.nn.Parameter(torch.randn(N))

    def encode(self, history: History) -> Encoded:
        return Encoded(history, self.items(history.events["item"]).cumsum(1))

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return (self.items.all(), self.bias) if ids is None else (self.items(ids), self.bias[ids])


class Opaque(Toy):
    """The same scores, but nobody may look inside."""

    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.CAUSAL | Can.ANY_POSITION


class Helped(Toy):
    def auxiliary(self, encoded: Encoded, query: Query | None) -> dict[str, Tensor]:
        assert query is not None
        return {"norm": encoded.tokens.square().mean(), "again": self.score(encoded, query)}


def build(counts: list[int] | None = None) -> Builder:
    train = SimpleNamespace(fields={"item": np.repeat(np.arange(N), counts)}) if counts is not None else None
    schema = Schema({"item": Field("item")}, {"item": N, "user": 9})
    return Builder({}, schema, {}, Kernels(userec_kernels()), train)  # type: ignore[arg-type]


COUNTS = [0, 0, 40, 20, 10, 5, 5, 5, 5, 5, 3, 2]


def objective(**settings: Any) -> NextItem:
    return NextItem(parse(NextItem.Config, settings, "objective"), build(COUNTS))


def toy(kind: type[Toy] = Toy) -> Toy:
    torch.manual_seed(0)
    return kind(ToyConfig(), build()).double()


def raw() -> Batch:
    item = torch.tensor([[2, 3, 4, 5, 6], [7, 8, 9, 0, 0], [10, 11, 0, 0, 0], [4, 0, 0, 0, 0]])
    return Batch(History(torch.arange(4) + 2, {"item": item}, item > 0, tasks=("next",)))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def all_scores(encoder: Toy, batch: Batch) -> tuple[Tensor, Tensor]:
    """Scores of real ids [N, n - 2] and answers [N], by hand."""
    assert batch.targets is not None
    asked = batch.targets.weight > 0
    encoded = encoder.encode(batch.history)
    at = batch.targets.query.at[asked]
    tokens = encoded.tokens[asked.nonzero()[:, 0], at]
    return (tokens @ encoder.items.all().T + encoder.bias)[:, 2:], batch.targets.answer[asked] - 2


@pytest.mark.parametrize("kind", [Toy, Opaque])
@pytest.mark.parametrize("positions", ["all", "last", 2])
def test_full_softmax_is_the_cross_entropy_over_real_ids(kind: type[Toy], positions: str | int) -> None:
    encoder, ask = toy(kind), objective(positions=positions, temperature=0.5)
    batch = ask.prepare(raw(), rng())
    step = ask.loss(encoder, batch)
    scores, answer = all_scores(encoder, batch)
    assert step.targets == len(answer) == {"all": 7, "last": 3, 2: 5}[positions]
    assert float(step.loss) == pytest.approx(float(F.cross_entropy(scores / 0.5, answer)), rel=1e-6)


def test_the_two_ways_to_score_have_the_same_gradient() -> None:
    gradients = []
    for kind in (Toy, Opaque):
        encoder, ask = toy(kind), objective()
        ask.loss(encoder, ask.prepare(raw(), rng())).loss.backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-6, atol=1e-9)
    assert gradients[0][0][:2].abs().sum() == 0  # reserved rows are no candidates


SAMPLED = [
    {"price": "softmax"},
    {"price": "softmax", "sampler": "popularity"},
    {"price": "bce"},
    {"price": "gbce", "t": 0.5},
    {"price": "bpr"},
    {"price": "bpr_max", "regularisation": 0.2},
]


@pytest.mark.parametrize("settings", SAMPLED)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("count", [3, 40])
def test_opaque_encoders_pay_the_same(settings: dict[str, Any], shared: bool, count: int) -> None:
    ask = objective(negatives=count, shared=shared, **settings)
    batch = ask.prepare(raw(), rng())
    losses = [float(ask.loss(toy(kind), batch).loss) for kind in (Toy, Opaque)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert math.isfinite(losses[0])


def test_gathered_candidates_score_as_the_whole_catalogue_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, encoder = objective(negatives=5, price="bce"), toy()
    batch = ask.prepare(raw(), rng())
    dense = float(ask.loss(encoder, batch).loss)
    monkeypatch.setattr("userec.objective.catalogue.DENSE", 0)
    assert float(ask.loss(encoder, batch).loss) == pytest.approx(dense, rel=1e-12)


@pytest.mark.parametrize("shared", [False, True])
def test_every_other_item_as_a_negative_is_the_full_price(shared: bool) -> None:
    encoder, full, ask = toy(), objective(), objective(negatives=10, shared=shared)
    batch = ask.prepare(raw(), rng())
    every = torch.arange(2, N)
    ids = every.reshape(1, 1, -1) if shared else torch.cat([batch.targets.answer.unsqueeze(-1), every.expand(4, 4, 10)], -1)
    query = dataclasses.replace(batch.targets.query, ids=ids)
    batch = dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, query=query))
    expected = full.loss(encoder, full.prepare(raw(), rng())).loss
    assert float(ask.loss(encoder, batch).loss) == pytest.approx(float(expected), rel=1e-6)  # the hit on the answer is void


def test_popularity_corrects_by_the_share_of_counts() -> None:
    ask, encoder = objective(negatives=4, sampler="popularity", alpha=0.5), toy()
    batch = ask.prepare(raw(), rng())
    asked = batch.targets.weight > 0
    ids, encoded = batch.targets.query.ids[asked], encoder.encode(batch.history)
    share = torch.tensor(COUNTS).double().sqrt() / torch.tensor(COUNTS).double().sqrt().sum()
    logits = encoder.score(encoded, batch.targets.query)[..., 0][asked] - share[ids].log()
    logits[:, 1:][ids[:, 1:] == ids[:, :1]] = -math.inf
    expected = -logits.log_softmax(-1)[:, 0].mean()
    assert float(ask.loss(encoder, batch).loss) == pytest.approx(float(expected), rel=1e-6)
    plain = objective(negatives=4, sampler="popularity", alpha=0.5, log_q=False)
    assert abs(float(plain.loss(encoder, batch).loss) - float(expected)) > 1e-3


def test_answers_of_the_batch_are_negatives_and_those_of_ones_own_row_are_void() -> None:
    ask, encoder = objective(in_batch=6), toy()
    batch = ask.prepare(raw(), rng())
    asked = batch.targets.weight > 0
    answers = batch.targets.answer[asked]
    ids = batch.targets.query.ids[0]
    assert ids.shape == (1, 6)
    assert sorted(ids.flatten().tolist()) == sorted(set(ids.flatten().tolist()))  # answers are distinct here: none is drawn twice
    assert set(ids.flatten().tolist()) <= set(answers.tolist())
    log_q = ask._log_q(batch.targets)
    own = [set(row[row > 0].tolist()) for row in batch.targets.answer]
    for row, drawn, values in zip(asked.nonzero()[:, 0].tolist(), ids.expand(len(answers), -1).tolist(), log_q, strict=True):
        assert values[1:].isinf().tolist() == [item in own[row] for item in drawn]
        assert torch.isfinite(values[0])
    assert torch.allclose(log_q[:, 0], (torch.tensor(COUNTS)[answers] / 100).log())
    assert torch.isfinite(ask.loss(encoder, batch).loss)


@pytest.mark.parametrize(("sampler", "alpha"), [("uniform", 1.0), ("popularity", 0.5)])
def test_two_pools_are_one_mixture_and_draws_void_the_answer_alone(sampler: str, alpha: float) -> None:
    ask, encoder = objective(in_batch=2, negatives=30, sampler=sampler, alpha=alpha), toy()
    batch = ask.prepare(raw(), rng())
    answers = batch.targets.answer[batch.targets.weight > 0]
    ids = batch.targets.query.ids[0]
    assert ids.shape == (1, 32)
    assert set(ids[0, :2].tolist()) <= set(answers.tolist())
    p = torch.tensor(COUNTS).double() / 100
    r = p**alpha / (p**alpha)[2:].sum() if sampler == "popularity" else torch.full((N,), 1 / 10).double()
    mixture = ((2 * p + 30 * r) / 32).log()
    log_q = ask._log_q(batch.targets).double()
    assert torch.allclose(log_q[:, 0], mixture[answers], atol=1e-5)
    drawn = ids[:, 2:].expand(len(answers), -1)
    void = drawn == answers[:, None]
    assert void.any()
    assert log_q[:, 3:][void].isinf().all()
    assert torch.allclose(log_q[:, 3:][~void], mixture[drawn[~void]], atol=1e-5)
    scores = encoder.score(encoder.encode(batch.history), dataclasses.replace(batch.targets.query, ids=None))
    scores = scores[batch.targets.weight > 0][..., 0]  # [N, n]
    logits = torch.cat([scores.gather(1, answers[:, None]), scores[:, ids[0]]], 1) - log_q
    expected = -logits.log_softmax(1)[:, 0].mean()
    assert float(ask.loss(encoder, batch).loss) == pytest.approx(float(expected), rel=1e-5)


def test_elu_bends_negative_scores_of_bpr_max() -> None:
    scores = torch.tensor([[0.5, -2.0, 1.0, -0.3]])
    bent = torch.where(scores > 0, scores, 0.7 * (scores.exp() - 1))
    assert torch.allclose(prices.bpr_max(scores, elu=0.7), prices.bpr_max(bent))
    batch, encoder = objective(negatives=4, price="bpr_max").prepare(raw(), rng()), toy()
    losses = {elu: float(objective(negatives=4, price="bpr_max", elu=elu).loss(encoder, batch).loss) for elu in (0.0, 0.7)}
    assert losses[0.0] != losses[0.7]


def test_column_zero_is_the_answer_and_nothing_reserved_is_drawn() -> None:
    ask = objective(negatives=50)
    targets = ask.prepare(raw(), rng()).targets
    asked = targets.weight > 0
    assert torch.equal(targets.query.ids[..., 0], targets.answer)
    assert (targets.query.ids[asked] >= 2).all()
    assert not targets.query.ids[~asked].any()


def test_the_draw_is_a_function_of_the_generator() -> None:
    ask = objective(negatives=20)
    drawn = [ask.prepare(raw(), rng(seed)).targets.query.ids for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    "settings",
    [{}, *({**some, **one} for some in ({"negatives": 3}, {"in_batch": 3}, {"in_batch": 3, "negatives": 3}) for one in SAMPLED)],
)
@pytest.mark.parametrize("shared", [False, True])
def test_a_batch_without_questions_costs_nothing(settings: dict[str, Any], shared: bool) -> None:
    if shared and "negatives" not in settings:
        return
    ask, encoder = objective(**settings, shared=shared), toy()
    item = torch.tensor([[4, 0], [5, 0]])
    step = ask.loss(encoder, ask.prepare(Batch(History(torch.tensor([2, 3]), {"item": item}, item > 0)), rng()))
    assert float(step.loss) == 0
    assert step.targets == 0


def test_what_it_needs_follows_from_what_it_asks() -> None:
    assert objective().needs == Can.GRADIENT | Can.CAUSAL | Can.SCORE_CATALOG
    assert objective(positions="last").needs == Can.GRADIENT | Can.SCORE_CATALOG
    assert objective(negatives=5, positions=3).needs == Can.GRADIENT | Can.CAUSAL
    assert objective(negatives=5, positions="last").needs == Can.GRADIENT


def test_the_encoders_own_losses_are_added_and_told() -> None:
    for settings in ({}, {"negatives": 4}):
        ask, encoder, plain = objective(**settings), toy(Helped), toy()
        batch = ask.prepare(raw(), rng())
        step = ask.loss(encoder, batch)
        own, norm = float(ask.loss(plain, batch).loss), float(plain.encode(batch.history).tokens.square().mean())
        assert set(step.parts) == {"own", "norm", "again"}
        assert float(step.parts["again"]) == pytest.approx(own, rel=1e-6)  # priced as the scores are
        assert float(step.loss) == pytest.approx(2 * own + norm, rel=1e-6)


@pytest.mark.parametrize("price", ["bce", "gbce", "bpr", "bpr_max"])
def test_a_sampled_price_without_negatives_is_refused(price: str) -> None:
    with pytest.raises(UserError, match=f"price '{price}' needs drawn negatives"):
        objective(price=price)


@pytest.mark.parametrize(
    "settings", [{"positions": 0}, {"positions": "some"}, {"negatives": 0}, {"temperature": 0}, {"t": 1.5}, {"prices": "bce"}]
)
def test_a_wrong_setting_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"objective.{next(iter(settings))}"):
        objective(**settings)


@pytest.mark.parametrize("settings", [{"sampler": "popularity"}, {"in_batch": 2}])
def test_a_counted_sampler_without_training_events_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="needs the training events of 'item'; set objective"):
        NextItem(parse(NextItem.Config, {"negatives": 3, **settings}, "objective"), build())


@pytest.mark.parametrize("sampler", ["uniform", "popularity"])
def test_shared_negatives_come_from_every_item(sampler: str) -> None:
    ids = objective(negatives=2000, shared=True, sampler=sampler).prepare(raw(), rng()).targets.query.ids
    assert set(ids.flatten().tolist()) == set(range(2, N))


def test_gbce_takes_its_exponent_from_the_catalogue() -> None:
    ask, encoder = objective(negatives=4, price="gbce", t=1.0), toy()
    batch = ask.prepare(raw(), rng())
    asked = batch.targets.weight > 0
    ids, scores = batch.targets.query.ids[asked], encoder.score(encoder.encode(batch.history), batch.targets.query)[..., 0][asked]
    void = (ids == ids[:, :1]) & (torch.arange(5) > 0)
    expected = prices.gbce(scores, 4 / 9, torch.zeros_like(scores).masked_fill(void, math.inf)).mean()
    assert float(ask.loss(encoder, batch).loss) == pytest.approx(float(expected), rel=1e-9)
