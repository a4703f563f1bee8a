"""Planted faults of data sets and evaluators; and the doors of the kit."""

import re
import subprocess
import sys
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from userec.errors import UserError
from userec.evaluator.contract import Evaluator, Metric
from userec.schema import FIRST, NEXT, Field, Task
from userec.testing import contract
from userec.testing.checks import KINDS, checks_for
from userec.testing.tiny import TinyDataset
from userec.testing.toys import PLUGINS

COUNTER = count()


class Registry:
    plugins = PLUGINS


class Filed(TinyDataset):
    """The tiny data in a file, with a sample."""

    name = "filed"
    files = ("events.csv",)
    fields = {name: field for name, field in TinyDataset.fields.items() if "." not in name}
    tasks = ((NEXT,),)

    @classmethod
    def write_sample(cls, home):
        TinyDataset(TinyDataset.Config(), home).events().to_csv(home / "events.csv", index=False)
        return True

    def events(self):
        import pandas as pd

        return pd.read_csv(self.home / "events.csv")

    def users(self):
        return None

    def items(self):
        return None


class RandomSample(Filed):
    @classmethod
    def write_sample(cls, home):
        return bool((home / "events.csv").write_text(f"user,item,time,rating,action\na,b,{next(COUNTER)},1,view\n"))


class NoItems(TinyDataset):
    def events(self):
        return super().events().drop(columns="item")


class FloatIds(TinyDataset):
    def events(self):
        return super().events().assign(item=np.arange(720) / 2)


class Undeclared(TinyDataset):
    fields = {**TinyDataset.fields, "session": Field("session")}


class RandomTimes(TinyDataset):
    def events(self):
        table = super().events()
        return table.assign(time=table["time"] + next(COUNTER))


class ChangingItems(TinyDataset):
    def events(self):
        return super().events().assign(item=f"i{next(COUNTER)}")


class SpacesInOneGroup(TinyDataset):
    tasks = ((NEXT, Task("age", "label", "profile.age")),)


class OneEach(TinyDataset):
    tasks = ((NEXT,),)
    events_each = 1


class Mean(Evaluator):
    """The mean rank of the answer, the smallest evaluator that keeps the contract."""

    name = "toy-mean"

    def evaluate(self, encoder, data, split):
        found, users = [], []
        for batch in data.batches(split, "next"):
            query = replace(batch.targets.query, ids=None)
            scores = encoder.score(encoder.encode(batch.history), query)[:, 0, FIRST:, 0]
            target = scores.gather(1, batch.targets.query.ids[:, 0, :1] - FIRST)
            found.append((scores > target).sum(1).numpy())
            users.append(batch.users.numpy())
        values = np.concatenate(found)
        yield self.metric(values[np.argsort(np.concatenate(users))], np.sort(np.concatenate(users)))

    def metric(self, values, users):
        return Metric(
            "next",
            "rank",
            "rank[strict]",
            values.mean(),
            values.min(),
            values.max(),
            len(values),
            "lower",
            users=users,
            values=values,
        )


class Shouts(Mean):
    def metric(self, values, users):
        return replace(super().metric(values, users), metric="Rank")


class OutsideItsInterval(Mean):
    def metric(self, values, users):
        return replace(super().metric(values, users), value=values.max() + 1.0)


class LastBatchOnly(Mean):
    def evaluate(self, encoder, data, split):
        *_, last = data.batches(split, "next")
        yield Metric("next", "length", "length", float(last.history.lengths.sum()))


class RandomNumbers(Mean):
    def metric(self, values, users):
        return Metric("next", "rank", "rank", float(next(COUNTER)))


class StringReads(Mean):
    reads = "item"


FAULTS = [
    ("datasets", RandomSample, "sample", "events.csv differs when the sample is written twice"),
    ("datasets", NoItems, "tables", "events\\(\\) has no column 'item'"),
    ("datasets", FloatIds, "tables", "'item' holds floats"),
    ("datasets", Undeclared, "tables", "declares session, which no table holds"),
    ("datasets", RandomTimes, "repeatable_tables", "events\\(\\) differs when read twice"),
    ("datasets", ChangingItems, "coding", "ids do not round-trip"),
    ("datasets", SpacesInOneGroup, "declared", "name spaces item, profile.age"),
    ("datasets", OneEach, "split", "asks nothing of the test part"),
    ("evaluators", Shouts, "told_whole", "'Rank' of task 'next': the name is not lower case"),
    ("evaluators", OutsideItsInterval, "told_whole", "lies outside its interval"),
    ("evaluators", RandomNumbers, "repeatable_metrics", "non-determinism"),
    ("evaluators", LastBatchOnly, "metric_batches", "batch dependence"),
    ("evaluators", StringReads, "claims", "reads is str"),
]
GOODS = [("datasets", TinyDataset), ("datasets", Filed), ("evaluators", Mean)]


@pytest.mark.parametrize(
    "check",
    [pytest.param(c, id=f"{kind}-{i}-{c.name}") for i, (kind, cls) in enumerate(GOODS) for c in checks_for(kind, cls, Registry)],
)
def test_contract(check):
    check()


@pytest.mark.parametrize(
    ("kind", "cls", "check", "words"), FAULTS, ids=[f"{fault[0]}-{i}-{fault[2]}" for i, fault in enumerate(FAULTS)]
)
def test_planted_fault(kind, cls, check, words):
    with pytest.raises((AssertionError, UserError)) as caught:
        next(one for one in checks_for(kind, cls, Registry) if one.name == check)()
    assert re.search(words, str(caught.value)), str(caught.value)


def test_every_check_has_a_planted_fault():
    for kind, cls in GOODS[1:]:
        names = {check.name for check in checks_for(kind, cls, Registry)} - {"config"}
        assert names == {check for of, _, check, _ in FAULTS if of == kind}


def test_contract_gives_named_parameters():
    found = contract(TinyDataset)
    assert [entry.id for entry in found] == [check.name for check in checks_for("datasets", TinyDataset)]
    with pytest.raises(TypeError, match="is no data set"):
        contract(int)
    with pytest.raises(UserError, match="did you mean 'encoders'"):
        checks_for("encoder", TinyDataset)
    assert set(KINDS) == {"encoders", "objectives", "datasets", "evaluators", "kernels"}


def test_the_kit_and_its_fixtures_import_no_torch():
    code = "import sys, userec.testing, userec.testing.fixtures; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fixtures(tiny_history, tiny_batch, tiny_dataset, sample_home):
    assert tiny_history.lengths[1] == 0
    assert (tiny_batch.history.lengths > 0).all()
    assert len(tiny_dataset.events()) == 720
    assert (sample_home(Filed) / "events.csv").is_file()
