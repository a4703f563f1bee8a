"""A planted fault for each check of an objective."""

import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from userec.batch import Query, Targets
from userec.capability import Can
from userec.config import Config
from userec.objective.contract import Objective, Step
from userec.schema import FIRST
from userec.testing.checks import checks_for
from userec.testing.tiny import span
from userec.testing.toys import PLUGINS


class Registry:
    plugins = PLUGINS


class Last(Objective):
    """The last event against four drawn ones: the smallest objective that keeps the contract."""

    name = "toy-last"
    ahead = 1
    kept = 1

    def __init__(self, config, build):
        super().__init__(config, build)
        self.size = build.schema.spaces["item"]

    def prepare(self, batch, rng):
        lengths = batch.history.lengths
        history = span(batch.history, torch.zeros_like(lengths), (lengths - self.kept).clamp(min=0))
        answer = batch.history.events["item"].gather(1, batch.history.last.clamp(min=0)[:, None])
        negatives = torch.randint(FIRST, self.size, (len(answer), 1, 4), generator=rng)
        ids = torch.cat([answer[..., None], negatives], -1)
        weight = (lengths >= 2).float()[:, None]
        return replace(
            batch, history=history, targets=Targets(Query((lengths - 2).clamp(min=-1)[:, None], ids), answer, weight=weight)
        )

    def price(self, encoder, batch):
        scores = encoder.score(encoder.encode(batch.history), batch.targets.query)[..., 0]  # [B, 1, C]
        return -F.log_softmax(scores, -1)[..., 0]

    def loss(self, encoder, batch):
        weight = batch.targets.weight
        total = (self.price(encoder, batch) * weight).sum() / weight.sum().clamp(min=1)
        return Step(total, {"own": total.detach()}, targets=int(weight.sum()))


class Labels(Objective):
    """A label task over the whole space."""

    name = "toy-labels"
    needs = Can.GRADIENT | Can.SCORE_CATALOG
    hides = frozenset({"labels.group"})

    def prepare(self, batch, rng):
        assert batch.targets is not None
        return replace(batch, targets=replace(batch.targets, weight=torch.ones(batch.targets.answer.shape)))

    def loss(self, encoder, batch):
        scores = encoder.score(encoder.encode(batch.history), batch.targets.query)[:, 0, FIRST:, 0]
        return Step(F.cross_entropy(scores, batch.targets.answer[:, 0] - FIRST), targets=len(scores))


class AnswerStays(Last):
    kept = 0


class Unseeded(Last):
    def prepare(self, batch, rng):
        return super().prepare(batch, torch.default_generator)


class WritesIntoBatch(Last):
    def prepare(self, batch, rng):
        batch.history.events["item"][:, -1] = 0
        return super().prepare(batch, rng)


class NoMean(Last):
    def loss(self, encoder, batch):
        return replace(super().loss(encoder, batch), loss=self.price(encoder, batch))


class NaNWhenEmpty(Last):
    def loss(self, encoder, batch):
        weight = batch.targets.weight
        return replace(super().loss(encoder, batch), loss=(self.price(encoder, batch) * weight).sum() / weight.sum())


class Detached(Last):
    def loss(self, encoder, batch):
        step = super().loss(encoder, batch)
        return replace(step, loss=step.loss.detach() + 0 * sum(p.sum() for p in encoder.parameters()))


class PaddingCosts(Last):
    def loss(self, encoder, batch):
        step = super().loss(encoder, batch)
        return replace(step, loss=step.loss * batch.history.mask.shape[1])


class IgnoresWeight(Last):
    def prepare(self, batch, rng):
        batch = super().prepare(batch, rng)
        weight = batch.targets.weight.clone()
        weight[0] = 0
        return replace(batch, targets=replace(batch.targets, weight=weight))

    def loss(self, encoder, batch):
        step = super().loss(encoder, batch)
        return replace(step, loss=step.loss + batch.targets.answer.float().mean())


class StringHides(Last):
    hides = "item"


class FreeKeys(Last):
    class Config(Config):
        model_config = {"extra": "allow", "frozen": True}


FAULTS = [
    (AnswerStays, "answer_hidden", "6 answers of 6 stand in the history, and CAUSAL is not needed: answer in history"),
    (Unseeded, "prepare_seeded", "another batch.targets.query.ids for the same generator: chance outside rng"),
    (WritesIntoBatch, "prepare_pure", "prepare writes into batch.history.events.item"),
    (NoMean, "loss", r"loss has shape \(6, 1\), not a scalar"),
    (NaNWhenEmpty, "nothing_to_ask", "no number in the loss"),
    (Detached, "loss_trains", "no gradient reaches the encoder"),
    (PaddingCosts, "loss_padding", "padding dependence"),
    (IgnoresWeight, "weight", "question of weight 0"),
    (StringHides, "claims", "hides is str"),
    (FreeKeys, "config", "takes any key"),
]


@pytest.mark.parametrize(
    "check", [pytest.param(c, id=f"{o.name}-{c.name}") for o in (Last, Labels) for c in checks_for("objectives", o, Registry)]
)
def test_contract(check):
    check()


@pytest.mark.parametrize(("cls", "check", "words"), FAULTS, ids=[cls.__name__ for cls, _, _ in FAULTS])
def test_planted_fault(cls, check, words):
    cls.name = cls.__name__.lower()
    with pytest.raises(AssertionError) as caught:
        next(one for one in checks_for("objectives", cls, Registry) if one.name == check)()
    assert re.search(f"^{cls.name}: .*{words}", str(caught.value)), str(caught.value)


def test_every_check_has_a_planted_fault():
    assert {check.name for check in checks_for("objectives", Last, Registry)} == {check for _, check, _ in FAULTS}
