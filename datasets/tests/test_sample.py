"""The samples: same bytes every time, and the properties that runs on them rely on, seen by light proxies."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from userec_datasets import userec_datasets
from userec_datasets.beauty import Beauty
from userec_datasets.diginetica import Diginetica
from userec_datasets.taobao import Taobao
from userec_datasets.ttl import TTL

from userec.dataset.contract import Dataset

ALL = list(userec_datasets())
Floats = NDArray[np.float64]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each data set's sample, written once."""
    found = {}
    for kind in ALL:
        found[kind.name] = tmp_path_factory.mktemp(kind.name)
        assert kind.write_sample(found[kind.name])
    return found


def opened(kind: type[Dataset], homes: dict[str, Path]) -> Dataset:
    """Read by the real reader."""
    return kind(kind.Config(), kind.locate(homes[kind.name]))


def ordered(data: Dataset) -> tuple[NDArray[np.int64], NDArray[np.int64], pd.Index]:
    """User and item numbers from 0, by user and time; and the users' external ids. Without published test lines: they repeat
    each other."""
    events = data.events()
    if "split" in events:
        events = events[events["split"] != "test"]
    keys = ["user", "time"] if "time" in events else ["user"]
    events = events.sort_values(keys, kind="stable")
    user, names = pd.factorize(events["user"])
    return user, pd.factorize(events["item"])[0], pd.Index(names)


def ndcg(scores: Floats, target: NDArray[np.int64]) -> Floats:
    """NDCG@10 a user, [U]; a tie counts half."""
    own = scores[np.arange(len(target)), target][:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    return np.where(rank < 10, 1 / np.log2(rank + 2), 0.0)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_the_same_bytes_every_time_in_under_two_seconds(kind: type[Dataset], homes: dict[str, Path], tmp_path: Path) -> None:
    start = time.process_time()
    kind.write_sample(tmp_path)
    assert time.process_time() - start < 2
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    first = {path.relative_to(homes[kind.name]): path.read_bytes() for path in homes[kind.name].rglob("*") if path.is_file()}
    assert written == first
    assert len(written) >= (1 if kind is Taobao else 2)


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_order_beats_popularity_and_shuffling_hurts(kind: type[Dataset], homes: dict[str, Path]) -> None:
    user, item, _ = ordered(opened(kind, homes))
    users, items = user.max() + 1, item.max() + 1
    last = np.searchsorted(user, np.arange(users), side="right") - 1
    train = np.ones(len(user), dtype=bool)
    train[last] = False
    popularity = np.bincount(item[train], minlength=items) / train.sum()
    steps = train[1:] & train[:-1] & (user[1:] == user[:-1])
    chain = np.zeros((items, items))
    np.add.at(chain, (item[:-1][steps], item[1:][steps]), 1)

    def markov(state: NDArray[np.int64]) -> Floats:
        rows = chain[state]  # [U, I], backed off to popularity
        return ndcg((rows + 5 * popularity) / (rows.sum(axis=1, keepdims=True) + 5), item[last])

    first = np.searchsorted(user, np.arange(users))
    anywhere = item[np.random.default_rng(0).integers(first, last)]
    popular = ndcg(np.tile(popularity, (users, 1)), item[last])
    gain = markov(item[last - 1]) - popular
    loss = markov(item[last - 1]) - markov(anywhere)
    assert gain.mean() > 0.03
    assert gain.mean() > 3 * gain.std() / np.sqrt(users)
    assert loss.mean() > 3 * loss.std() / np.sqrt(users)
    assert markov(item[last - 1]).mean() < 0.3  # room above it, for taste, drift and the item before the last


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.name)
def test_sizes_and_times(kind: type[Dataset], homes: dict[str, Path]) -> None:
    events = opened(kind, homes).events()
    if kind is Diginetica:
        lengths = events[events["split"] != "test"].groupby("user").size()
        assert events["item"].nunique() == 500
        assert len(lengths) == 1000
        assert (lengths.min(), lengths.max()) == (4, 40)
        return
    lengths = events.groupby("user").size()
    assert 500 <= events["item"].nunique() <= 800
    assert len(lengths) == {TTL: 1200, Taobao: 800}.get(kind, 1000)
    assert 10 < lengths.min() < 25
    assert 90 < lengths.max() <= (115 if kind is Taobao else 100)
    if kind in (TTL, Beauty):
        assert "time" not in events
        return
    if kind is Taobao:
        assert 8.9 < (events["time"].max() - events["time"].min()) / 86_400 <= 9
        assert events["action"].value_counts().index.tolist()[0] == "pv"
        assert events["action"].nunique() == 4
        return
    assert not events.duplicated(["user", "item"]).any()
    assert 300 < (events["time"].max() - events["time"].min()) / 86_400 <= 366
    late = events[events["time"] > events["time"].quantile(0.9)]
    assert late["user"].nunique() > 150  # enough questions behind a global cut in time
    assert events["rating"].nunique() == 5


def test_ttl_users_can_be_told_apart_but_not_surely(homes: dict[str, Path]) -> None:
    user, item, names = ordered(opened(TTL, homes))
    place = np.arange(len(user)) - np.searchsorted(user, user)
    half = place >= np.bincount(user)[user] // 2
    bags = np.zeros((2, len(names), item.max() + 1))
    np.add.at(bags, (half.astype(int), user, item), 1)
    bags /= np.linalg.norm(bags, axis=2, keepdims=True)
    scores = bags[0] @ bags[1].T  # [U, U]
    own = np.diag(scores)[:, None]
    rank = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    assert 0.1 < (1 / (rank + 1)).mean() < 0.7


@pytest.mark.parametrize("task", ["age", "gender", "life_status"])
def test_a_profile_can_be_told_from_taste_but_not_surely(homes: dict[str, Path], task: str) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    data = opened(TTL, homes)
    user, item, names = ordered(data)
    labels = data.labels(task)
    assert labels is not None
    bags = np.zeros((len(names), item.max() + 1))
    np.add.at(bags, (user, item), 1)
    bags /= np.linalg.norm(bags, axis=1, keepdims=True)
    rows, classes = bags[names.get_indexer(labels["user"])], labels["id"].to_numpy()
    cut = len(rows) * 7 // 10
    right = linear.RidgeClassifier().fit(rows[:cut], classes[:cut]).score(rows[cut:], classes[cut:])
    majority = (classes[cut:] == np.bincount(classes[:cut]).argmax()).mean()
    error = np.sqrt(right * (1 - right) / (len(rows) - cut))
    assert majority + 3 * error < right < 0.9
