"""Label rules: what a log of actions says about items that were shown, or which items were right.

`pv -> buy` makes a task of shown items, `buy`: the first `pv` of a user and an item is a request at its time, right where that
user does `buy` with that item later and within `hours`, else wrong. A request whose `hours` reach past the last event is unknown,
not wrong, and is left out. `buy` alone makes a task of right answers only: the first `buy` of a user and an item at its time;
objective and evaluator draw the wrong ones. `pv|fav -> cart|buy` joins actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from userec.errors import UserError, did_you_mean
from userec.schema import Task

Ints = NDArray[np.int64]

HOUR: Final = 3600
"""Seconds."""


@dataclass(frozen=True)
class Rule:
    """`asked -> right`; nothing in `asked` where only right answers are known."""

    asked: tuple[str, ...]
    right: tuple[str, ...]

    @property
    def task(self) -> Task:
        """Named after what is right: `buy`, `cart_buy`."""
        return Task("_".join(self.right), "click" if self.asked else "item", "item")


def parse_rule(text: str, actions: Sequence[str]) -> Rule:
    """`A -> B` or `B`. Raises UserError that names the rule and the word in it which is none of `actions`."""
    sides = [tuple(dict.fromkeys(word.strip() for word in side.split("|"))) for side in text.split("->")]
    if len(sides) > 2:
        raise UserError(f"label rule {text!r} has {len(sides) - 1} arrows; write A -> B or B, of {', '.join(actions)}")
    for word in (word for side in sides for word in side):
        if word not in actions:
            close = did_you_mean(word, actions).partition("; known")[0]
            raise UserError(
                f"label rule {text!r} names {word!r}, which is no action{close}\n"
                f"write A -> B or B; actions are {', '.join(actions)}, and several are joined by |"
            )
    return Rule((), sides[0]) if len(sides) == 1 else Rule(sides[0], sides[1])


def label(table: pd.DataFrame, rule: Rule, hours: float | None, end: int) -> tuple[pd.DataFrame, int]:
    """(`user`, `id`, `value`, `time`; requests left out because their `hours` reach past `end`), by user and item.

    `table` has `user` and `item` (int32), `action` and `time`; `end` is the time of the last event."""
    key = table["user"].to_numpy(np.int64) << 31 | table["item"].to_numpy(np.int64)  # [E]
    time, action = table["time"].to_numpy(), table["action"]
    right = action.isin(rule.right).to_numpy()
    asked = action.isin(rule.asked).to_numpy() if rule.asked else right
    pair, moment = _firsts(key[asked], time[asked])
    value, unknown = np.ones(len(pair), np.float32), 0
    until = {}
    if rule.asked:
        wait = _wait(pair, moment, key[right], time[right])
        value = np.isfinite(wait).astype(np.float32)
        if hours is not None:
            value = (wait <= hours * HOUR).astype(np.float32)
            known = moment + hours * HOUR <= end
            unknown = int((~known).sum())
            pair, moment, value = pair[known], moment[known], value[known]
            until = {"until": moment + round(hours * HOUR)}
    return pd.DataFrame({"user": pair >> 31, "id": pair & 2**31 - 1, "value": value, "time": moment, **until}), unknown


def _firsts(key: Ints, time: Ints) -> tuple[Ints, Ints]:
    """Each key once, ascending, with its earliest time."""
    order = np.lexsort((time, key))
    key = key[order]
    first = np.flatnonzero(np.diff(key, prepend=-1))
    return key[first], time[order][first]


def _wait(pair: Ints, moment: Ints, key: Ints, time: Ints) -> NDArray[np.float64]:
    """Seconds from `moment` [N] to the next `time` [M] that is later and has the same key, [N]; infinite where none is."""
    wait = np.full(len(pair), np.inf)
    if not len(key):
        return wait
    order = np.lexsort((time, key))
    key, time = key[order], time[order]
    keys, number = np.unique(key, return_inverse=True)
    moments, rank = np.unique(time, return_inverse=True)
    span = len(moments) + 1
    at = np.searchsorted(keys, pair).clip(max=len(keys) - 1)
    place = np.searchsorted(number * span + rank, at * span + np.searchsorted(moments, moment, side="right"))
    place = place.clip(max=len(key) - 1)
    found = (key[place] == pair) & (time[place] > moment)
    wait[found] = time[place[found]] - moment[found]
    return wait
