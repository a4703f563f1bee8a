"""No metric moves with how the work is cut, by whom it is done, or what things are called."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from userec.dataset.data import SplitData
from userec.dataset.events import code
from userec.dataset.loader import BatchConfig
from userec.dataset.split import SplitConfig, divide
from userec.engine.compose import Builder, misfits
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import FIRST
from userec.testing.tiny import ITEMS, TinyDataset
from userec.testing.toys import ManyTask

REGISTRY = load(only=())
EVALUATORS = sorted(REGISTRY.plugins["evaluators"])
TRAINED = ("next", "click", "group", "score")
SHIFT = 7
"""Item n becomes n * SHIFT modulo their number."""


class Turned(TinyDataset):
    """The same events, users in the opposite order."""

    def events(self) -> pd.DataFrame:
        table = super().events()
        return pd.concat([part for _, part in reversed(list(table.groupby("user", sort=False)))], ignore_index=True)


class Renamed(TinyDataset):
    """The same events, every item under another name, so that its coded id is another one."""

    def events(self) -> pd.DataFrame:
        return super().events().assign(item=lambda table: table["item"].map(renamed))

    def items(self) -> pd.DataFrame:
        return super().items().assign(item=lambda table: table["item"].map(renamed))

    def labels(self, task: str) -> pd.DataFrame | None:
        table = super().labels(task)
        return table if table is None or task in ("group", "score") else table.assign(id=table["id"].map(renamed))


def renamed(name: str) -> str:
    return f"i{int(name[1:]) * SHIFT % ITEMS}"


def found(evaluator, cls=TinyDataset, rows=64, settings=None):
    """{(task, metric): (value, low, high, n)} of a toy with fixed random weights: one head for each kind of task."""
    coded = code(cls(cls.Config(), Path()))
    division = divide(coded, SplitConfig(name="leave_last"))
    build = Builder.of(REGISTRY.plugins, coded, Kernels(()), division.train)
    torch.manual_seed(0)
    encoder = ManyTask(ManyTask.Config(), build)
    for task in TRAINED:
        encoder.begin_task((task,), "train")
    for p in encoder.parameters():
        torch.nn.init.normal_(p)
    if cls is Renamed:
        own = coded.vocabulary["item"].code(np.array([renamed(name) for name in sorted(f"i{i}" for i in range(ITEMS))], object))
        with torch.no_grad():
            weight = encoder.items.weight.clone()
            encoder.items.weight[torch.from_numpy(own)] = weight[FIRST:]
    judge = REGISTRY.plugins["evaluators"][evaluator]
    judge = judge(judge.Config(**(settings or {})), build.with_dim(encoder.dim))
    config = BatchConfig(eval_rows=rows)
    data = SplitData(coded, division, trained=TRAINED, window=None, fields=encoder.reads, seed=0, config=config, odds=True)
    assert not misfits(encoder.eval(), judge, data.schema)
    assert not judge.refuses(encoder, data)
    with torch.no_grad():
        return {(m.task, m.metric): (m.value, m.low, m.high, m.n) for m in judge.evaluate(encoder, data, "test")}


def assert_same(one, two, but=lambda metric: False):
    assert list(one) == list(two)
    for (task, metric), values in one.items():
        for a, b in zip(values, two[task, metric], strict=True):
            alike = (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, abs=1e-6)
            assert alike or but(metric), (task, metric, values, two[task, metric])


@pytest.fixture(scope="module", params=EVALUATORS)
def evaluator(request):
    return request.param


@pytest.fixture(scope="module")
def usual(evaluator):
    rows = found(evaluator)
    assert len(rows) > 1
    assert any(math.isfinite(value) and value > 0 for value, *_ in rows.values())
    return rows


@pytest.mark.parametrize("rows", [1, 7])
def test_users_in_a_batch(evaluator, usual, rows):
    assert_same(found(evaluator, rows=rows), usual)


def test_order_of_users(evaluator, usual):
    assert_same(found(evaluator, Turned), usual)


def test_names_of_items(evaluator, usual):
    assert_same(found(evaluator, Renamed), usual, but=lambda metric: "~" in metric)  # drawn candidates are drawn by id


def test_number_of_threads(evaluator, usual):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_same(found(evaluator), usual)
    finally:
        torch.set_num_threads(before)


def test_chunks_of_the_catalogue():
    assert_same(found("ranking", settings={"chunk": 5}), found("ranking"))


def test_the_toy_is_renamed_for_good():
    """The renaming above changes ids: with the weights left where they were, metrics move."""
    torch.manual_seed(0)
    plain = code(TinyDataset(TinyDataset.Config(), Path()))
    other = code(Renamed(Renamed.Config(), Path()))
    assert (plain.events.fields["item"] != other.events.fields["item"]).mean() > 0.5
