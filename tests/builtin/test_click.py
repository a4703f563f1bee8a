"""Evaluator `click` over the tiny data set, with an encoder whose scores are a table, so that every row is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from userec.batch import Encoded, History, Query
from userec.builtin.click import Click
from userec.capability import Can
from userec.config import parse
from userec.dataset.data import SplitData
from userec.dataset.events import Coded, code
from userec.dataset.loader import BatchConfig
from userec.dataset.split import Division, SplitConfig, divide
from userec.encoder.contract import Encoder
from userec.evaluator.contract import Metric
from userec.evaluator.slices import Slice, restrict
from userec.schema import FIRST
from userec.testing.tiny import TinyDataset


class Fixed(Encoder):
    """score = table[user, item]."""

    name = "fixed"
    offers = Can.CAUSAL | Can.ANY_POSITION
    reads = frozenset({"item", "user"})

    def __init__(self, table: np.ndarray) -> None:
        super().__init__(None, None)  # type: ignore[arg-type]
        self.table, self.dim = torch.from_numpy(table), 1

    def encode(self, history: History) -> Encoded:
        return Encoded(history, torch.zeros(*history.mask.shape, 1))

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        assert query.ids is not None
        ids = query.ids.expand(*query.at.shape, -1)
        return self.table[encoded.history.user[:, None, None], ids].unsqueeze(-1)


@pytest.fixture(scope="module")
def coded() -> Coded:
    return code(TinyDataset(TinyDataset.Config(), Path()))


@pytest.fixture(scope="module")
def encoder(coded: Coded) -> Fixed:
    rng = np.random.default_rng(0)
    shape = coded.schema.spaces["user"], coded.schema.spaces["item"]
    return Fixed(rng.normal(size=shape).round(1).astype(np.float32))  # rounded: some tie


def data(
    coded: Coded, task: str, *, odds: bool = True, rows: int = 64, target: str = "last", split: str = "by_user"
) -> tuple[SplitData, Division]:
    division = divide(coded, parse(SplitConfig, {"name": split, "target": target, "test": 0.5}, "split"))
    config = parse(BatchConfig, {"eval_rows": rows}, "batch")
    found = SplitData(coded, division, trained=(task,), window=None, fields=("item",), seed=0, config=config, odds=odds)
    return found, division


def measured(encoder: Encoder, found: SplitData, **settings: Any) -> dict[str, Metric]:
    click = Click(parse(Click.Config, settings, "evaluator"), None)
    assert click.refuses(encoder, found) == []
    return {metric.metric: metric for metric in click.evaluate(encoder, found, "test")}


def test_a_click_task_is_judged_by_its_labels(coded: Coded, encoder: Fixed) -> None:
    found, division = data(coded, "click")
    asked = division.questions["test", "click"]
    assert asked.values is not None
    users = np.repeat(asked.user, np.diff(asked.offsets))
    scores = encoder.table.numpy()[users + FIRST, asked.ids].astype(np.float64)
    right = asked.values > 0
    assert {True, False} == set(right.tolist())
    metrics = measured(encoder, found)
    assert list(metrics) == ["auc", "gauc", "logloss", "ece"]
    assert metrics["auc"].value == pytest.approx(roc_auc_score(right, scores))
    assert metrics["logloss"].value == pytest.approx(log_loss(right, 1 / (1 + np.exp(-scores))))
    own = [roc_auc_score(right[users == user], scores[users == user]) for user in np.unique(users)]
    assert metrics["gauc"].value == pytest.approx(np.mean(own))  # every user has three rows
    assert metrics["gauc"].definition == "gauc[weight=rows,ties=half,users=both-classes(30 of 30)]"
    for name in ("auc", "gauc", "logloss"):
        metric = metrics[name]
        assert metric.low < metric.value < metric.high
        assert metric.n == 30
    assert [metrics[name].better for name in metrics] == ["higher", "higher", "lower", "lower"]
    assert np.isnan(metrics["ece"].low)
    assert metrics["ece"].users is not None


def test_scores_that_are_no_log_odds_get_no_probability_metrics(coded: Coded, encoder: Fixed) -> None:
    assert list(measured(encoder, data(coded, "click", odds=False)[0])) == ["auc", "gauc"]


def test_gauc_leaves_out_users_of_one_class_and_says_so(coded: Coded, encoder: Fixed) -> None:
    found, division = data(coded, "click")
    asked = division.questions["test", "click"]
    assert asked.values is not None
    asked.values[:6] = 1  # the first two users saw nothing wrong
    metrics = measured(encoder, found, weight="equal")
    assert metrics["gauc"].definition == "gauc[weight=equal,ties=half,users=both-classes(28 of 30)]"
    assert (metrics["gauc"].n, metrics["auc"].n) == (28, 30)
    asked.values[:] = 1
    metrics = measured(encoder, found)
    assert np.isnan([metrics["auc"].value, metrics["gauc"].value, metrics["gauc"].low]).all()
    assert metrics["gauc"].n == 0
    assert np.isfinite(metrics["logloss"].value)


def test_an_item_task_gets_one_uniform_negative_a_positive(coded: Coded, encoder: Fixed) -> None:
    found, division = data(coded, "next", target="all")
    metrics = measured(encoder, found)
    assert list(metrics) == ["auc~uniform1", "gauc~uniform1", "logloss~uniform1", "ece~uniform1"]
    assert all("negatives=uniform(seed=0,not=answers)]" in metric.definition for metric in metrics.values())
    asked = division.questions["test", "next"]
    answers = {
        user: set(asked.ids[low:high]) for user, low, high in zip(asked.user, asked.offsets, asked.offsets[1:], strict=False)
    }
    assert len({len(ids) for ids in answers.values()}) > 1  # several widths in a batch
    click, item = Click(Click.Config(), None), np.arange(coded.schema.spaces["item"], dtype=np.float32)
    rows = click._rows(Fixed(np.tile(item, (coded.schema.spaces["user"], 1))), found, "test", "next", True)  # the score is the id
    for user, ids in answers.items():
        mine = rows.users[rows.unit] == user
        assert set(rows.scores[mine & rows.right]) == ids
        wrong = rows.scores[mine & ~rows.right]
        assert len(wrong) == len(set(wrong)) == len(ids)
        assert not set(wrong) & ids
        assert wrong.min() >= FIRST


@pytest.mark.parametrize("target", ["all", "successive", "last"])
def test_negatives_do_not_depend_on_the_batch(coded: Coded, encoder: Fixed, target: str) -> None:
    def rows(size: int, seed: int = 0) -> list[tuple[int, float, bool]]:
        click = Click(parse(Click.Config, {"seed": seed}, "evaluator"), None)
        found = click._rows(encoder, data(coded, "next", rows=size, target=target)[0], "test", "next", True)
        return sorted(zip(found.users[found.unit].tolist(), found.scores.tolist(), found.right.tolist(), strict=True))

    assert rows(1) == rows(7) == rows(64)
    assert rows(64, seed=1) != rows(64)


def test_another_question_of_the_same_user_draws_anew(coded: Coded) -> None:
    found, division = data(coded, "next", target="successive")
    item = np.arange(coded.schema.spaces["item"], dtype=np.float32)
    encoder = Fixed(np.tile(item, (coded.schema.spaces["user"], 1)))  # the score is the id
    rows = Click(Click.Config(), None)._rows(encoder, found, "test", "next", True)
    asked = np.bincount(division.questions["test", "next"].user)
    assert asked.max() > 5
    for user in np.flatnonzero(asked > 5):
        wrong = rows.scores[(rows.users[rows.unit] == user) & ~rows.right]
        assert len(wrong) == asked[user]
        assert len(set(wrong)) > 2, "one draw for all questions would give two at most: another where the first is the answer"


def test_the_interval_is_over_users_and_slices_follow(coded: Coded, encoder: Fixed) -> None:
    metrics = measured(encoder, data(coded, "click")[0])
    members = np.zeros(coded.events.users, bool)
    members[:30] = True
    asked = data(coded, "click")[1].questions["test", "click"]
    assert asked.values is not None
    users = np.repeat(asked.user, np.diff(asked.offsets))
    scores = encoder.table.numpy()[users + FIRST, asked.ids]
    part = Slice("half", "half", members)
    own = restrict(metrics["auc"], part, 0)
    assert own is not None
    assert own.value == pytest.approx(roc_auc_score(asked.values[members[users]] > 0, scores[members[users]]))
    assert restrict(metrics["ece"], part, 0) is None


def test_without_a_click_or_item_task_there_is_nothing_to_judge(coded: Coded, encoder: Fixed) -> None:
    for task in ("group", "score"):
        assert Click(Click.Config(), None).refuses(encoder, data(coded, task)[0]) == [
            "no item or click task is trained: there is no click to judge"
        ]
