"""The promise of every embedded sample: popularity < markov < sasrec in NDCG@10, nothing above 0.9, and order matters."""

import dataclasses

import numpy as np
import pytest

from userec.dataset.events import code
from userec.dataset.locate import home_of
from userec.registry import load
from userec.testing import open_session

SAMPLES = ("ttl", "movielens-100k", "movielens-1m", "movielens-25m", "taobao", "beauty", "diginetica")
SPLITS = {"diginetica": "given"}
"""Where it is not leave-one-out: its test lines repeat each other."""
TRAIN = {"sasrec": {"epochs": 25, "lr": 2e-3, "validate_every": 25, "warmup": 0}}


@pytest.fixture(scope="module")
def registry():
    return load()


@pytest.fixture(scope="module", params=SAMPLES)
def coded(request, registry, tmp_path_factory):
    found = registry.find("datasets", request.param)
    environ = {"USEREC_CACHE": str(tmp_path_factory.mktemp("cache"))}
    home, sample = home_of(found, None, environ, force_sample=True)
    assert sample
    return code(found(found.Config(), home))


def judge(registry, coded, model):
    """{metric: row} of a model trained on the sample."""
    split = SPLITS.get(coded.name, "leave_last")
    said = {"encoder": {"name": model}, "split": {"name": split}, "train": TRAIN.get(model, {})}
    session = open_session(registry.plugins, coded, said)
    trained = session.compose(session.run.experiment)
    session.train(trained)
    rows = session.evaluate(trained, [session.evaluator(trained, "ranking")])
    return {row.metric.metric: row.metric for row in rows if row.split == "test"}


def shuffled(coded):
    """The same data with every history, but for its last two events, in a random order."""
    events = coded.events
    owner, place = events.owner, np.arange(len(events))
    held = place >= events.offsets[1:][owner] - 2
    key = np.where(held, len(events) + place, np.random.default_rng(0).permutation(len(events)))
    fields = {**events.fields, "item": events.fields["item"][np.lexsort((key, owner))]}
    return dataclasses.replace(coded, events=dataclasses.replace(events, fields=fields))


def test_popularity_markov_sasrec_and_a_shuffle(registry, coded):
    found = {model: judge(registry, coded, model) for model in ("popularity", "markov", "sasrec")}
    values = {model: metrics["ndcg@10"].value for model, metrics in found.items()}
    assert values["popularity"] < values["markov"] < values["sasrec"], values
    assert found["markov"]["ndcg@10"].low > found["popularity"]["ndcg@10"].high
    bounded = [
        row for metrics in found.values() for name, row in metrics.items() if not name.startswith(("novelty", "gini", "coverage"))
    ]
    assert max(row.value for row in bounded) < 0.9
    hurt = judge(registry, shuffled(coded), "markov")["ndcg@10"]
    assert hurt.high < found["markov"]["ndcg@10"].low, (hurt.value, values)
