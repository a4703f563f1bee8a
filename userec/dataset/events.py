"""Coded events: external ids become small integers, events become CSR rows sorted by user, time, original row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from userec.dataset.contract import Dataset
from userec.dataset.ids import external
from userec.errors import UserError, did_you_mean
from userec.schema import FIRST, UNKNOWN, Field, Schema, Task

SPLITS = ("train", "valid", "test")
"""Published splits by their coded number."""

_STANDARD = {
    "user": Field("user"),
    "item": Field("item"),
    "time": Field("time", "time"),
    "session": Field("session"),
    "action": Field("action"),
    "rating": Field("rating", "number"),
}


@dataclass(frozen=True)
class Vocabulary:
    """External ids of one space, sorted and unique; the coded id is the index + 2 (0 padding, 1 unknown)."""

    values: np.ndarray  # [n - 2] int64, or object holding str

    @classmethod
    def of(cls, pieces: Iterable[np.ndarray]) -> Vocabulary:
        """All ids of the pieces; where some are numbers and some are text, all become text."""
        kept = list(pieces)
        texts = [piece.dtype == object for piece in kept]
        if any(texts) and not all(texts):
            kept = [piece if text else piece.astype(str).astype(object) for piece, text in zip(kept, texts, strict=True)]
        uniques = [np.asarray(pd.unique(piece)) for piece in kept] or [np.zeros(0, np.int64)]
        return cls(np.sort(np.asarray(pd.unique(np.concatenate(uniques)))))

    def __len__(self) -> int:
        return len(self.values) + FIRST

    @cached_property
    def _dense(self) -> np.ndarray | None:
        """Number -> id by table, where the numbers lie close enough together."""
        if self.values.dtype == object or not len(self.values):
            return None
        low, high = int(self.values[0]), int(self.values[-1])
        if high - low > 4 * len(self.values) + (1 << 20):
            return None
        table = np.full(high - low + 1, UNKNOWN, np.int64)
        table[self.values - low] = np.arange(len(self.values)) + FIRST
        return table

    @cached_property
    def _index(self) -> pd.Index:
        """The ids as text."""
        return pd.Index(self.values.astype(str), dtype=object)

    def code(self, values: Any) -> np.ndarray:
        """External ids [N] -> coded ids [N] int64; 1 where an id is not of this space."""
        asked = np.asarray(values)
        if not len(self.values) or not len(asked):
            return np.full(len(asked), UNKNOWN, np.int64)
        if self.values.dtype == object or asked.dtype == object:
            at = self._index.get_indexer(pd.Index(asked.astype(str), dtype=object))  # -1 = absent
            return np.where(at < 0, UNKNOWN, at + FIRST).astype(np.int64)
        asked = asked.astype(np.int64)
        if self._dense is not None:
            at = asked - self.values[0]
            inside = (at >= 0) & (at < len(self._dense))
            return np.where(inside, self._dense[np.where(inside, at, 0)], UNKNOWN)
        at = np.searchsorted(self.values, asked).clip(max=len(self.values) - 1)
        return np.where(self.values[at] == asked, at + FIRST, UNKNOWN)

    def decode(self, ids: Any) -> np.ndarray:
        """Coded ids -> external ids. Raises ValueError at a reserved id: it stands for none."""
        asked = np.asarray(ids, dtype=np.int64)
        if len(asked) and asked.min() < FIRST:
            raise ValueError("ids 0 (padding) and 1 (unknown) stand for no external id")
        return self.values[asked - FIRST]


@dataclass(frozen=True)
class Events:
    """Events in CSR form: those of user row u are `offsets[u]:offsets[u + 1]`, in order. A user may have none."""

    offsets: np.ndarray  # [U + 1] int64
    fields: Mapping[str, np.ndarray]  # {"item": [E] int32, "time": [E] int64, "rating": [E] float32, a `many` field: [E, M]}

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def users(self) -> int:
        """How many user rows there are: U."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Events a user: [U] int64."""
        return np.diff(self.offsets)

    @cached_property
    def owner(self) -> np.ndarray:
        """The user row of each event: [E] int64."""
        return np.repeat(np.arange(self.users), self.lengths)

    def take(self, keep: np.ndarray) -> Events:
        """The events where `keep` [E] is true; the same U users."""
        offsets = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])[self.offsets]
        return Events(offsets, {name: column[keep] for name, column in self.fields.items()})


@dataclass(frozen=True)
class Labels:
    """One label task; rows are sorted by user, end and time. The history of a row is the events of its user before `end`."""

    user: np.ndarray  # [N] int64 row
    id: np.ndarray  # [N] int64 coded in the task's space
    value: np.ndarray  # [N] float32
    end: np.ndarray  # [N] int64 absolute event index
    split: np.ndarray | None = None  # [N] int8, where published
    time: np.ndarray | None = None  # [N] int64 request time, where known
    until: np.ndarray | None = None  # [N] int64 time at which the value is known, where that is later than the request

    def take(self, keep: np.ndarray) -> Labels:
        """The rows where `keep` [N] is true (or the rows of an index)."""
        split, time, until = (None if column is None else column[keep] for column in (self.split, self.time, self.until))
        return Labels(self.user[keep], self.id[keep], self.value[keep], self.end[keep], split, time, until)


@dataclass(frozen=True)
class Coded:
    """A data set with ids coded: all that splits, loaders and evaluators read."""

    name: str
    events: Events
    split: np.ndarray | None  # [E] int8: 0 train, 1 valid, 2 test, where the data set publishes one
    vocabulary: Mapping[str, Vocabulary]
    schema: Schema
    profile: Mapping[str, np.ndarray]  # {"profile.age": [U]}; an id is 1 and a number NaN where a user has none
    catalog: Mapping[str, Mapping[str, np.ndarray]]  # {"item": {"item.genres": [n, M]}}; rows 0 and 1 are 0
    labels: Mapping[str, Labels]
    notes: tuple[str, ...] = ()
    default_split: str | None = None


def code(dataset: Dataset) -> Coded:
    """Read a data set's tables and code them. Raises UserError where a table lacks a column, a value or every row."""
    tables = _read(dataset)
    pa.default_memory_pool().release_unused()  # what parsing took, which Arrow keeps
    fields = {str(name): _field(dataset, column) for table in tables.all for name, column in table.items() if name != "split"}
    vocabulary = _vocabularies(tables, fields)
    events, split = _events(tables.events, fields, vocabulary)
    users, items = vocabulary["user"], vocabulary["item"]
    profile = {} if tables.users is None else _features(tables.users, "user", fields, vocabulary)
    catalog = {} if tables.items is None else _features(tables.items, "item", fields, vocabulary)
    for feature in catalog.values():
        feature[:FIRST] = 0
    profile = {name: feature[FIRST:] for name, feature in profile.items()}
    schema = Schema(
        fields=fields,
        spaces={space: len(entry) for space, entry in vocabulary.items()},
        tasks=tuple(kept for group in dataset.tasks if (kept := tuple(task for task in group if task not in tables.absent))),
        widths={name: column.shape[1] for name, column in {**events.fields, **catalog, **profile}.items() if column.ndim == 2},
    )
    return Coded(
        name=dataset.name,
        events=events,
        split=split,
        vocabulary=vocabulary,
        schema=schema,
        profile=profile,
        catalog={"item": catalog} if catalog else {},
        labels={task.name: _labels(table, task, events, vocabulary, users) for task, table in tables.labels.items()},
        notes=(*dataset.notes(), *_notes(events), *_unasked(tables, items)),
        default_split=dataset.default_split,
    )


@dataclass(frozen=True)
class _Tables:
    """The tables of a data set, checked."""

    events: pd.DataFrame
    users: pd.DataFrame | None
    items: pd.DataFrame | None
    labels: Mapping[Task, pd.DataFrame]
    absent: tuple[Task, ...]

    @property
    def all(self) -> list[pd.DataFrame]:
        return [table for table in (self.events, self.users, self.items) if table is not None]


def _read(dataset: Dataset) -> _Tables:
    events = _checked(dataset.events(), ("user", "item"), f"events of {dataset.name!r}")
    if not len(events):
        raise UserError(f"data set {dataset.name!r} has no event: its table is empty")
    tasks = [task for group in dataset.tasks for task in group if not task.events]
    found = {task: dataset.labels(task.name) for task in tasks}
    users, items = dataset.users(), dataset.items()
    return _Tables(
        events=events,
        users=None if users is None else _checked(users, ("user",), f"users of {dataset.name!r}"),
        items=None if items is None else _checked(items, ("item",), f"items of {dataset.name!r}"),
        labels={
            task: _checked(table, ("user", "id"), f"labels {task.name!r} of {dataset.name!r}")
            for task, table in found.items()
            if table is not None
        },
        absent=tuple(task for task, table in found.items() if table is None),
    )


def _checked(table: pd.DataFrame, needed: tuple[str, ...], where: str) -> pd.DataFrame:
    """The table, once its `needed` columns and its `time` are known to hold a value in every row."""
    for name in needed:
        if name not in table:
            raise UserError(
                f"{where}: no column {name!r} among {', '.join(map(str, table.columns))}{did_you_mean(name, table.columns)}"
            )
    for name in (*needed, "time"):
        if name in table and table[name].isna().any():
            raise UserError(f"{where}: no {name!r} in row {int(table[name].isna().to_numpy().argmax()) + 1}")
    if "time" in table and table["time"].dtype.kind not in "iu":
        raise UserError(f"{where}: column 'time' must hold int64 seconds, not {table['time'].dtype}")
    return table.reset_index(drop=True)


def _field(dataset: Dataset, column: pd.Series) -> Field:
    """What the data set declares, else the standard field, else a number where the column holds floats and an id elsewhere."""
    name = str(column.name)
    return dataset.fields.get(name) or _STANDARD.get(name) or Field(name, "number" if column.dtype.kind == "f" else "id")


def _flat(column: pd.Series) -> pd.Series:
    """All values of a column of lists, one after the other."""
    return pd.Series(list(chain.from_iterable(column))).infer_objects()


def _vocabularies(tables: _Tables, fields: Mapping[str, Field]) -> dict[str, Vocabulary]:
    """One vocabulary a space. The item space holds what events and labels name: a catalogue adds features, never items."""
    pieces: dict[str, list[np.ndarray]] = {"user": [], "item": []}
    for table in tables.all:
        for name in table:
            entry = fields.get(str(name))
            if entry is None or entry.kind != "id" or (table is tables.items and entry.space == "item"):
                continue
            column = _flat(table[name]) if entry.many else table[name]
            pieces.setdefault(entry.space, []).append(external(column.dropna()))
    for task, table in tables.labels.items():
        pieces["user"].append(external(table["user"]))
        pieces.setdefault(task.space, []).append(external(table["id"]))
    return {space: Vocabulary.of(kept) for space, kept in pieces.items()}


def _column(column: pd.Series, entry: Field, vocabulary: Mapping[str, Vocabulary]) -> np.ndarray:
    """A coded column: int32 ids (1 where missing), float32 numbers (NaN), int64 seconds; `many` is [N, M], padded with 0."""
    if entry.kind == "time":
        return column.to_numpy(np.int64)
    if entry.many:
        lengths = np.fromiter(map(len, column), np.int64, len(column))
        values = _column(_flat(column), replace(entry, many=False), vocabulary)
        block = np.zeros((len(column), max(int(lengths.max(initial=0)), 1)), values.dtype)
        block[np.arange(block.shape[1]) < lengths[:, None]] = values
        return block
    if entry.kind == "number":
        return _numbers(column)
    present = column.notna().to_numpy()
    if present.all():
        return vocabulary[entry.space].code(external(column)).astype(np.int32)
    coded = np.full(len(column), UNKNOWN, np.int32)
    coded[present] = vocabulary[entry.space].code(external(column[present]))
    return coded


def _numbers(column: pd.Series) -> np.ndarray:
    """[N] float32, NaN where missing. Raises UserError that names the row and the value which is no number."""
    if column.dtype.kind not in "iufb":
        read = pd.to_numeric(column, errors="coerce")
        wrong = (read.isna() & column.notna()).to_numpy()
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(f"column {str(column.name)!r}: row {row + 1} holds {column.iloc[row]!r}, which is no number")
        column = read
    return column.to_numpy(np.float32, na_value=np.nan)


def _split(column: pd.Series, where: str) -> np.ndarray:
    """Published split names -> [N] int8."""
    names = column.astype(str)
    wrong = sorted(set(names.unique()) - set(SPLITS))
    if wrong:
        raise UserError(f"{where}: unknown split {wrong[0]!r}; a row is one of {', '.join(SPLITS)}")
    return names.map({name: number for number, name in enumerate(SPLITS)}).to_numpy(np.int8)


def _events(
    table: pd.DataFrame, fields: Mapping[str, Field], vocabulary: Mapping[str, Vocabulary]
) -> tuple[Events, np.ndarray | None]:
    owner = vocabulary["user"].code(external(table["user"])) - FIRST
    keys = (table["time"].to_numpy(np.int64), owner) if "time" in table else (owner,)
    order = np.lexsort(keys)  # stable: equal times stay in row order
    counts = np.bincount(owner, minlength=len(vocabulary["user"]) - FIRST)
    named = {name: column for key, column in table.items() if (name := str(key)) in fields and name != "user"}
    columns = {name: _column(column, fields[name], vocabulary)[order] for name, column in named.items()}
    split = _split(table["split"], "events")[order] if "split" in table else None
    return Events(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), columns), split


def _features(
    table: pd.DataFrame, space: str, fields: Mapping[str, Field], vocabulary: Mapping[str, Vocabulary]
) -> dict[str, np.ndarray]:
    """Columns of a table of users or items, by coded id: {name: [n, ...]}; where an id has no row: 1, NaN, or no values."""
    ids = vocabulary[space].code(external(table[space]))
    features = {}
    for name in map(str, table.columns.drop(space)):
        column = _column(table[name], fields[name], vocabulary)
        missing = 0 if fields[name].many or fields[name].kind == "time" else UNKNOWN if fields[name].kind == "id" else np.nan
        features[name] = np.full((len(vocabulary[space]), *column.shape[1:]), missing, column.dtype)
        features[name][ids] = column
    return features


def _labels(table: pd.DataFrame, task: Task, events: Events, vocabulary: Mapping[str, Vocabulary], users: Vocabulary) -> Labels:
    """A label table by user; a request's history ends before the first event at its time or later."""
    user = users.code(external(table["user"])) - FIRST
    time = table["time"].to_numpy(np.int64) if "time" in table else None
    end = events.offsets[user + 1]
    if time is not None and "time" in events.fields:
        moments, rank = np.unique(events.fields["time"], return_inverse=True)
        span = len(moments) + 1
        end = np.searchsorted(events.owner * span + rank, user * span + np.searchsorted(moments, time))
    value = _numbers(table["value"]) if "value" in table else np.ones(len(table), np.float32)
    split = _split(table["split"], f"labels {task.name!r}") if "split" in table else None
    until = table["until"].to_numpy(np.int64) if "until" in table else None
    labels = Labels(user, vocabulary[task.space].code(external(table["id"])), value, end.astype(np.int64), split, time, until)
    return labels.take(np.lexsort((end, user) if time is None else (time, end, user)))


def _notes(events: Events) -> Iterable[str]:
    """What is counted, not refused: events recorded twice, users of one event."""
    if "time" in events.fields:
        time, owner = events.fields["time"], events.owner
        tied = (np.diff(time) == 0) & (np.diff(owner) == 0)
        tied = np.concatenate([tied, [False]]) | np.concatenate([[False], tied])
        rows = {name: column[tied] for name, column in events.fields.items() if column.ndim == 1}
        doubled = int(pd.DataFrame({"user": owner[tied], **rows}).duplicated().sum())
        if doubled:
            yield f"{doubled} duplicated events (equal in every field) are kept"
    single = int((events.lengths == 1).sum())
    if single:
        yield f"{single} users have one event: trained on, not evaluated"


def _unasked(tables: _Tables, items: Vocabulary) -> Iterable[str]:
    """What the tables name and nothing can ask about."""
    for task in tables.absent:
        yield f"task {task.name!r} is left out: its file is absent"
    if tables.items is not None:
        extra = int((items.code(external(tables.items["item"])) == UNKNOWN).sum())
        if extra:
            yield f"{extra} items of the catalogue are left out: no event or label names them"
