"""The same metrics for some of the users: how active they were in training, or a field of their profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from userec.dataset.events import Coded
from userec.dataset.split import Division
from userec.errors import UserError, unknown
from userec.evaluator import statistics
from userec.evaluator.contract import Metric
from userec.schema import FIRST

ACTIVITY = "activity"
COLD = 10
"""Users of fewer training events are cold."""

HEAD = 0.2
"""Share of the other users, the most active, that is the head."""

MOST = 50
"""Values of a profile field that become slices, the most frequent."""

QUARTERS = (0, 0.25, 0.5, 0.75, 1)
"""Where the users are parted by a number of their profile."""


@dataclass(frozen=True)
class Slice:
    """Some of the users."""

    name: str  # activity=cold
    rule: str  # training_events<10
    members: np.ndarray  # [U] bool, by coded user row


def slices_of(names: Iterable[str], coded: Coded, division: Division) -> list[Slice]:
    """The slices of each name. Raises UserError for one that is neither `activity` nor a field of the profile with one value."""
    found: list[Slice] = []
    for name in names:
        if name == ACTIVITY:
            found += _by_activity(division.train.lengths)
        elif name not in coded.profile:
            raise unknown("slice", name, (ACTIVITY, *coded.profile))
        elif coded.schema.fields[name].many:
            raise UserError(f"slice {name!r}: a user has several values of it; choose a field with one")
        else:
            found += _by_value(name, coded)
    return found


def _by_activity(events: np.ndarray) -> Iterator[Slice]:
    """`events` [U] in training: cold, tail and head."""
    warm = np.sort(events[events >= COLD])
    least = int(warm[int(len(warm) * (1 - HEAD))]) if len(warm) else COLD
    yield Slice("activity=cold", f"training_events<{COLD}", events < COLD)
    yield Slice("activity=tail", f"{COLD}<=training_events<{least}", (events >= COLD) & (events < least))
    yield Slice("activity=head", f"training_events>={least}", events >= least)


def _by_value(name: str, coded: Coded) -> Iterator[Slice]:
    """One slice a value; of a number, one a quarter of the users."""
    field, column = coded.schema.fields[name], coded.profile[name]
    if field.kind == "id":
        counts = np.bincount(column[column >= FIRST], minlength=FIRST)
        frequent = np.argsort(-counts, kind="stable")[:MOST]
        for value in np.sort(frequent[counts[frequent] > 0]):
            told = str(coded.vocabulary[field.space].decode(np.array([value]))[0])
            yield Slice(f"{name}={told}", f"{name}={told}", column == value)
        return
    known = column[~np.isnan(column)] if column.dtype.kind == "f" else column
    edges = np.unique(np.quantile(known, QUARTERS, method="inverted_cdf")) if len(known) else known  # numbers that occur
    for low, high in pairwise(edges) if len(edges) > 1 else zip(edges, edges, strict=True):
        last = high == edges[-1]
        inside = (column >= low) & ((column <= high) if last else (column < high))
        least, most = _plain(low), _plain(high)
        yield Slice(f"{name}={least}..{most}", f"{least}<={name}{'<=' if last else '<'}{most}", inside)


def _plain(number: np.generic) -> str:
    """The shortest text that is this number and no other of its type."""
    return str(number).removesuffix(".0")


def restrict(metric: Metric, part: Slice, seed: int) -> Metric | None:
    """The metric over the slice's users; None where it has none, or is of all users together (coverage)."""
    if metric.users is None:
        return None
    inside = part.members[metric.users]
    n = int(inside.sum())
    if not n:
        return None
    told = f"{metric.definition[:-1]}," if metric.definition.endswith("]") else f"{metric.definition}["
    alike = replace(metric, slice=part.name, n=n, definition=f"{told}slice={part.rule}]", users=None, values=None, measure=None)
    if metric.values is not None:
        own = metric.values[inside]
        lows, highs = statistics.intervals(own[:, None], seed)
        return replace(alike, value=float(own.mean()), low=float(lows[0]), high=float(highs[0]))
    if metric.measure is None:
        return None
    whole, places = metric.measure, np.flatnonzero(inside)

    def measure(weights: np.ndarray) -> np.ndarray:
        return np.concatenate([whole(_widened(part, places, len(inside))) for part in _portions(weights, len(inside))])

    low, high = statistics.bounds(measure, n, seed, work=len(inside))
    return replace(alike, value=float(measure(np.ones((1, n)))[0]), low=low, high=high)


def _portions(weights: np.ndarray, users: int) -> list[np.ndarray]:
    """`weights` [R, n] in so few rows each that all `users` fit beside them."""
    step = max(statistics.DRAWS // users, 1)
    return [weights[start : start + step] for start in range(0, len(weights), step)]


def _widened(weights: np.ndarray, places: np.ndarray, users: int) -> np.ndarray:
    """`weights` [R, n] of the users at `places` [n] as weights of all `users`, [R, U]."""
    wide = np.zeros((len(weights), users))
    wide[:, places] = weights
    return wide
