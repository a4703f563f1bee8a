"""The checks of a data set, on its embedded sample (or on what it generates where it needs no files)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from userec.config import parse
from userec.dataset.contract import Dataset
from userec.dataset.events import SPLITS, code
from userec.dataset.split import SplitConfig, divide, target_hash
from userec.schema import FIRST
from userec.testing.build import Case
from userec.testing.check import holds
from userec.testing.checks_config import check_config


@dataclass(frozen=True, eq=False)
class Sampled(Case):
    """A data set under test."""

    @contextmanager
    def made(self) -> Any:
        """The data set over a folder with its sample, or None where it needs files and ships no sample."""
        with tempfile.TemporaryDirectory() as folder:
            wrote = self.cls.write_sample(Path(folder))
            yield self.cls(self.config, Path(folder)) if wrote or not self.cls.files else None


def check_declared(case: Sampled) -> None:
    """Tasks come in groups of one label space, fields stand under their own names."""
    for group in case.cls.tasks:
        spaces = sorted({task.space for task in group})
        holds(
            len(spaces) == 1,
            f"{case.name}: tasks {', '.join(t.name for t in group)} are one group but name spaces {', '.join(spaces)}",
        )
    names = [task.name for group in case.cls.tasks for task in group]
    holds(len(set(names)) == len(names), f"{case.name}: a task name stands twice among {', '.join(names)}")
    wrong = sorted(key for key, field in case.cls.fields.items() if field.name != key)
    holds(not wrong, f"{case.name}: fields {', '.join(wrong)} stand under another key than their name")


def check_sample(case: Sampled) -> None:
    """The sample written twice is the same, byte by byte, and `locate` finds it."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        if not case.cls.write_sample(Path(one)):
            return
        case.cls.write_sample(Path(two))
        first, second = _bytes(Path(one)), _bytes(Path(two))
        holds(first.keys() == second.keys(), f"{case.name}: the sample's files differ when it is written twice: non-determinism")
        changed = sorted(name for name in first if first[name] != second[name])
        holds(not changed, f"{case.name}: {', '.join(changed)} differs when the sample is written twice: non-determinism")
        if case.cls.files:
            case.cls.locate(Path(one))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_tables(case: Sampled) -> None:
    """Users and items in every row of `events`; times are int64 seconds; declared columns and label tables are whole."""
    with case.made() as dataset:
        if dataset is None:
            return
        events, users, items = dataset.events(), dataset.users(), dataset.items()
        _table(case.name, "events()", events, ("user", "item"))
        if "time" in events:
            holds(events["time"].dtype.kind in "iu", f"{case.name}: events(): time is {events['time'].dtype}, not int64 seconds")
        if "split" in events:
            wrong = sorted(set(events["split"].astype(str)) - set(SPLITS))
            holds(not wrong, f"{case.name}: events(): split {', '.join(wrong)} is none of {', '.join(SPLITS)}")
        if users is not None:
            _table(case.name, "users()", users, ("user",))
        if items is not None:
            _table(case.name, "items()", items, ("item",))
        have = {str(name) for table in (events, users, items) if table is not None for name in table.columns}
        absent = sorted(name for name in dataset.fields if name not in have)
        holds(not absent, f"{case.name}: declares {', '.join(absent)}, which no table holds")
        for task in (task for group in dataset.tasks for task in group if not task.events):
            table = dataset.labels(task.name)
            holds(table is not None, f"{case.name}: labels({task.name!r}) is None on the sample")
            _table(case.name, f"labels({task.name!r})", table, ("user", "id"))


def _table(name: str, told: str, table: pd.DataFrame, needed: tuple[str, ...]) -> None:
    holds(len(table), f"{name}: {told} is empty")
    for column in needed:
        holds(column in table, f"{name}: {told} has no column {column!r}")
        holds(not table[column].isna().any(), f"{name}: {told}: {column!r} is missing in some row")
        holds(table[column].dtype.kind != "f", f"{name}: {told}: {column!r} holds floats; an external id is str or int")


def check_repeatable_tables(case: Sampled) -> None:
    """Every table read twice is the same."""
    with case.made() as dataset:
        if dataset is None:
            return
        again = type(dataset)(dataset.config, dataset.home)
        for word in ("events", "users", "items"):
            one, two = getattr(dataset, word)(), getattr(again, word)()
            holds(
                (one is None and two is None) or one.equals(two),
                f"{case.name}: {word}() differs when read twice: non-determinism",
            )


def check_coding(case: Sampled) -> None:
    """Coded ids decode to the external ids, event by event; rows of a user stand in order of time."""
    with case.made() as dataset:
        if dataset is None:
            return
        coded, table = code(dataset), dataset.events()
    events = coded.events
    users = coded.vocabulary["user"].decode(events.owner + FIRST)
    items = coded.vocabulary["item"].decode(events.fields["item"])
    pairs = np.sort((pd.Series(users).astype(str) + "\t" + pd.Series(items).astype(str)).to_numpy())
    want = np.sort(
        (table["user"].astype(str).reset_index(drop=True) + "\t" + table["item"].astype(str).reset_index(drop=True)).to_numpy()
    )
    holds(np.array_equal(pairs, want), f"{case.name}: coded events decode to other users or items: ids do not round-trip")
    if "time" in events.fields:
        inside = events.owner[1:] == events.owner[:-1]
        holds((np.diff(events.fields["time"])[inside] >= 0).all(), f"{case.name}: a user's events are not in order of time")


def check_split(case: Sampled) -> None:
    """Its default split trains and tests on something, and is the same each time."""
    with case.made() as dataset:
        if dataset is None:
            return
        coded = code(dataset)
    config = parse(SplitConfig, {"name": coded.default_split or "auto"}, "split")
    one, two = divide(coded, config), divide(coded, config)
    holds(len(one.train), f"{case.name}: split {one.name!r} leaves no event to train on")
    asked = sum(len(questions) for (split, _), questions in one.questions.items() if split == "test")
    holds(asked, f"{case.name}: split {one.name!r} asks no test question")
    holds(
        target_hash(coded, one) == target_hash(coded, two),
        f"{case.name}: split {one.name!r} draws other targets each time: non-determinism",
    )


def dataset_checks(cls: type[Dataset], settings: dict[str, Any], plugins: Callable[[], Any]) -> Iterable[tuple[Any, Sampled]]:
    """All of them."""
    case = Sampled(cls, settings, plugins)
    assert case.config is not None
    checks = (check_declared, check_config, check_sample, check_tables, check_repeatable_tables, check_coding, check_split)
    return [(check, case) for check in checks]
