"""Splits: which events train, which questions are asked of the rest, and whether the split leaks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import Field as Setting
from pydantic import model_validator

from userec.config import Config
from userec.dataset.events import Coded, Events, Labels, Vocabulary
from userec.errors import UserError
from userec.schema import FIRST, Kind

Target = Literal["last", "first", "random", "all", "successive"]


class SplitConfig(Config):
    """How to split, and which events of a held-out stretch are asked for.

    `last`, `first`, `random`: one event a user, its history all that stands before it. `all`: one question a user, put
    before the stretch, every event of it relevant. `successive`: one question an event."""

    name: Literal["auto", "by_time", "leave_last", "by_user", "given"] = "auto"
    target: Target = "last"
    valid: float = Setting(0.1, ge=0, lt=1)
    test: float = Setting(0.1, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.valid + self.test >= 1:
            raise ValueError("valid and test must leave a share for training")
        if self.name == "leave_last" and self.target != "last":
            raise ValueError("leave_last asks for the last event; another target needs by_time, by_user or given")
        return self


@dataclass(frozen=True)
class Questions:
    """One row a question: the history is the events of `user` before `end`, the answer a set of ids.

    Of `click` and `rating` tasks every candidate that a label judges is among the ids, and `values` says how."""

    user: np.ndarray  # [N] int64 row
    end: np.ndarray  # [N] int64 absolute event index
    offsets: np.ndarray  # [N + 1] int64
    ids: np.ndarray  # [sum P] int64 coded ids, each once a question
    time: np.ndarray | None = None  # [N] int64 time of the request: of its first target
    values: np.ndarray | None = None  # [sum P] float32: right (1) or wrong (0), or a rating; None = all are right

    def __len__(self) -> int:
        return len(self.user)


@dataclass(frozen=True)
class Division:
    """A data set divided."""

    name: str
    config: SplitConfig
    train: Events
    kept: np.ndarray  # [E_train] int64: where each training event stands among all events
    questions: Mapping[tuple[str, str], Questions]  # (split, task)
    train_labels: Mapping[str, Labels]
    leaky: bool | None
    note: str

    @cached_property
    def repeats(self) -> float:
        """Share of training events whose item stands earlier in the same user's history."""
        item = self.train.fields["item"]
        pairs = np.sort(self.train.owner * (int(item.max()) + 1) + item)  # `np.unique` hashes, and is far slower
        return float((pairs[1:] == pairs[:-1]).sum()) / len(pairs)


def ragged(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
    """All indices of the stretches start[i]:stop[i], one after the other: [sum (stop - start)] int64."""
    lengths = stop - start
    return np.repeat(start - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())


def divide(coded: Coded, config: SplitConfig) -> Division:
    """Divide events and labels. Raises UserError where the split cannot be made or asks nothing."""
    name = _choose(coded, config)
    events = coded.events
    rank = np.random.default_rng(config.seed).permutation(events.users)  # [U]: the lowest ranks are held out
    part = _PARTS[name](coded, config, rank)
    train = part == 0
    if not train.any():
        raise UserError(f"split {name!r} leaves no event for training; choose smaller shares or another split{_others(name)}")
    questions = {}
    for number, split in _HELD:
        asked = _ask(events, part == number, config.target, np.random.default_rng((config.seed, number)))
        questions.update({(split, task.name): asked for task in coded.schema.all_tasks if task.events})
    train_labels = {}
    for task, labels in coded.labels.items():
        parts = _label_parts(name, coded, labels, config, rank)
        known = labels.until < _cuts(coded, config)[0] if labels.until is not None and name == "by_time" else True
        train_labels[task] = _cut(labels.take((parts == 0) & known), events, _horizon(events, train))
        kind = coded.schema.task(task).kind
        questions.update({(split, task): ask_labels(labels.take(parts == number), events, kind) for number, split in _HELD})
    if not any(len(asked) for (split, _), asked in questions.items() if split == "test"):
        raise UserError(f"split {name!r} asks nothing of the test part: no held-out event has a history before it{_others(name)}")
    leaky, note = _judge(coded, train, questions)
    return Division(name, config, events.take(train), np.flatnonzero(train), questions, train_labels, leaky, note)


_HELD = ((1, "valid"), (2, "test"))


def _others(name: str) -> str:
    return f"; others are {', '.join(sorted(set(_PARTS) - {name}))}"


def _choose(coded: Coded, config: SplitConfig) -> str:
    timed = "time" in coded.events.fields
    name = config.name
    if name == "auto":
        name = "given" if coded.split is not None else coded.default_split or ("by_time" if timed else "leave_last")  # type: ignore[assignment]
    if name == "given" and coded.split is None:
        raise UserError(
            f"data set {coded.name!r} publishes no split: add a column 'split' or a test file, or choose {_others(name)[2:]}"
        )
    if name == "by_time" and not timed:
        raise UserError(f"split 'by_time' needs times and data set {coded.name!r} has none{_others(name)}")
    if name == "leave_last" and config.target != "last":
        raise UserError(f"split 'leave_last' asks for the last event, not target={config.target!r}{_others(name)}")
    return name


# Parts of events: [E] int8, 0 train, 1 valid, 2 test, -1 neither (history of a held-out user).


def _by_time(coded: Coded, config: SplitConfig, rank: np.ndarray) -> np.ndarray:
    """Global cuts at quantiles of the event times; equal times stay on one side, the later."""
    return _after(_cuts(coded, config), coded.events.fields["time"])


def _cuts(coded: Coded, config: SplitConfig) -> np.ndarray:
    """The times at which validation and test begin: [2] int64. Where labels end before the events do (what was asked last is not
    known yet), it is the time up to there that is divided, so that every task is tested; later events are of the test part."""
    time = coded.events.fields["time"]
    time = time[time <= min([time.max(), *(x.time.max() for x in coded.labels.values() if x.time is not None and len(x.time))])]
    last = len(time) - 1
    cuts = [min(round(len(time) * share), last) for share in (1 - config.valid - config.test, 1 - config.test)]
    return np.partition(time, cuts)[cuts]


def _after(cuts: np.ndarray, time: np.ndarray) -> np.ndarray:
    """[N] int8: how many of the cuts each time has reached."""
    return np.searchsorted(cuts, time, side="right").astype(np.int8)


def _leave_last(coded: Coded, config: SplitConfig, rank: np.ndarray) -> np.ndarray:
    """The published leave-one-out: the last event tests, the one before validates, of users with at least three."""
    part = np.zeros(len(coded.events), np.int8)
    last = coded.events.offsets[1:][coded.events.lengths >= 3] - 1
    part[last], part[last - 1] = 2, 1
    return part


def _by_user(coded: Coded, config: SplitConfig, rank: np.ndarray) -> np.ndarray:
    """All events of held-out users; their first event is only ever history."""
    events = coded.events
    part = _held_out(np.arange(events.users), rank, config)[events.owner]
    first = events.offsets[:-1][events.lengths > 0]
    part[first[part[first] > 0]] = -1
    return part


def _given(coded: Coded, config: SplitConfig, rank: np.ndarray) -> np.ndarray:
    """The published split; where it has no validation part, the last training event of users with at least three."""
    assert coded.split is not None
    part = np.array(coded.split, np.int8)
    if config.valid and not (part == 1).any():
        train = np.flatnonzero(part == 0)
        stop = np.searchsorted(train, coded.events.offsets)
        part[train[stop[1:][np.diff(stop) >= 3] - 1]] = 1
    return part


_PARTS: Mapping[str, Callable[[Coded, SplitConfig, np.ndarray], np.ndarray]] = {
    "by_time": _by_time,
    "leave_last": _leave_last,
    "by_user": _by_user,
    "given": _given,
}


def _held_out(members: np.ndarray, rank: np.ndarray, config: SplitConfig) -> np.ndarray:
    """Part of each user row [U] int8: the members of lowest rank test, the next validate."""
    order = members[np.argsort(rank[members])]
    test = round(config.test * len(members))
    part = np.zeros(len(rank), np.int8)
    part[order[:test]], part[order[test : test + round(config.valid * len(members))]] = 2, 1
    return part


def _ask(events: Events, held: np.ndarray, target: Target, rng: np.random.Generator) -> Questions:
    """Questions about the held-out events by the target rule; those without any history are left out."""
    picked = np.flatnonzero(held)
    if target == "random":
        picked = picked[picked > events.offsets[events.owner[picked]]]
    bounds = np.searchsorted(picked, events.offsets)
    user = np.flatnonzero(np.diff(bounds))
    low, high = bounds[:-1][user], bounds[1:][user]  # held-out stretch of each user, in `picked`
    if target == "successive":
        user, low, high = np.repeat(user, high - low), np.arange(len(picked)), np.arange(len(picked)) + 1
    elif target == "last":
        low = high - 1
    elif target != "all":
        low = low if target == "first" else low + np.floor(rng.random(len(user)) * (high - low)).astype(np.int64)
        high = low + 1
    known = picked[low] > events.offsets[user]
    user, low, high = user[known], low[known], high[known]
    end = picked[low]
    ids = events.fields["item"][picked[ragged(low, high)]]
    offsets, kept = _sets(np.repeat(np.arange(len(user)), high - low), ids, len(user))
    return Questions(
        user, end, offsets, ids[kept].astype(np.int64), events.fields["time"][end] if "time" in events.fields else None
    )


def _label_parts(name: str, coded: Coded, labels: Labels, config: SplitConfig, rank: np.ndarray) -> np.ndarray:
    """Part of each label [N] int8: as published; where requests have times, by_time and leave_last divide them as they divide the
    events; else by user."""
    if labels.split is not None:
        return labels.split
    if name == "by_user":
        return _held_out(np.arange(coded.events.users), rank, config)[labels.user]
    if labels.time is not None and name == "by_time":
        return _after(_cuts(coded, config), labels.time)
    if labels.time is not None and name == "leave_last":
        request = np.cumsum(_first_rows(labels)) - 1  # [N]
        _, which, counts = np.unique(labels.user, return_inverse=True, return_counts=True)
        last = request[np.cumsum(counts) - 1]  # [U]: each user's last request
        several = np.diff(last, prepend=-1) >= 3
        later = (last[which] - request).clip(max=2)  # requests of the same user that follow
        return np.where(several[which], 2 - later, 0).astype(np.int8)
    return _held_out(np.unique(labels.user), rank, config)[labels.user]


def ask_labels(labels: Labels, events: Events, kind: Kind) -> Questions:
    """One question for each user and request. Rows are sorted by (user, end, time).

    Relevant are the positive labels; of a `click` or `rating` task every label counts, with its value."""
    judged = kind in ("click", "rating")
    known = ~np.isnan(labels.value) if judged else labels.value > 0
    labels = labels.take(known & (labels.end > events.offsets[labels.user]))
    new = _first_rows(labels)
    offsets, kept = _sets(np.cumsum(new) - 1, labels.id, int(new.sum()))
    time = None if labels.time is None else labels.time[new]
    values = labels.value[kept] if judged else None
    return Questions(labels.user[new], labels.end[new], offsets, labels.id[kept].astype(np.int64), time, values)


def _first_rows(labels: Labels) -> np.ndarray:
    """Where a request begins: [N] bool."""
    new = np.arange(len(labels.user)) == 0
    for key in (labels.user, labels.end, labels.time):
        if key is not None:
            new[1:] |= np.diff(key) != 0
    return new


def _sets(question: np.ndarray, ids: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Each question's ids once, where they first appear: offsets [count + 1] and the kept rows [sum P]."""
    kept = np.arange(len(ids))
    if len(ids) > count:
        ids = ids.astype(np.int64)
        _, kept = np.unique(question * (ids.max() + 1) + ids, return_index=True)
        kept.sort()
    return np.concatenate([[0], np.cumsum(np.bincount(question[kept], minlength=count))]).astype(np.int64), kept


def _horizon(events: Events, train: np.ndarray) -> np.ndarray:
    """Where each user's training history ends: at his first event that does not train, [U] int64."""
    held = np.append(np.flatnonzero(~train), len(events))
    return np.minimum(held[np.searchsorted(held, events.offsets[:-1])], events.offsets[1:])


def _cut(labels: Labels, events: Events, horizon: np.ndarray) -> Labels:
    """Training labels see training events only; a label that then has no history is left out."""
    cut = replace(labels, end=np.minimum(labels.end, horizon[labels.user]), split=None)
    return cut.take(cut.end > events.offsets[cut.user])


def _judge(coded: Coded, train: np.ndarray, questions: Mapping[tuple[str, str], Questions]) -> tuple[bool | None, str]:
    """Whether training knows the time of the test, and one line that says so and how much of the test is unseen."""
    task = next((task.name for task in coded.schema.all_tasks if task.events), None)
    if task is None:
        return None, "no task asks about events: a leak in time does not arise"
    events, test = coded.events, questions["test", task]
    if not len(test):
        return None, f"task {task!r} has no test question"
    users, first = np.unique(test.user, return_index=True)
    leaks = []
    if test.time is not None:
        late = (events.fields["time"] > test.time.min()) & train
        if late.any():
            leaks.append(f"{late.sum() / train.sum():.1%} of training events are later than the earliest test target")
    last = np.searchsorted(np.flatnonzero(train), events.offsets[users + 1])  # [U]: training events up to each user's end
    after = np.append(-1, np.flatnonzero(train))[last] >= np.minimum.reduceat(test.end, first)
    if after.any():
        leaks.append(f"{after.mean():.1%} of test users have training events after their test question")
    leaky = True if leaks else None if test.time is None else False
    sound = (
        "no times: a leak cannot be checked"
        if leaky is None
        else "not leaky: no training event is later than the earliest test target"
    )
    note = f"leaky: {', '.join(leaks)}" if leaks else sound
    unseen = ~np.isin(test.ids, events.fields["item"][train])
    new = np.bincount(events.owner[train], minlength=events.users)[users] == 0
    silent = "" if len(questions["valid", task]) else "; no validation question"
    return leaky, f"{note}; unseen in training: {new.mean():.1%} of test users, {unseen.mean():.1%} of test targets{silent}"


def target_hash(coded: Coded, division: Division) -> str:
    """16 hex digits over the evaluated targets: split, task, external user and ids, judged values. Row order and coding do not
    matter: a question is the sum of its candidates' hashes, a task the sorted hashes of its questions."""
    whole = hashlib.sha256()
    for (split, task), asked in sorted(division.questions.items()):
        if not len(asked):
            continue
        parts = _mixed(_named(coded.vocabulary[coded.schema.task(task).space], asked.ids))  # [sum P]
        if asked.values is not None:
            values = asked.values.astype(np.float32) + np.float32(0)  # -0 is 0
            parts = _mixed(parts + values.view(np.uint32))
        sums = np.append(np.uint64(0), np.cumsum(parts))  # modulo 2^64
        rows = _named(coded.vocabulary["user"], asked.user + FIRST) + _mixed(sums[asked.offsets[1:]] - sums[asked.offsets[:-1]])
        whole.update(json.dumps([split, task, len(asked)]).encode())
        whole.update(np.sort(_mixed(rows)).astype("<u8").tobytes())
    return whole.hexdigest()[:16]


def _named(vocabulary: Vocabulary, ids: np.ndarray) -> np.ndarray:
    """uint64 of each id's external name [N]; each name is hashed once."""
    used = np.flatnonzero(np.bincount(ids, minlength=len(vocabulary)))
    table = np.zeros(len(vocabulary), np.uint64)
    names = (hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in vocabulary.decode(used).tolist())
    table[used] = np.frombuffer(b"".join(names), "<u8")
    return table[ids]


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014) of uint64 [N]."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
