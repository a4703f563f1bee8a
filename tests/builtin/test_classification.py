"""The evaluator `classification`: own heads and probes over the tiny data, floors, refusals, and what must not move a number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from userec.batch import Batch, Encoded, History, Query, Targets
from userec.builtin.bag_of_items import BagOfItems
from userec.builtin.classification import Classification
from userec.builtin.popularity import Majority, Popularity
from userec.capability import Can
from userec.config import parse
from userec.dataset.data import SplitData
from userec.dataset.events import Coded, code
from userec.dataset.loader import BatchConfig
from userec.dataset.split import Division, SplitConfig, divide
from userec.encoder.contract import Encoder
from userec.engine.compose import Builder
from userec.evaluator.contract import Metric
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import Field, Schema, Task
from userec.testing import Check, TinyDataset, contract
from userec.testing.session import open_session
from userec.testing.toys import PLUGINS, Dot, ManyTask, Target


@pytest.mark.parametrize("check", [*contract(Classification), *contract(Classification, l2=(1.0,)), *contract(Majority)])
def test_contract(check: Check) -> None:
    check()


class Crowd(TinyDataset):
    """300 users; every twentieth is of two groups."""

    users_count = 300

    def labels(self, task: str) -> pd.DataFrame | None:
        found = super().labels(task)
        if task != "group" or found is None:
            return found
        return pd.concat([found, found[::20].assign(id="g0"), found[::20].assign(id="g1")])


@pytest.fixture(scope="module")
def coded() -> Coded:
    return code(Crowd(Crowd.Config(), Path()))


@pytest.fixture(scope="module")
def division(coded: Coded) -> Division:
    return divide(coded, parse(SplitConfig, {"name": "leave_last", "test": 0.3}, "split"))


def data_of(coded: Coded, division: Division, encoder: Encoder, *trained: str, rows: int = 64) -> SplitData:
    config = parse(BatchConfig, {"eval_rows": rows}, "batch")
    return SplitData(coded, division, trained=trained, window=None, fields=encoder.reads, seed=0, config=config)


def made(cls: Any, coded: Coded, *tasks: str) -> Encoder:
    build = Builder.of({**PLUGINS, "encoders": {}}, coded, Kernels([]), None)
    torch.manual_seed(0)
    encoder = cls(cls.Config(), build)
    if tasks:
        encoder.begin_task(tasks, "train")
    return encoder.eval()


def judge(encoder: Encoder, data: SplitData, split: Any = "test", **settings: Any) -> dict[str, Metric]:
    evaluator = Classification(Classification.Config(**settings), None)
    assert evaluator.refuses(encoder, data) == []
    return {m.metric: m for m in evaluator.evaluate(encoder, data, split)}


def test_a_probe_finds_what_is_in_the_embedding(coded: Coded, division: Division) -> None:
    encoder = made(BagOfItems, coded)
    data = data_of(coded, division, encoder)
    found = judge(encoder, data)
    assert list(found) == ["accuracy", "macro_f1", "auc"]
    assert all(m.value > 0.95 for m in found.values())
    assert "head=probe(logistic,l2=" in found["accuracy"].definition
    several = len(pd.unique(coded.labels["group"].user)) - 285  # those of two groups
    assert found["accuracy"].n == found["auc"].n
    asked = data.questions("train", "group") + data.questions("valid", "group") + data.questions("test", "group")
    fitted = data.kept["classification"].probes["group"].rows
    assert several > 0
    assert fitted < data.questions("train", "group")  # users of two groups teach nothing
    assert fitted + found["accuracy"].n + judge(encoder, data, "valid")["accuracy"].n == 285 <= asked


def test_majority_predicts_the_majority_with_an_auc_of_one_half(coded: Coded, division: Division) -> None:
    encoder = made(Majority, coded, "next")
    data = data_of(coded, division, encoder, "next")
    found = judge(encoder, data)
    assert found["auc"].value == 0.5
    assert (found["auc"].low, found["auc"].high) == (0.5, 0.5)
    prior = data.kept["classification"].probes["group"].prior
    sets = [row[row > 0] for b in data.batches("test", "group") for row in b.targets.query.ids[:, 0]]  # type: ignore[union-attr,index]
    alone = np.array([int(ids[0]) - 2 for ids in sets if len(ids) == 1])
    assert found["accuracy"].value == pytest.approx((alone == prior.argmax()).mean())


def test_trained_on_the_task_the_majority_counts_its_answers(coded: Coded, division: Division) -> None:
    encoder = made(Majority, coded, "group")
    answer = torch.tensor([[3], [3], [2]])
    encoder.partial_fit(Batch(History(answer[:, 0], {}, answer > 9), Targets(Query(answer), answer)))
    found = judge(encoder, data_of(coded, division, encoder, "group"))
    assert "head=own(softmax)" in found["accuracy"].definition
    assert found["auc"].value == 0.5
    probed = judge(made(Majority, coded, "next"), data_of(coded, division, encoder, "next"))
    assert found["macro_f1"].n == probed["macro_f1"].n


def test_the_own_head_is_the_trained_one(coded: Coded) -> None:
    plugins = load().plugins
    plugins = {**plugins, "encoders": {**plugins["encoders"], **PLUGINS["encoders"]}}
    train = {"epochs": 30, "lr": 0.05, "monitor": "classification/accuracy"}
    said = {"encoder": {"name": ManyTask.name}, "objective": {"name": "labelled"}, "task": "group", "train": train}
    session = open_session(plugins, coded, {**said, "split": {"name": "leave_last", "test": 0.3}})
    model = session.compose(session.run.experiment)
    session.train(model)
    rows = session.evaluate(model, [session.evaluator(model, "classification")])
    found = {row.metric.metric: row.metric for row in rows if row.split == "test"}
    assert {row.split for row in rows} == {"valid", "test"}
    assert found["accuracy"].value > 0.8
    assert "head=own(softmax)" in found["accuracy"].definition
    floors, skipped = session.baselines(session.run.experiment, [session.evaluator(model, "classification")])
    assert not skipped
    assert {row.encoder for row in floors} == {"majority", "bag_of_items"}
    assert found["accuracy"].low > max(
        r.metric.value for r in floors if r.encoder == "majority" and r.metric.metric == "accuracy"
    )


class Walks(Target):
    """Scores groups one by one, by a table of their own, and embeds nobody."""

    name = "walks"
    offers = Can.GRADIENT

    def __init__(self, config: Any, build: Any) -> None:
        super().__init__(config, build)
        self.items = build.table("item", config.dim)
        self.groups = build.table("group", config.dim)

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        assert query.ids is not None
        return (self.groups(query.ids) @ encoded.tokens.mean(1)[:, None, :, None]).squeeze(-1).unsqueeze(-1)


class WholeRows(Walks):
    name = "rows"
    offers = Can.GRADIENT | Can.SCORE_CATALOG

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        if query.ids is None:
            query = dataclasses.replace(query, ids=torch.arange(len(self.groups.all()))[None, None])
        return super().score(encoded, query)


def test_a_head_answers_alike_by_candidate_and_by_row(coded: Coded, division: Division) -> None:
    found = []
    for cls in (Walks, WholeRows):
        encoder = made(cls, coded, "group")
        encoder.items.weight.data.normal_(generator=torch.Generator().manual_seed(1))
        encoder.groups.weight.data.normal_(generator=torch.Generator().manual_seed(2))
        found.append(judge(encoder, data_of(coded, division, encoder, "group")))
    for name, metric in found[0].items():
        assert metric.value == pytest.approx(found[1][name].value)


@pytest.mark.parametrize("rows", [5, 300])
def test_the_size_of_batches_moves_nothing(rows: int, coded: Coded, division: Division) -> None:
    encoder = made(Dot, coded)
    encoder.items.weight.data.normal_(generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr,operator]
    want = judge(encoder, data_of(coded, division, encoder, "next"))
    found = judge(encoder, data_of(coded, division, encoder, "next", rows=rows))
    for name, metric in want.items():
        assert found[name].value == pytest.approx(metric.value, abs=1e-6)
        assert (found[name].low, found[name].high) == pytest.approx((metric.low, metric.high), abs=1e-6)


def test_valid_and_test_share_a_probe_and_what_was_kept_is_cleared_with_the_weights(coded: Coded, division: Division) -> None:
    encoder = made(Dot, coded)
    data = data_of(coded, division, encoder, "next")
    judge(encoder, data, "valid")
    first = data.kept["classification"]
    judge(encoder, data, "test")
    assert data.kept["classification"] is first
    data.kept.clear()  # as a session does between validations
    encoder.items.weight.data.normal_(generator=torch.Generator().manual_seed(1))  # type: ignore[union-attr,operator]
    found, fresh = judge(encoder, data, "valid"), judge(encoder, data_of(coded, division, encoder, "next"), "valid")
    assert data.kept["classification"] is not first
    assert {name: metric.value for name, metric in found.items()} == {name: metric.value for name, metric in fresh.items()}
    asked = made(Dot, coded)
    asked.reads = frozenset({"item", "asked.time"})
    data = data_of(coded, division, asked, "next")
    judge(asked, data, "valid")
    judge(asked, data, "test")
    assert set(data.kept["classification"].embedders) == {("group", "train"), ("group", "valid"), ("group", "test")}


class Few:
    """A schema, and what is trained."""

    def __init__(self, *tasks: Task, fields: Mapping[str, Field] | None = None, trained: tuple[str, ...] = ()) -> None:
        self.schema = Schema(fields or {}, {"item": 5, "age": 4, "sex": 4}, tuple((task,) for task in tasks))
        self.trained, self.kept = trained, {}  # type: ignore[var-annotated]


AGE, SEX = Task("age", "label", "age"), Task("sex", "label", "sex")


def refusal(data: Few, cls: Any = BagOfItems, reads: tuple[str, ...] = ()) -> list[str]:
    encoder = cls(cls.Config(), data)
    encoder.reads = frozenset({"item", *reads})
    return Classification(Classification.Config(), None).refuses(encoder, data)  # type: ignore[arg-type]


def test_refusals_name_what_is_missing() -> None:
    assert refusal(Few(Task("next", events=True))) == ["the data set has no label task: there is no class to predict"]
    without = ["offers no user embedding (EMBED_USER) and is trained on no label task"]
    assert refusal(Few(AGE), Popularity) == without
    assert refusal(Few(AGE, trained=("age",)), Popularity) == []
    assert refusal(Few(AGE, SEX), reads=("profile.age",)) == []
    assert refusal(Few(AGE, SEX, trained=("age",)), Popularity, reads=("profile.age",)) == without
    both = refusal(Few(AGE, SEX), reads=("profile.age", "profile.sex", "time"))
    assert both == ["predicts profile.age, profile.sex, which 'bag_of_items' reads"]
    shared = {"decade": Field("decade", space="age")}
    assert refusal(Few(AGE, fields=shared), reads=("decade",)) == ["predicts decade, which 'bag_of_items' reads"]


def test_a_task_whose_answer_is_read_is_not_judged(coded: Coded, division: Division) -> None:
    encoder = made(BagOfItems, coded)
    schema = dataclasses.replace(coded.schema, tasks=(*coded.schema.tasks, (Task("profile.age", "label", "profile.age"),)))
    data = data_of(coded, division, encoder)
    data.schema = schema
    encoder.reads = frozenset({"item", "profile.age"})
    found = list(Classification(Classification.Config(), None).evaluate(encoder, data, "test"))
    assert {m.task for m in found} == {"group"}
