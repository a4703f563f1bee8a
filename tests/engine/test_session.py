"""What a session makes of evaluators: slices of their metrics, baselines that fit and those that do not; and what it keeps."""

import numpy as np
import pytest
import torch

from userec.capability import Can
from userec.config import Ref
from userec.dataset.events import code
from userec.encoder.contract import Encoder
from userec.engine import checkpoint
from userec.errors import UserError
from userec.evaluator.contract import Evaluator, Metric
from userec.registry import load
from userec.testing import open_session
from userec.testing.tiny import TinyDataset
from userec.testing.toys import Counting


class Homeless(Encoder):
    """Reads what the tiny data set does not have."""

    name = "homeless"
    offers = Can.CAUSAL
    reads = frozenset({"item", "profile.height"})

    def encode(self, history):
        raise AssertionError("never composed")


class Judged(Evaluator):
    """A mean over users, a number that is no mean, and one of all users together."""

    name = "judged"
    baselines = (Ref(name="popularity"), Ref(name="homeless"))

    def evaluate(self, encoder, data, split):
        users = np.concatenate([batch.users.numpy() for batch in data.batches(split, "next")])
        users.sort()
        values = users.astype(float)
        yield Metric("next", "mean", "mean[over=users]", float(values.mean()), n=len(users), users=users, values=values)

        def measure(weights):
            return np.sqrt(weights @ values**2 / weights.sum(1))

        yield Metric.measured("next", "spread", "spread[over=users]", users, measure)
        yield Metric("next", "together", "together[]", 1.0)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    def make(*slices):
        registry = load(only=())
        encoders = {**registry.plugins["encoders"], "toy-counting": Counting, "homeless": Homeless}
        plugins = {**registry.plugins, "encoders": encoders, "evaluators": {"judged": Judged}}
        coded = code(TinyDataset(TinyDataset.Config(), tmp_path_factory.mktemp("home")))
        said = {"encoder": {"name": "toy-counting"}, "split": {"name": "leave_last"}, "slices": list(slices)}
        made = open_session(plugins, coded, said)
        return made, made.compose(made.run.experiment), coded

    return make


def test_slices_are_rows_of_the_same_report(session):
    made, model, coded = session("profile.age")
    rows = [row.metric for row in made.evaluate(model, [made.evaluator(model, "judged")]) if row.split == "test"]
    ages = coded.vocabulary["profile.age"].decode(coded.profile["profile.age"])
    assert [(m.metric, m.slice) for m in rows] == [
        *[("mean", part) for part in ("", "profile.age=old", "profile.age=young")],
        *[("spread", part) for part in ("", "profile.age=old", "profile.age=young")],
        ("together", ""),
    ]
    for m in rows:
        if m.slice:
            mine = np.flatnonzero(ages == m.slice.partition("=")[2])
            assert m.n == len(mine)
            assert m.value == pytest.approx(mine.mean() if m.metric == "mean" else np.sqrt((mine**2).mean()))
            assert m.low <= m.value <= m.high
            assert m.definition.endswith(f",slice={m.slice}]")
            assert m.values is None, "per-user values are told once, under the whole"


def test_activity_and_an_unknown_slice(session):
    made, model, _ = session("activity")
    rows = [row.metric for row in made.evaluate(model, [made.evaluator(model, "judged")]) if row.split == "test"]
    assert {m.slice for m in rows} <= {"", "activity=cold", "activity=tail", "activity=head"}
    assert sum(m.n for m in rows if m.slice and m.metric == "mean") == rows[0].n
    with pytest.raises(UserError, match=r"unknown slice 'profile.agee'.*did you mean 'profile.age'"):
        session("profile.agee")


def test_a_baseline_that_does_not_fit_is_told_and_the_others_stand(session):
    made, model, _ = session()
    rows, skipped = made.baselines(model.experiment, [made.evaluator(model, "judged")])
    assert {row.encoder for row in rows} == {"popularity"}
    (left,) = skipped
    assert left["evaluator"] == "judged"
    assert left["reason"].startswith("baseline 'homeless': encoder 'homeless' reads profile.height")


def test_what_counting_makes_of_the_rows_at_its_end_is_in_the_checkpoint(tmp_path):
    coded = code(TinyDataset(TinyDataset.Config(), tmp_path / "home"))
    said = {"encoder": {"name": "rating_bias"}, "task": "score", "split": {"name": "leave_last"}}
    session = open_session(load(only=()).plugins, coded, said)
    model = session.compose(session.run.experiment)
    session.train(model, tmp_path / "checkpoint")
    found = checkpoint.load(tmp_path / "checkpoint", "best")
    assert found is not None
    kept, made = checkpoint.part(found[0], "encoder"), model.encoder.state_dict()
    assert kept.keys() == made.keys()
    assert all(torch.equal(kept[key], made[key]) for key in made)
    assert all(kept[key].any() for key in ("mean", "of_user", "of_item")), "all of them are made in `end_task`"
