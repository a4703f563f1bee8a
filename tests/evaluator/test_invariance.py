"""No metric moves with how the work is cut, in which order or by whom it is done, or what things are called."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_limits

from userec.batch import Query
from userec.dataset.data import SplitData
from userec.dataset.events import code
from userec.dataset.loader import BatchConfig
from userec.dataset.split import SplitConfig, divide
from userec.engine.compose import Builder, misfits
from userec.evaluator import roc
from userec.evaluator.probe import Probe
from userec.evaluator.ranks import Tally
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import FIRST
from userec.testing.tiny import ITEMS, TinyDataset, rows_of
from userec.testing.toys import ManyTask

REGISTRY = load(only=())
EVALUATORS = sorted(REGISTRY.plugins["evaluators"])
TRAINED = ("next", "click", "group", "score")
SHIFT = 7
"""Item n becomes n * SHIFT modulo their number."""


class Backwards(SplitData):
    """The same questions and pieces, the last batch first, and in a batch the last row."""

    def batches(self, split, task, users=None):
        for batch in reversed(list(super().batches(split, task, users))):
            yield backwards(batch)

    def pieces(self, split, back, **cut):
        for batch in reversed(list(super().pieces(split, back, **cut))):
            yield backwards(batch)


def backwards(batch):
    """The batch with its rows in the opposite order."""
    order = torch.arange(len(batch.history.user)).flip(0)
    targets = batch.targets
    if targets is not None:
        asked = targets.query
        query = Query(asked.at[order], asked.ids[order], {name: x[order] for name, x in asked.context.items()})
        targets = dataclasses.replace(targets, query=query, labels=targets.labels[order])
    history = rows_of(batch.history, order)
    return dataclasses.replace(batch, history=history, targets=targets, users=batch.users[order], ends=batch.ends[order])


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


def found(evaluator, cls=TinyDataset, rows=64, settings=None, data=SplitData, follow=True):
    """{(task, metric): (value, low, high, n)} of a toy with fixed random weights: one head for each kind of task.

    `follow`: the weights of items go where their names go."""
    coded = code(cls(cls.Config(), Path()))
    division = divide(coded, SplitConfig(name="leave_last"))
    build = Builder.of(REGISTRY.plugins, coded, Kernels(()), division.train)
    torch.manual_seed(0)
    encoder = ManyTask(ManyTask.Config(), build)
    for task in TRAINED:
        encoder.begin_task((task,), "train")
    for p in encoder.parameters():
        torch.nn.init.normal_(p)
    if cls is Renamed and follow:
        own = coded.vocabulary["item"].code(np.array([renamed(name) for name in sorted(f"i{i}" for i in range(ITEMS))], object))
        with torch.no_grad():
            weight = encoder.items.weight.clone()
            encoder.items.weight[torch.from_numpy(own)] = weight[FIRST:]
    judge = REGISTRY.plugins["evaluators"][evaluator]
    judge = judge(judge.Config(**(settings or {})), build.with_dim(encoder.dim))
    config = BatchConfig(eval_rows=rows)
    seen = data(coded, division, trained=TRAINED, window=None, fields=encoder.reads, seed=0, config=config, odds=True)
    assert not misfits(encoder.eval(), judge, seen.schema)
    assert not judge.refuses(encoder, seen)
    with torch.no_grad():
        return {(m.task, m.metric): (m.value, m.low, m.high, m.n) for m in judge.evaluate(encoder, seen, "test")}


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
    assert_same(found(evaluator, rows=7, data=Backwards), usual)


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
    plain, left = found("ranking"), found("ranking", Renamed, follow=False)
    assert abs(left["next", "ndcg@10"][0] - plain["next", "ndcg@10"][0]) > 1e-3


def computed(threads):
    """A probe's probabilities, an area and its resamples, and counts above and among ties, of arrays that libraries do share out
    among threads; those of the tiny data set they do not."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3_000, 64))
    y = (x[:, :4] + rng.normal(size=(3_000, 4))).argmax(1)
    rows, right, unit = rng.normal(size=100_000).round(3), rng.random(100_000) < 0.3, rng.integers(0, 1_000, 100_000)
    weights = rng.integers(0, 3, (8, 1_000)).astype(float)
    scores = torch.from_numpy(rng.normal(size=(512, 4_096)).astype(np.float32).round(2))
    ids = torch.arange(FIRST, FIRST + 4).expand(512, -1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            tally = Tally(ids, scores[:, :4])
            tally.add(scores[:, 4:])
            ranks = tally.ranks()
            return Probe.fit(x, y, 4, (1.0,))(x), roc.auc(rows, right, unit)(weights), np.stack([ranks.above, ranks.tied])
    finally:
        torch.set_num_threads(before)


def test_number_of_threads_where_the_work_is_shared_out():
    (probed, area, counts), (probed_by_two, area_by_two, counts_by_two) = computed(1), computed(2)
    np.testing.assert_allclose(probed_by_two, probed, atol=1e-4)
    np.testing.assert_allclose(area_by_two, area, rtol=1e-12)
    np.testing.assert_array_equal(counts_by_two, counts)
