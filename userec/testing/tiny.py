"""Tiny data with every kind of field: a schema, histories, and a generated data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from userec.batch import Batch, History, Query, Targets, gather_positions
from userec.dataset.contract import Dataset
from userec.dataset.events import Events
from userec.schema import FIRST, NEXT, Field, Schema, Task

ITEMS: Final = 24
CATEGORIES: Final = 4
START: Final = 1_600_000_000

CLICK: Final = Task("click", "click", "item")
LIKE: Final = Task("like", "click", "item")
GROUP: Final = Task("group", "label", "group")
SCORE: Final = Task("score", "rating", "item")

FIELDS: Final = {
    field.name: field
    for field in (
        Field("time", "time"),
        Field("rating", "number"),
        Field("action"),
        Field("profile.age"),
        Field("item.category"),
    )
}


def tiny_schema(extra: Iterable[str] = ()) -> Schema:
    """Items, times, ratings, actions, a profile, a category; tasks next, click + like (asked together), group (a label),
    score (a rating).

    `extra` fields that are not among these become id fields of four values."""
    more = {name: Field(name) for name in sorted(extra) if name not in {*FIELDS, "user", "item", "asked.time"}}
    spaces = {"user": 16, "item": ITEMS, "action": 3, "profile.age": 3, "item.category": CATEGORIES, "group": 4}
    spaces |= dict.fromkeys(more, 4)
    sizes = {space: FIRST + n for space, n in spaces.items()}
    return Schema({**FIELDS, **more}, sizes, ((NEXT,), (CLICK, LIKE), (GROUP,), (SCORE,)))


def tiny_catalog(schema: Schema) -> dict[str, dict[str, Tensor]]:
    """{space: {field: [n]}}: each item's features, reserved rows 0; items of one category have neighbouring ids."""
    n = schema.spaces["item"]
    columns = {}
    for name, field in schema.fields.items():
        if name.startswith("item."):
            column = FIRST + torch.arange(n) % (schema.spaces[field.space] - FIRST)
            column[:FIRST] = 0
            columns[name] = column
    return {"item": columns}


def tiny_history(
    seed: int = 0,
    rows: int = 6,
    length: int = 8,
    fields: Iterable[str] | None = None,
    schema: Schema | None = None,
    tasks: tuple[str, ...] = ("next",),
    shortest: int = 0,
) -> History:
    """Random right-padded rows of `shortest`..`length` events; the first is full, the second as short as allowed.

    `fields` keeps only those (item always), as an encoder that declares them would be given."""
    schema = tiny_schema() if schema is None else schema
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, length + 1, (rows,), generator=rng)
    lengths[0] = length
    lengths[1:2] = shortest
    mask = torch.arange(length) < lengths[:, None]  # [B, L]
    names = ["item", *(name for name in schema.fields if "." not in name)]
    events = {name: _column(schema, name, (rows, length), rng) for name in names}
    asked = _times((rows, length), rng)
    if length:
        asked[:, :-1] = events["time"][:, 1:]  # the question after event l is put when event l + 1 happens
        asked[:, -1] = events["time"][:, -1] + 60
    profile = {name: _column(schema, name, (rows,), rng) for name in schema.fields if name.startswith("profile.")}
    history = History(
        user=FIRST + torch.randperm(schema.spaces["user"] - FIRST, generator=rng)[torch.arange(rows) % 16],
        events={name: column.masked_fill(~mask, 0) for name, column in events.items()},
        mask=mask,
        profile=profile,
        tasks=tasks,
        asked={"asked.time": asked.masked_fill(~mask, 0)},
    )
    return history if fields is None else only(history, fields)


def _column(schema: Schema, name: str, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    field = schema.fields.get(name, Field(name))
    if field.kind == "time":
        return _times(shape, rng)
    if field.kind == "number":
        return torch.randint(1, 6, shape, generator=rng).float()
    return torch.randint(FIRST, schema.spaces[field.space], shape, generator=rng)


def _times(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    return START + torch.randint(1, 100_000, shape, generator=rng).cumsum(-1)


def tiny_events(schema: Schema | None = None) -> Events:
    """Training events of every user, 1 to 12 of each, with every field of an event."""
    schema = tiny_schema() if schema is None else schema
    history = tiny_history(9, schema.spaces["user"] - FIRST, 12, schema=schema, shortest=1)
    offsets = np.concatenate([[0], np.cumsum(history.lengths.numpy())])
    return Events(offsets, {name: column[history.mask].numpy() for name, column in history.events.items()})


def only(history: History, fields: Iterable[str]) -> History:
    """The history with those fields alone; `item` always."""
    kept = {"item", *fields}

    def sift(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: column for name, column in columns.items() if name in kept}

    return replace(history, events=sift(history.events), profile=sift(history.profile), asked=sift(history.asked))


def pad(history: History, count: int) -> History:
    """`count` more pads at the end of every row."""

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(x.shape[0], count, *x.shape[2:])], 1)

    events = {name: longer(x) for name, x in history.events.items()}
    asked = {name: longer(x) for name, x in history.asked.items()}
    return replace(history, events=events, mask=longer(history.mask), asked=asked)


def rows_of(history: History, index: Tensor) -> History:
    """Those rows, in that order, cut to the longest of them (at least one column)."""
    width = max(1, int(history.lengths[index].max()))

    def pick(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x[index, :width] for name, x in columns.items()}

    return replace(
        history,
        user=history.user[index],
        events=pick(history.events),
        mask=history.mask[index, :width],
        profile={name: x[index] for name, x in history.profile.items()},
        asked=pick(history.asked),
        state=None if history.state is None else {name: x[index] for name, x in history.state.items()},
    )


def span(history: History, start: Tensor, stop: Tensor) -> History:
    """Events `start`..`stop` - 1 of each row ([B] each), right-padded to the longest span (at least one column)."""
    stop = torch.minimum(stop, history.lengths)
    width = max(1, int((stop - start).max()))
    position = start[:, None] + torch.arange(width)  # [B, W]
    mask = position < stop[:, None]
    position = position.clamp(max=history.mask.shape[1] - 1)

    def pick(columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: gather_positions(x, position).masked_fill(~mask, 0) for name, x in columns.items()}

    return replace(history, events=pick(history.events), mask=mask, asked=pick(history.asked))


def changed_after(history: History, at: Tensor, seed: int = 99, schema: Schema | None = None) -> History:
    """Every event after `at` [B] replaced by another, and every question after `at`; lengths and order of time stay."""
    rows, length = history.mask.shape
    other = tiny_history(seed, rows, length, schema=schema, shortest=length)
    later = (torch.arange(history.mask.shape[1]) > at[:, None]) & history.mask  # [B, L]

    def swap(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.where(later, _shifted(name, x, theirs[name]), x) for name, x in mine.items()}

    return replace(history, events=swap(history.events, other.events), asked=swap(history.asked, other.asked))


def _shifted(name: str, old: Tensor, new: Tensor) -> Tensor:
    if name.endswith("time"):
        return old.amax(1, keepdim=True) + (new - START)  # later than all that is kept
    return torch.where(new == old, FIRST if old.dtype == torch.int64 else 0.5, new).to(old.dtype)


def ask(history: History, at: Tensor, ids: Tensor | None = None) -> Query:
    """The question at `at` [B, Q], with what the history knows of it (`asked`) as its context."""
    return Query(at, ids, {name: gather_positions(x, at) for name, x in history.asked.items()})


def tiny_batch(seed: int = 0, rows: int = 6, length: int = 8, task: str = "next", shortest: int = 1) -> Batch:
    """A batch as the loader gives it for training. `next`: rows of events, no item twice in a row. A task with labels (`click`,
    `group`): also its question after the last event, `answer` [B, 1] and `labels` [B, 1, 1, 1]."""
    schema = tiny_schema()
    history = tiny_history(seed, rows, length, schema=schema, tasks=(task,), shortest=shortest)
    rng = torch.Generator().manual_seed(seed + 1)
    items = torch.stack([torch.randperm(ITEMS, generator=rng)[:length] + FIRST for _ in range(rows)])
    history = replace(history, events={**history.events, "item": items.masked_fill(~history.mask, 0)})
    users, ends = torch.arange(rows), torch.arange(rows) * length + history.lengths
    if schema.task(task).events:
        return Batch(history, None, users, ends)
    answer = torch.randint(FIRST, schema.spaces[schema.task(task).space], (rows, 1), generator=rng)
    query = ask(history, history.last[:, None])
    return Batch(history, Targets(query, answer, torch.ones(rows, 1, 1, 1)), users, ends)


class TinyDataset(Dataset):
    """60 generated users in 4 clusters of taste: most events are of the own cluster, walked in order; age follows it.

    External ids are strings; times, ratings and actions; labels of four tasks. It needs no files."""

    name = "tiny"
    fields = FIELDS
    tasks = ((NEXT,), (CLICK, LIKE), (GROUP,), (SCORE,))
    summary = "60 generated users, 24 items in 4 clusters"
    users_count = 60
    events_each = 12

    def events(self) -> pd.DataFrame:
        """720 rows: `user item time rating action`."""
        rng = np.random.default_rng(7)
        shape = (self.users_count, self.events_each)
        size = ITEMS // CATEGORIES
        cluster = (np.arange(self.users_count) % CATEGORIES)[:, None]
        own = cluster + CATEGORIES * ((rng.integers(0, size, shape[0])[:, None] + np.arange(shape[1])) % size)  # [users, events]
        item = np.where(rng.random(shape) < 0.8, own, rng.integers(0, ITEMS, shape))
        return pd.DataFrame(
            {
                "user": np.repeat([f"u{i}" for i in range(shape[0])], shape[1]),
                "item": [f"i{i}" for i in item.ravel()],
                "time": (START + np.cumsum(rng.integers(1, 9_000, shape), 1)).ravel(),
                "rating": np.where(item % CATEGORIES == cluster, 5.0, 2.0).ravel(),
                "action": np.array(["view", "buy"])[(rng.random(shape) < 0.2).astype(int).ravel()],
            }
        )

    def users(self) -> pd.DataFrame:
        """`user profile.age`: the age is young in clusters 0 and 1, old in 2 and 3."""
        cluster = np.arange(self.users_count) % CATEGORIES
        ages = np.where(cluster < 2, "young", "old")
        return pd.DataFrame({"user": [f"u{i}" for i in range(self.users_count)], "profile.age": ages})

    def items(self) -> pd.DataFrame:
        """`item item.category`: the cluster."""
        return pd.DataFrame(
            {"item": [f"i{i}" for i in range(ITEMS)], "item.category": [f"c{i % CATEGORIES}" for i in range(ITEMS)]}
        )

    def labels(self, task: str) -> pd.DataFrame | None:
        """`group`: the user's cluster. `click`, `like`: two items of the own cluster with 1.0 and one of another with 0.0.
        `score`: the events' own ratings, at their times."""
        if task == SCORE.name:
            return self.events()[["user", "item", "rating", "time"]].rename(columns={"item": "id", "rating": "value"})
        index = np.arange(self.users_count)
        users = np.array([f"u{i}" for i in index])
        if task == GROUP.name:
            return pd.DataFrame({"user": users, "id": [f"g{i % CATEGORIES}" for i in index]})
        step = 0 if task == CLICK.name else 8
        items = np.stack([(index + CATEGORIES + step) % ITEMS, (index + 2 * CATEGORIES + step) % ITEMS, (index + 1) % ITEMS], 1)
        value = np.tile([1.0, 1.0, 0.0], self.users_count)
        return pd.DataFrame({"user": np.repeat(users, 3), "id": [f"i{i}" for i in items.ravel()], "value": value})
