from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from userec.batch import Batch, Encoded, History, Query, Targets
from userec.builtin.kernels import userec_kernels
from userec.builtin.labelled import Labelled
from userec.capability import Can
from userec.config import Config, parse
from userec.encoder.contract import Encoder
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.schema import NEXT, Field, Schema, Task

SCHEMA = Schema(
    {"item": Field("item"), "profile.age": Field("profile.age", space="age"), "profile.city": Field("profile.city")},
    {"item": 12, "age": 6, "profile.city": 5},
    ((NEXT,), (Task("like"),), (Task("age", "label", "age"),), (Task("stars", "rating"),)),
)

pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")


class ToyConfig(Config):
    dim: int = 4


class Toy(Encoder):
    """Mean of item embeddings against a table a task."""

    name = "toy"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL
    Config = ToyConfig

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.tables = torch.nn.ModuleDict(
            {"like": build.table("item", 4), "age": build.table("age", 4), "stars": build.table("item", 4)}
        )
        for table in self.tables.values():
            table.reset(std=1.0)

    def encode(self, history: History) -> Encoded:
        return Encoded(history, self.tables["like"](history.events["item"]).cumsum(1))

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        table = self.tables[tasks[0]]
        return (table.all() if ids is None else table(ids)), None


def build() -> Builder:
    return Builder({}, SCHEMA, {}, Kernels(userec_kernels()))


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy(ToyConfig(), build()).double()


def objective(task: str, **settings: Any) -> Labelled:
    ask = Labelled(parse(Labelled.Config, settings, "objective"), build())
    ask.begin_task(toy(), (task,), "train")
    return ask


def raw(task: str, answer: list[int], value: list[float]) -> Batch:
    item = torch.tensor([[2, 3, 4], [7, 8, 0], [9, 0, 0], [0, 0, 0]])
    history = History(torch.arange(4) + 2, {"item": item}, item > 0, tasks=(task,))
    labels = torch.tensor(value).reshape(4, 1, 1, 1)
    return Batch(history, Targets(Query(history.last[:, None]), torch.tensor(answer)[:, None], labels))


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_softmax_is_the_cross_entropy_over_the_classes() -> None:
    ask, encoder = objective("age"), toy()
    batch = ask.prepare(raw("age", [2, 5, 1, 3], [1.0, 1.0, 1.0, 1.0]), rng())
    step = ask.loss(encoder, batch)
    user = torch.stack([encoder.encode(batch.history).tokens[0, 2], encoder.encode(batch.history).tokens[1, 1], torch.zeros(4)])
    scores = (user @ encoder.tables["age"].all().T)[:, 2:]
    answer = torch.tensor([2, 5, 3]) - 2  # the unknown class is not asked for; an empty history is
    assert step.targets == 3
    assert float(step.loss) == pytest.approx(float(F.cross_entropy(scores, answer)), rel=1e-6)
    assert float(step.parts["accuracy"]) == pytest.approx(float((scores.argmax(1) == answer).double().mean()))


def test_an_item_task_takes_the_whole_catalogue_and_only_what_was_liked() -> None:
    ask, encoder = objective("like"), toy()
    batch = ask.prepare(raw("like", [5, 6, 7, 8], [1.0, 0.0, math.nan, 1.0]), rng())
    step = ask.loss(encoder, batch)
    tokens = encoder.encode(batch.history).tokens
    scores = (torch.stack([tokens[0, 2], torch.zeros(4)]) @ encoder.tables["like"].all().T)[:, 2:]
    assert step.targets == 2
    assert float(step.loss) == pytest.approx(float(F.cross_entropy(scores, torch.tensor([3, 6]))), rel=1e-6)
    assert "accuracy" not in step.parts


def test_bce_prices_each_given_label() -> None:
    ask, encoder = objective("like", price="bce"), toy()
    batch = ask.prepare(raw("like", [5, 6, 7, 8], [1.0, 0.0, math.nan, 1.0]), rng())
    step = ask.loss(encoder, batch)
    tokens = encoder.encode(batch.history).tokens
    table = encoder.tables["like"].all()
    scores = torch.stack([tokens[0, 2] @ table[5], tokens[1, 1] @ table[6], table.new_zeros(())])
    labels = torch.tensor([1.0, 0.0, 1.0]).double()
    assert step.targets == 3
    assert float(step.loss) == pytest.approx(float(F.binary_cross_entropy_with_logits(scores, labels)), rel=1e-6)
    assert float(step.parts["accuracy"]) == pytest.approx(float(((scores > 0) == (labels > 0.5)).double().mean()))


def test_drawn_negatives_are_wrong_answers_and_a_hit_is_not_observed() -> None:
    ask = objective("age", price="bce", negatives=40)
    targets = ask.prepare(raw("age", [2, 3, 4, 5], [1.0] * 4), rng()).targets
    ids, labels = targets.query.ids, targets.labels[..., 0]
    assert ids.shape == labels.shape == (4, 1, 41)
    assert (ids >= 2).all()
    assert torch.equal(ids[..., 0], targets.answer)
    assert (labels[..., 0] == 1).all()
    hit = ids[..., 1:] == targets.answer.unsqueeze(-1)
    assert torch.equal(labels[..., 1:].isnan(), hit)
    assert (labels[..., 1:][~hit] == 0).all()
    assert torch.isfinite(ask.loss(toy(), ask.prepare(raw("age", [2, 3, 4, 5], [1.0] * 4), rng())).loss)


def test_squared_prices_the_number_itself() -> None:
    ask, encoder = objective("stars", price="squared"), toy()
    batch = ask.prepare(raw("stars", [5, 6, 7, 1], [4.5, -1.0, math.nan, 3.0]), rng())  # the last item has no id
    step = ask.loss(encoder, batch)
    tokens = encoder.encode(batch.history).tokens
    table = encoder.tables["stars"].all()
    scores = torch.stack([tokens[0, 2] @ table[5], tokens[1, 1] @ table[6]])
    wanted = float(F.mse_loss(scores, torch.tensor([4.5, -1.0]).double()))
    assert step.targets == 2
    assert float(step.loss) == pytest.approx(wanted, rel=1e-6)
    assert float(step.parts["rmse"]) == pytest.approx(wanted**0.5, rel=1e-6)
    assert set(step.parts) == {"rmse"}
    step.loss.backward()
    assert encoder.tables["stars"].weight.grad[[5, 6]].abs().sum(1).gt(0).all()
    assert not ask.odds
    assert ask.needs == Can.GRADIENT


@pytest.mark.parametrize(
    ("task", "price", "fitting"),
    [
        ("stars", "softmax", "squared"),
        ("stars", "bce", "squared"),
        ("age", "squared", "softmax or bce"),
        ("like", "squared", "softmax"),
    ],
)
def test_ratings_have_a_price_of_their_own(task: str, price: str, fitting: str) -> None:
    with pytest.raises(
        UserError, match=rf"price '{price}' is not made for task '{task}' of kind .*; set objective\.price={fitting}"
    ):
        objective(task, price=price)


def test_no_row_to_ask_costs_nothing() -> None:
    prices = [("age", {}), ("age", {"price": "bce"}), ("age", {"price": "bce", "negatives": 2}), ("stars", {"price": "squared"})]
    for task, settings in [*prices, *(("like", settings) for task, settings in prices if task == "age")]:
        ask = objective(task, **settings)
        step = ask.loss(toy(), ask.prepare(raw(task, [1, 0, 1, 0], [1.0] * 4), rng()))
        assert float(step.loss) == 0
        assert step.targets == 0
        assert all(math.isfinite(float(part)) for part in step.parts.values())


def test_it_hides_what_it_predicts() -> None:
    assert objective("like").hides == frozenset()
    assert objective("age").hides == {"profile.age", "labels.age"}
    assert Labelled(Labelled.Config(), build()).hides == {"profile.age", "labels.age"}
    renamed = dataclasses.replace(SCHEMA, fields={**SCHEMA.fields, "years": Field("years", space="age")})
    assert "years" in Labelled(Labelled.Config(), Builder({}, renamed, {}, Kernels(userec_kernels()))).hides


def test_what_it_needs_follows_from_the_price() -> None:
    assert objective("age").needs == Can.GRADIENT | Can.SCORE_CATALOG
    assert objective("age", price="bce").needs == Can.GRADIENT


def test_softmax_with_negatives_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.price=bce"):
        objective("age", negatives=3)
    with pytest.raises(UserError, match=r"price 'squared' draws no negatives; set objective\.price=bce"):
        objective("stars", price="squared", negatives=3)


def test_events_are_none_of_its_questions() -> None:
    ask = Labelled(parse(Labelled.Config, {}, "objective"), Builder({}, Schema({}, {"item": 5}), {}, Kernels(userec_kernels())))
    with pytest.raises(UserError, match=r"task 'next' is the events themselves: use --objective next_item"):
        ask.begin_task(toy(), ("next",), "train")
