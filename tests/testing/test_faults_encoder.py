"""A planted fault for each check of an encoder: caught, with a message that names the fault."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from userec.batch import Encoded, gather_positions
from userec.capability import Can
from userec.config import Config
from userec.errors import UserError
from userec.testing.checks import checks_for
from userec.testing.toys import PLUGINS, Counting, Dot, ManyTask, Nested, Stateful, Target, UserId, Width, token_at_end


class Registry:
    plugins = PLUGINS


def fails(cls, check: str) -> str:
    """The message of the check, which has to fail."""
    found = {one.name: one for one in checks_for("encoders", cls, Registry)}
    with pytest.raises(AssertionError) as caught:
        found[check]()
    assert str(caught.value).startswith(f"{cls.name}: ")
    return str(caught.value)


class FutureLeak(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens + self.items(history.events["item"]).sum(1, keepdim=True))


class FutureLeakInScore(Target):
    def score(self, encoded, query):
        last = encoded.history.last[:, None].expand_as(query.at)
        return super().score(encoded, replace(query, at=last))


class TimeLeak(Target):
    """Ages counted from the newest event: only times tell, the items stay."""

    reads = frozenset({"item", "time"})

    def score(self, encoded, query):
        newest = encoded.history.events["time"].amax(1)[:, None, None, None]
        then = gather_positions(encoded.history.events["time"], query.at)[:, :, None, None]
        return super().score(encoded, query) * (1 + (newest - then) / 86400)


class LeaksBetweenPositions(Dot):
    """CAUSAL for one question a row, but questions asked together see each other."""

    def queries(self, encoded, query):
        found = super().queries(encoded, query)
        return found + found.mean(1, keepdim=True)


class PaddingDependent(Target):
    def encode(self, history):
        return replace(super().encode(history), user=self.items(history.events["item"]).mean(1))


class PaddingInTokens(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens + 0.1 * encoded.tokens.shape[1])


class NaNOnEmpty(Target):
    def attend(self, asking, tokens, mask, at):
        seen = mask[:, None] & (torch.arange(mask.shape[1]) <= at[..., None])
        logits = torch.einsum("bqcd,bld->bqcl", asking.expand(*at.shape, *asking.shape[2:]), tokens)
        weight = logits.masked_fill(~seen[:, :, None], -torch.inf).softmax(-1)
        return torch.einsum("bqcl,bld->bqcd", weight, tokens)


class RandomInEval(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=nn.functional.dropout(encoded.tokens, 0.5, training=True))


class StateOutside(Dot):
    """A tensor that is no buffer: lost with the checkpoint."""

    def __init__(self, config, build):
        super().__init__(config, build)
        self.shift = torch.randn(config.dim)

    def queries(self, encoded, query):
        return super().queries(encoded, query) + self.shift


class StateGrows(Counting):
    """A buffer whose shape follows the data: a fresh encoder cannot take it."""

    def partial_fit(self, batch):
        super().partial_fit(batch)
        self.register_buffer("rows", torch.zeros(int(self.counts.sum())))


class WrongTokens(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens[..., :-1])


class WrongScores(Target):
    def score(self, encoded, query):
        return super().score(encoded, query)[..., 0]


class WrongUser(Dot):
    def encode(self, history):
        return replace(super().encode(history), user=None)


class Undeclared(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens * history.events["rating"][..., None])


class UndeclaredProfile(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens * history.profile["profile.age"][:, None, None])


class UndeclaredContext(Dot):
    def queries(self, encoded, query):
        return super().queries(encoded, query) + query.context["asked.time"][..., None] / 1e9


class UndeclaredCatalogue(Dot):
    def __init__(self, config, build):
        super().__init__(config, build)
        self.register_buffer("category", build.catalog["item"]["item.category"])


class UndeclaredUser(UserId):
    reads = frozenset()


class NeverFlows(Dot):
    def __init__(self, config, build):
        super().__init__(config, build)
        self.unused = nn.Linear(config.dim, config.dim)


class Detached(Dot):
    def candidates(self, tasks, ids=None):
        weight, bias = super().candidates(tasks, ids)
        return weight.detach(), bias

    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens.detach() + 0 * self.project.bias)


class ChunkDependent(Target):
    def score(self, encoded, query):
        return super().score(encoded, query).softmax(2)


class OrderDependent(Target):
    def score(self, encoded, query):
        scores = super().score(encoded, query)
        return scores + 0.01 * torch.arange(scores.shape[2])[:, None]


class BatchDependent(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens - encoded.tokens.mean(0, keepdim=True))


class NewestMisread(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        if not history.newest:
            return encoded
        last = history.mask.shape[1] - 1  # of the block, not of the row
        kept = torch.zeros_like(encoded.tokens)
        kept[:, last] = encoded.tokens[:, last]
        return replace(encoded, tokens=kept)


class RowOrderDependent(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens + torch.arange(len(encoded.tokens))[:, None, None])


class StuckInTraining(Dot):
    def __init__(self, config, build):
        super().__init__(config, build)
        self.drop = nn.Dropout(0.5)

    def train(self, mode=True):
        super().train(mode)
        self.drop.training = True
        return self


class WritesIntoHistory(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        history.events["item"][:, 0] = 0
        return encoded


class NoWindow(Dot):
    def __init__(self, config, build):
        super().__init__(config, build)
        self.window = 10
        self.places = nn.Embedding(10, config.dim)

    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens + self.places(torch.arange(history.mask.shape[1])))


class HalfClaim(Dot):
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.ANY_POSITION | Can.EMBED_USER


class NoPartialFit(Dot):
    offers = Can.SCORE_CATALOG | Can.DOT_SCORE


class OtherCatalogue(Dot):
    def candidates(self, tasks, ids=None):
        weight, bias = super().candidates(tasks, ids)
        return (weight.roll(1, 0), bias) if ids is None else (weight, bias)


class NoDot(Dot):
    def score(self, encoded, query):
        return super().score(encoded, query).exp()


class OnePosition(Dot):
    """Causal, but each position counts from the newest event (PinnerFormer's way): ANY_POSITION does not hold."""

    def encode(self, history):
        encoded = super().encode(history)
        age = history.last[:, None] - torch.arange(history.mask.shape[1])
        return replace(encoded, tokens=encoded.tokens * (1 + age.clamp(min=0))[..., None])


class SameUser(Dot):
    def encode(self, history):
        return replace(super().encode(history), user=torch.ones(len(history.user), self.dim))


class ForgetsState(Stateful):
    def encode(self, history):
        return super().encode(replace(history, state=None))


class StateShortensOnEmpty(Stateful):
    """A user never seen starts elsewhere than an all-zero state says."""

    def encode(self, history):
        if history.state is None:
            history = replace(history, state={"h": torch.ones(len(history.user), self.dim)})
        return super().encode(history)


class OneHead(ManyTask):
    def score(self, encoded, query):
        names = encoded.history.tasks
        first = replace(encoded, history=replace(encoded.history, tasks=names[:1]))
        return super().score(first, query).expand(-1, -1, -1, len(names))


class TooFewTasks(ManyTask):
    def score(self, encoded, query):
        return super().score(encoded, query)[..., :1]


class DoesNotLearn(Dot):
    def encode(self, history):
        encoded = super().encode(history)
        return replace(encoded, tokens=encoded.tokens * 1e-9)


class NaNGradient(Target):
    """A root at zero: the score of an empty row is a number, its gradient is none."""

    def score(self, encoded, query):
        asking = self.items(query.ids)
        found = self.attend(asking, encoded.tokens, encoded.history.mask, query.at)
        return super().score(encoded, query) + found.pow(2).sum(-1, keepdim=True).sqrt()


class CountsOnce(Counting):
    """Keeps the last batch only."""

    def partial_fit(self, batch):
        self.counts.zero_()
        super().partial_fit(batch)


class CountsNothing(Counting):
    def partial_fit(self, batch):
        pass


class Thawed(Dot):
    class Config(Width):
        model_config = {"frozen": False}


FAULTS = [
    (FutureLeak, "future_leak", "score at position 0 changes when events after it change .*: future leak$"),
    (FutureLeakInScore, "future_leak", "future leak in score"),
    (TimeLeak, "future_leak", "future leak in score"),
    (LeaksBetweenPositions, "any_position", "ANY_POSITION"),
    (OnePosition, "any_position", "differs from that of the history cut after it .*ANY_POSITION"),
    (PaddingDependent, "padding", "user embedding changes when 3 pads are appended .*padding dependence"),
    (PaddingInTokens, "padding", "tokens change when 3 pads are appended .*padding dependence"),
    (NaNOnEmpty, "empty_history", "no number on empty history"),
    (RandomInEval, "repeatable", "non-determinism in eval"),
    (StateOutside, "state_dict", "scores differ .*state mismatch"),
    (StateGrows, "state_dict", "refuses the state_dict: state mismatch"),
    (WrongTokens, "shapes", r"encoded.tokens has shape .*wrong shape"),
    (WrongScores, "shapes", r"score has shape .*\[B, Q, C, A\].*wrong shape"),
    (WrongUser, "shapes", r"encoded.user is NoneType.*wrong shape"),
    (WrongUser, "user_embedding", "encoded.user is NoneType"),
    (SameUser, "user_embedding", "the same for users of different histories"),
    (Undeclared, "declared_fields", "reads 'rating' of history.events, .*undeclared field"),
    (UndeclaredProfile, "declared_fields", "reads 'profile.age' of history.profile, .*undeclared field"),
    (UndeclaredContext, "declared_fields", "reads 'asked.time' of query.context, .*undeclared field"),
    (UndeclaredCatalogue, "declared_fields", "reads 'item.category' of the catalogue, .*undeclared field"),
    (UndeclaredUser, "declared_user", "user id, which `reads` does not declare .*undeclared field"),
    (NeverFlows, "gradient_flows", "no step gave unused.bias, unused.weight a gradient: gradient that never flows"),
    (Detached, "gradient_flows", "items.weight, project.bias, project.weight a gradient|items.weight, project.weight a gradient"),
    (NaNGradient, "gradient_flows", "the gradient of .*items.weight.* is not a number"),
    (DoesNotLearn, "learns", "does not learn"),
    (ChunkDependent, "chunks", "chunks of 4 .*chunk dependence"),
    (OrderDependent, "chunks", "chunk dependence"),
    (BatchDependent, "batch_size", "batch-size dependence"),
    (NewestMisread, "newest", "newest event misread"),
    (RowOrderDependent, "row_order", "row-order dependence"),
    (StuckInTraining, "modes", r"eval\(\) does not reach 'drop'"),
    (WritesIntoHistory, "input_kept", "writes into history's item"),
    (NoWindow, "long_history", "history longer than the window"),
    (HalfClaim, "claims", "ANY_POSITION without CAUSAL"),
    (OtherCatalogue, "catalog", "SCORE_CATALOG"),
    (NoDot, "dot", "is not queries . candidates"),
    (ForgetsState, "state_carried", "state not carried"),
    (StateShortensOnEmpty, "unseen_state", "state of an unseen user"),
    (OneHead, "tasks", "tasks 'like' and 'click' get the same scores"),
    (TooFewTasks, "tasks", r"score of tasks click, like has shape .*wrong shape|wrong shape"),
    (CountsOnce, "counting", "counted in two batches"),
    (CountsNothing, "counting", "does not learn"),
    (Thawed, "config", "not frozen"),
]


@pytest.mark.parametrize(("cls", "check", "words"), FAULTS, ids=[f"{cls.__name__}-{check}" for cls, check, _ in FAULTS])
def test_planted_fault(cls, check, words):
    cls.name = cls.__name__.lower()
    message = fails(cls, check)
    assert re.search(words, message, re.DOTALL), message


def test_no_partial_fit():
    NoPartialFit.name = "nopartialfit"
    with pytest.raises(AssertionError, match="it cannot learn"):
        checks_for("encoders", NoPartialFit, Registry)[0]()


def test_every_check_has_a_planted_fault():
    names = {check.name for toy in (Dot, Target, Counting, Stateful, ManyTask) for check in checks_for("encoders", toy, Registry)}
    assert names == {check for _, check, _ in FAULTS}


def test_checks_follow_claims():
    dot = {check.name for check in checks_for("encoders", Dot, Registry)}
    counting = {check.name for check in checks_for("encoders", Counting, Registry)}
    assert "dot" in dot - counting
    assert "counting" in counting - dot
    assert "future_leak" in dot & counting


def test_settings_reach_the_encoder_and_are_refused_when_misspelt():
    for check in checks_for("encoders", Nested, Registry, {"dim": 4, "inner": {"name": "toy-stateful", "dim": 6}}):
        check()
    with pytest.raises(UserError, match="did you mean 'dim'"):
        checks_for("encoders", Dot, Registry, {"dims": 4})


def test_a_longer_field_of_its_own_is_made_up():
    """A field that the tiny data lacks becomes an id field, so that its reader can be checked."""

    class Brand(Dot):
        name = "brand"
        reads = frozenset({"item", "brand", "item.colour"})

        def __init__(self, config, build):
            super().__init__(config, build)
            self.brands = build.table("brand", config.dim)
            self.register_buffer("colour", build.catalog["item"]["item.colour"].float())

        def encode(self, history):
            encoded = super().encode(history)
            items = history.events["item"]
            tokens = encoded.tokens + self.brands(history.events["brand"]) + self.colour[items][..., None]
            return Encoded(history, tokens, token_at_end(tokens, history))

    for check in checks_for("encoders", Brand, Registry):
        check()
    assert issubclass(Brand.Config, Config)
