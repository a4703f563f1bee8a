from __future__ import annotations

from typing import Any

import pytest
import torch

from userec.batch import Batch, History
from userec.builtin.future import Future
from userec.builtin.kernels import userec_kernels
from userec.capability import Can
from userec.config import parse
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.objective.questions import following, future
from userec.schema import NEXT, Field, Schema
from userec.testing import Check, contract

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"window": 3, "positions": 2},
    {"window": 3, "question": "last", "negatives": 3},
    {"window": 2, "question": "each"},
    {"window": 4, "days": 0.5, "negatives": 5, "shared": True},
)


@pytest.mark.parametrize("check", [check for settings in SETTINGS for check in contract(Future, **settings)])
def test_contract(check: Check) -> None:
    check()


def raw(lengths: list[int], seconds: int = 10) -> Batch:
    """Row r holds items 2, 3, ...: item i + 2 at time i * seconds + 1."""
    length = max(lengths)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    place = torch.arange(length).expand(len(lengths), -1)
    history = History(torch.arange(len(lengths)), {"item": (place + 2) * mask, "time": (place * seconds + 1) * mask}, mask)
    return Batch(history, users=torch.arange(len(lengths)), ends=mask.sum(1))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_last_position_is_asked_for_every_event_of_the_window() -> None:
    batch = future(raw([9, 5, 2, 1]), 3, None, "last", rng())
    assert batch.history.lengths.tolist() == [6, 3, 1, 1]  # never more than half of a row lies behind the cut
    assert batch.ends.tolist() == [6, 3, 1, 1]
    assert batch.targets.answer.tolist() == [[8, 9, 10], [5, 6, 0], [3, 0, 0], [0, 0, 0]]
    assert batch.targets.query.at.tolist() == [[5] * 3, [2] * 3, [0] * 3, [0] * 3]
    assert torch.equal(batch.targets.weight, (batch.targets.answer > 0).float())


def test_dense_positions_ask_for_one_random_event_behind_the_cut() -> None:
    batch = raw([12, 7, 1])
    found: list[set[int]] = [set(), set(), set()]
    for seed in range(40):
        asked = future(batch, 4, None, "all", rng(seed))
        assert asked.history.events["item"].shape == (3, 8)
        assert torch.equal(asked.targets.weight > 0, asked.history.mask & (torch.tensor([12, 7, 1]) > 1)[:, None])
        for row in range(3):
            found[row] |= set(asked.targets.answer[row][asked.targets.weight[row] > 0].tolist())
    assert found == [{10, 11, 12, 13}, {6, 7, 8}, set()]  # each of them, none that the history holds
    few = future(batch, 4, None, 3, rng())
    assert few.targets.query.at.shape == (3, 3)
    assert few.targets.weight.sum(1).tolist() == [3, 3, 0]


def test_days_end_the_window_before_its_events_do() -> None:
    batch = future(raw([10], seconds=100), 5, 250, "last", rng())
    assert batch.targets.answer.tolist() == [[7, 8, 0, 0, 0]]  # 100 and 200 seconds after the last event that is known
    dense = {int(x) for seed in range(20) for x in future(raw([10], 100), 5, 250, "all", rng(seed)).targets.answer.flatten()}
    assert dense == {7, 8}
    assert not future(raw([10], seconds=100), 5, 50, "all", rng()).targets.weight.any()


def test_a_cut_anywhere_has_its_own_window_behind_it() -> None:
    found = set()
    for seed in range(60):
        asked = future(raw([9, 2, 1]), 3, None, "last", rng(seed), anywhere=True)
        assert asked.ends.tolist() == asked.history.lengths.tolist()
        assert asked.targets.answer[0].tolist() == [asked.history.lengths[0] + 2 + i for i in range(3)]
        assert asked.history.events["item"][0].max() < asked.targets.answer[0].min()  # none that the history holds
        found.add(tuple(asked.history.lengths.tolist()))
    assert found == {(cut, 1, 1) for cut in range(1, 7)}  # behind any event that a whole window follows


def test_it_cuts_anywhere_unless_told_otherwise() -> None:
    schema = Schema({"item": Field("item")}, {"item": 12}, ((NEXT,),))

    def cuts(**settings: Any) -> set[int]:
        objective = Future(parse(Future.Config, {"window": 3, **settings}, "objective"), builder(schema))
        return {int(objective.ask(raw([9]), rng(seed)).history.lengths) for seed in range(60)}

    assert cuts() == {1, 2, 3, 4, 5, 6}
    assert cuts(cut="newest") == {6}
    assert cuts(question="last") == {1, 2, 3, 4, 5, 6}


def builder(schema: Schema) -> Builder:
    return Builder({}, schema, {}, Kernels(userec_kernels()))


def test_each_position_is_asked_for_the_events_that_follow_it() -> None:
    batch = following(raw([7, 3]), 2)
    assert batch.history.lengths.tolist() == [5, 2]
    answers = batch.targets.answer.unflatten(1, (-1, 2))
    assert answers[0].tolist() == [[3, 4], [4, 5], [5, 6], [6, 7], [7, 8]]
    assert answers[1].tolist() == [[3, 4], [4, 0], [0, 0], [0, 0], [0, 0]]
    assert batch.targets.query.at.unflatten(1, (-1, 2))[0].tolist() == [[0, 0], [1, 1], [2, 2], [3, 3], [4, 4]]


def test_what_it_needs_follows_from_the_question() -> None:
    schema = Schema({"item": Field("item")}, {"item": 12}, ((NEXT,),))

    def made(**settings: Any) -> Future:
        return Future(parse(Future.Config, settings, "objective"), builder(schema))

    assert made(window=7).ahead == 7
    assert made().needs == Can.GRADIENT | Can.SCORE_CATALOG | Can.CAUSAL
    assert made(question="last", negatives=2).needs == Can.GRADIENT
    assert Can.ANY_POSITION in made(question="each").needs
    assert (made().windows, made(question="last").windows) == (True, False)
    assert "time" in made(days=2).reads
    with pytest.raises(UserError, match=r"question 'each' counts events; leave objective\.days out"):
        made(question="each", days=2)
    with pytest.raises(UserError, match=r"objective\.window"):
        made(window=0)
