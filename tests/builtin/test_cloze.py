from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from userec.batch import Batch, History
from userec.builtin.cloze import Cloze
from userec.builtin.kernels import userec_kernels
from userec.config import parse
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.objective.questions import cloze
from userec.schema import NEXT, UNKNOWN, Field, Schema
from userec.testing import Check, contract


@pytest.mark.parametrize("check", [*contract(Cloze), *contract(Cloze, negatives=3, mask=0.5)])
def test_contract(check: Check) -> None:
    check()


def raw(rows: int = 40, length: int = 12) -> Batch:
    """Items 2, 3, ... in order in every row; row r has r % length + 1 of them; an action and a time each."""
    mask = torch.arange(length) < (torch.arange(rows) % length + 1)[:, None]
    item = (torch.arange(length) + 2).expand(rows, -1) * mask
    events = {"item": item, "action": item % 3 + 2 * mask, "time": item * 10, "rating": item.float()}
    return Batch(History(torch.arange(rows), events, mask), users=torch.arange(rows), ends=mask.sum(1))


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_hidden_events_and_the_following_one_are_asked_and_nothing_of_them_is_left() -> None:
    before = raw()
    batch = cloze(before, 0.4, 0.0, rng())
    history, targets = batch.history, batch.targets
    lengths = before.history.lengths
    assert torch.equal(history.lengths, lengths - 1)
    assert torch.equal(batch.ends, before.ends - 1)
    hidden = (history.events["item"] == UNKNOWN) & history.mask
    share = hidden.sum() / history.mask.sum()
    assert 0.3 < share < 0.5
    asked = targets.weight > 0
    assert torch.equal(asked[:, :-1] & history.mask, hidden)
    assert asked.gather(1, (lengths - 1)[:, None]).all()
    assert asked.sum() == hidden.sum() + len(lengths)
    at = targets.query.at[asked]
    assert torch.equal(targets.answer[asked], at + 3)  # event s holds item s + 2 and is asked about at s - 1
    assert (at == -1).any()
    assert not history.events["rating"][hidden].any()
    assert not history.events["action"][hidden].any()
    assert torch.equal(history.events["time"], before.history.events["time"][:, :-1] * history.mask)
    kept = history.mask & ~hidden
    assert torch.equal(history.events["item"][kept], before.history.events["item"][:, :-1][kept])


def test_each_question_is_put_when_its_event_happened() -> None:
    before = raw()
    time = before.history.events["time"] + 10**9 * before.history.mask
    following = torch.cat([time[:, 1:], time[:, -1:]], 1)
    following = torch.where(following > 0, following, time)  # after a row's last event nothing later is known
    history = dataclasses.replace(before.history, events=before.history.events | {"time": time}, asked={"asked.time": following})
    targets = cloze(dataclasses.replace(before, history=history), 0.4, 0.0, rng()).targets
    asked = targets.weight > 0
    assert asked[:, 0].sum() > 2  # first events, which stand behind none
    assert torch.equal(targets.query.context["asked.time"][asked], time[asked])


def test_masks_are_drawn_anew_and_by_the_generator_alone() -> None:
    drawn = [cloze(raw(), 0.4, 0.1, rng(seed)).history.events["item"] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_share_of_rows_hides_the_following_event_alone() -> None:
    rows = cloze(raw(600), 0.9, 0.3, rng())
    long = rows.history.lengths > 5
    untouched = ~(rows.history.events["item"] == UNKNOWN).any(1)[long]
    assert 0.2 < untouched.float().mean() < 0.4
    assert not (cloze(raw(), 0.9, 1.0, rng()).history.events["item"] == UNKNOWN).any()


def test_a_row_of_one_event_asks_for_it_from_nothing() -> None:
    batch = cloze(raw(1, 4), 0.5, 0.0, rng())
    assert batch.history.lengths.tolist() == [0]
    assert batch.targets.weight.sum() == 1
    assert batch.targets.query.at[batch.targets.weight > 0].tolist() == [-1]


@pytest.mark.parametrize("settings", [{"mask": 1.0}, {"alone": 1.5}, {"price": "bce"}, {"masks": 0.1}])
def test_a_wrong_setting_is_named(settings: dict[str, Any]) -> None:
    schema = Schema({"item": Field("item")}, {"item": 12}, ((NEXT,),))
    with pytest.raises(UserError, match=next(iter(settings))):
        Cloze(parse(Cloze.Config, settings, "objective"), Builder({}, schema, {}, Kernels(userec_kernels())))
