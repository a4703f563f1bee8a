"""Evaluator `rating` and the floors of rating prediction."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error
from typer.testing import CliRunner

from userec.batch import Batch, History, Query, Targets
from userec.builtin.rating import Rating
from userec.builtin.rating_baselines import GlobalMean, RatingBias, RatingBiasConfig
from userec.cli.main import app
from userec.config import parse
from userec.dataset.data import SplitData
from userec.dataset.events import Coded, code
from userec.dataset.loader import BatchConfig
from userec.dataset.split import SplitConfig, divide
from userec.encoder.contract import Encoder, NoConfig
from userec.registry import load
from userec.schema import FIRST, Schema, Task
from userec.testing import open_session
from userec.testing.tiny import TinyDataset

SCHEMA = Schema({}, {"user": 8, "item": 9, "class": 4}, ((Task("score", "rating"),), (Task("like", "click"),)))
BUILD = SimpleNamespace(schema=SCHEMA)


@pytest.fixture(scope="module")
def coded() -> Coded:
    return code(TinyDataset(TinyDataset.Config(), Path()))


def labelled(user: list[int], item: list[int], value: list[float]) -> Batch:
    """Training rows of a rating task."""
    seen = torch.full((len(user), 1), 2)
    history = History(torch.tensor(user), {"item": seen}, seen > 0, tasks=("score",))
    labels = torch.tensor(value)[:, None, None, None]
    return Batch(history, Targets(Query(history.last[:, None]), torch.tensor(item)[:, None], labels))


def rows(count: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(FIRST, 7, count), rng.integers(FIRST, 8, count), rng.integers(1, 11, count) / 3


def fitted(encoder: Encoder, order: np.ndarray, size: int) -> Encoder:
    user, item, value = rows()
    encoder.begin_task(("score",), "train")
    for start in range(0, len(order), size):
        part = order[start : start + size]
        encoder.partial_fit(labelled(user[part].tolist(), item[part].tolist(), value[part].tolist()))
    encoder.end_task(("score",), "train")
    return encoder.eval()


def test_errors_are_scikit_learns(coded: Coded) -> None:
    division = divide(coded, parse(SplitConfig, {"name": "by_time"}, "split"))
    encoder = GlobalMean(NoConfig(), SimpleNamespace(schema=coded.schema))  # type: ignore[arg-type]
    encoder.total, encoder.count = torch.tensor(7.0), torch.tensor(2.0)
    config = parse(BatchConfig, {"eval_rows": 7}, "batch")
    data = SplitData(coded, division, trained=("score",), window=None, fields=("item",), seed=0, config=config)
    rating = Rating(Rating.Config(), None)
    assert rating.refuses(encoder, data) == []
    rmse, mae = rating.evaluate(encoder, data, "test")
    values = division.questions["test", "score"].values
    assert values is not None
    assert len(values) > 20
    assert rmse.value == pytest.approx(mean_squared_error(values, np.full(len(values), 3.5)) ** 0.5)
    assert mae.value == pytest.approx(mean_absolute_error(values, np.full(len(values), 3.5)))
    for metric in (rmse, mae):
        assert metric.low <= metric.value <= metric.high
        assert metric.better == "lower"
        assert metric.definition == f"{metric.metric}[over=rows,prediction=score]"
        assert metric.n == len(np.unique(division.questions["test", "score"].user))


def test_without_a_rating_task_there_is_nothing_to_judge() -> None:
    data = SimpleNamespace(schema=SCHEMA, trained=("like",))
    assert "no rating task is trained" in Rating(Rating.Config(), None).refuses(None, data)[0]  # type: ignore[arg-type]


def test_no_question_is_no_number(coded: Coded) -> None:
    data = SimpleNamespace(schema=coded.schema, trained=("score",), batches=lambda split, task: iter(()))
    encoder = GlobalMean(NoConfig(), SimpleNamespace(schema=coded.schema))  # type: ignore[arg-type]
    found = list(Rating(Rating.Config(), None).evaluate(encoder, data, "valid"))  # type: ignore[arg-type]
    assert [metric.metric for metric in found] == ["rmse", "mae"]
    assert all(np.isnan(metric.value) and metric.n == 0 for metric in found)


def test_the_global_mean_is_the_mean_of_what_was_observed() -> None:
    encoder = GlobalMean(NoConfig(), BUILD)  # type: ignore[arg-type]
    encoder.partial_fit(labelled([2, 3, 4], [2, 3, 1], [5.0, 2.0, 1.0]))  # the last item has no id
    encoder.partial_fit(labelled([2, 3], [2, 3], [3.0, float("nan")]))
    history = labelled([2, 0], [2, 2], [0.0, 0.0]).history
    scores = encoder.score(encoder.encode(history), Query(history.last[:, None], torch.tensor([[[2, 5]]])))
    assert scores.shape == (2, 1, 2, 1)
    assert scores.unique().tolist() == pytest.approx([10 / 3])
    encoder.begin_task(("score",), "train")
    assert float(encoder.count) == 0


@pytest.mark.parametrize(("items", "users"), [(25.0, 10.0), (0.0, 0.0), (0.0, 3.0)])
def test_offsets_are_the_damped_means_in_turn(items: float, users: float) -> None:
    user, item, value = rows()
    encoder = RatingBias(RatingBiasConfig(damping_item=items, damping_user=users), BUILD)  # type: ignore[arg-type]
    fitted(encoder, np.arange(len(user)), 60)
    value = value.astype(np.float32).astype(np.float64)
    mu = value.mean()
    of_item = {i: sum(value[item == i] - mu) / (items + sum(item == i)) for i in set(item)}
    left = value - mu - np.array([of_item[i] for i in item])
    of_user = {u: sum(left[user == u]) / (users + sum(user == u)) for u in set(user)}
    history = History(torch.tensor([2, 4, 7, 0]), {"item": torch.full((4, 1), 2)}, torch.ones(4, 1, dtype=torch.bool))
    scores = encoder.score(encoder.encode(history), Query(torch.zeros(4, 1, dtype=torch.int64)))[:, 0, :, 0]
    for row, u in enumerate((2, 4, 7, 0)):  # 7 never rated, 0 is nobody
        for i in range(9):
            assert float(scores[row, i]) == pytest.approx(mu + of_user.get(u, 0) + of_item.get(i, 0), abs=1e-6)


def test_the_order_of_rows_and_batches_changes_no_digit_and_all_survives() -> None:
    user, _, _ = rows()
    states = []
    for order, size in ((np.arange(len(user)), 60), (np.random.default_rng(1).permutation(len(user)), 7)):
        states.append(fitted(RatingBias(RatingBiasConfig(), BUILD), order, size).state_dict())  # type: ignore[arg-type]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    restored = RatingBias(RatingBiasConfig(), BUILD)  # type: ignore[arg-type]
    restored.begin_task(("score",), "train")
    restored.end_task(("score",), "train")
    restored.load_state_dict(states[0])
    assert restored.rows == []


@pytest.mark.parametrize("kind", [GlobalMean, RatingBias])
def test_a_task_without_ratings_is_refused(kind: type[Encoder]) -> None:
    encoder = kind(kind.Config(), BUILD)  # type: ignore[arg-type]
    assert encoder.refuses(("score",)) == []
    assert encoder.refuses(("like",)) == [f"encoder {kind.name!r} predicts ratings of items, which task 'like' does not ask for"]


class Habits(TinyDataset):
    """Ratings that follow from who rates what."""

    def labels(self, task: str) -> pd.DataFrame | None:
        table = super().labels(task)
        if table is not None and task == "score":
            number = table[["user", "id"]].apply(lambda column: column.str[1:].astype(int))
            table["value"] = 2.0 + number["user"] % 2 + number["id"] % 3
        return table


def test_both_floors_stand_beside_a_model_and_the_biases_help() -> None:
    said = {"encoder": {"name": "global_mean"}, "task": "score", "split": {"name": "by_time"}}
    session = open_session(load().plugins, code(Habits(Habits.Config(), Path())), said)
    model = session.compose(session.run.experiment)
    session.train(model)
    found, skipped = session.baselines(session.run.experiment, [session.evaluator(model, "rating")])
    assert skipped == []
    found += session.evaluate(model, [session.evaluator(model, "rating")])
    test = {row.encoder: row.metric.value for row in found if row.split == "test" and row.metric.metric == "rmse"}
    assert test["rating_bias"] < 0.6 * test["global_mean"]


def test_twin_learns_ratings_of_a_sample(tmp_path: Path) -> None:
    words = ["run", "--model", "twin", "--dataset", "movielens-100k@sample", "--task", "rating", "--out", str(tmp_path / "out")]
    small = ("encoder.dim=8", "encoder.heads=2", "encoder.window=20", "train.epochs=1", "batch.rows=512")
    done = CliRunner().invoke(app, [*words, *(word for setting in small for word in ("--set", setting))])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["experiment"]["objective"]["price"] == "squared"
    own = {row["metric"]: row for row in report["metrics"] if row["evaluator"] == "rating" and row["split"] == "test"}
    assert 0 < own["mae"]["value"] < own["rmse"]["value"] < 3
    assert {row["encoder"] for row in report["baselines"] if row["evaluator"] == "rating"} == {"global_mean", "rating_bias"}
