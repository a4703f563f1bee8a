"""Taobao's UserBehavior (Tianchi's data set 649; used by SIM, DIEN, MIMN): clicks, carts, favourites and purchases of nine days.

One file without a header, `user,item,category,behavior,timestamp`, read straight from Tianchi's zip or unpacked:

    1,2268318,2520377,pv,1511544070

Behaviours are `pv` (the item's page was opened), `cart`, `fav` and `buy`. The published days are 2017-11-25 to 2017-12-03 in
China Standard Time; some rows carry a time far outside, by years, and are left out unless told otherwise.

The task beside the next item is made by a label rule (`rules.py`), `pv -> buy` within a day unless told otherwise. A request
sees what its user did strictly earlier, with this item too, and nothing of its own second. Under the split `by_time` requests are
divided by their own time, and those whose `hours` reach past the first cut do not train; a rule without `hours` has no such end:
its training labels may look into the test's days.

The tables hold 21 bytes an event. Of the whole file, 100 million events, reading needs about 6 GB at its peak and a rule about
13; what the core makes of the tables comes on top. The text is never held whole."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, Final, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv
from pydantic import Field as Setting

from userec.config import Config
from userec.dataset.contract import Dataset, Source
from userec.dataset.download import DAMAGE
from userec.errors import UserError
from userec.schema import NEXT, Field, Task
from userec_datasets import sample
from userec_datasets.rules import label, parse_rule

ACTIONS: Final = ("pv", "cart", "fav", "buy")
FILE: Final = "UserBehavior.csv"
COLUMNS: Final = ("user", "item", "category", "behavior", "time")
OPENS: Final = 1_511_539_200
"""2017-11-25 00:00 in China Standard Time (UTC+8), seconds."""
CLOSES: Final = OPENS + 9 * 86_400
"""2017-12-04 00:00, the first moment after the published days."""
LARGEST: Final = {"user": 2**31 - 1, "item": 2**31 - 1, "category": 2**31 - 1, "time": 2**63 - 1}

SAMPLE: Final = {"follow": 0.55, "again": 0.12, "breadth": 0.06}
"""How the sample's users browse, see `sample.world`."""


class TaobaoConfig(Config):
    """Which events count, and what is asked beside the next item."""

    outside: Literal["drop", "keep"] = "drop"
    """Events outside the nine published days."""
    rule: str | None = "pv -> buy"
    """`A -> B`, or `B`: each of them actions joined by `|`. None = no task but the next item."""
    hours: Annotated[float, Setting(gt=0)] | None = 24
    """How long after A the B of `A -> B` counts; None = to the end of the data."""


class Taobao(Dataset):
    """Events with `action`, items with `item.category`, and the task that `rule` makes of them."""

    name = "taobao"
    fields = {"action": Field("action"), "item.category": Field("item.category")}
    tasks: ClassVar[tuple[tuple[Task, ...], ...]] = ((NEXT,), (Task("buy", "click", "item"),))
    files = (f"{FILE}.zip", FILE)
    source = Source(
        "https://tianchi.aliyun.com/dataset/649",
        f"{FILE}.zip",
        terms="research use, by Tianchi's licence; cite Zhu et al. 2018 (KDD)",
        login=True,
    )
    summary = "Taobao UserBehavior: page views, carts, favourites and purchases of nine days, with categories"
    Config = TaobaoConfig

    def __init__(self, config: TaobaoConfig, home: Path) -> None:
        super().__init__(config, home)
        self.config: TaobaoConfig = config
        self.rule = None if config.rule is None else parse_rule(config.rule, ACTIONS)
        self.tasks = ((NEXT,),) if self.rule is None else ((NEXT,), (self.rule.task,))  # type: ignore[misc]  # by the rule

    def sources(self) -> list[Path]:
        """The file that is read: the zip where both are here."""
        return super().sources()[:1]

    @cached_property
    def _read(self) -> tuple[pd.DataFrame, int]:
        """All columns of the events that count, and how many lie outside the published days."""
        found = self.sources()
        if not found:
            raise UserError(f"data set 'taobao': neither {' nor '.join(self.files)} is in {self.home}")
        table = read_events(found[0])
        inside = table["time"].between(OPENS, CLOSES, inclusive="left").to_numpy()
        outside = int((~inside).sum())
        if self.config.outside == "drop" and outside:
            table = table[inside].reset_index(drop=True)
        if not len(table):
            raise UserError(
                f"{found[0]}: no event lies in the published days, 2017-11-25 to 2017-12-03; dataset.outside=keep reads them all"
            )
        return table, outside

    @cached_property
    def _categories(self) -> tuple[pd.DataFrame, int]:
        """The table of items, and how many of them occur with several categories."""
        table, _ = self._read
        return main_category(table["item"].to_numpy(), table["category"].to_numpy())

    @cached_property
    def _requests(self) -> tuple[pd.DataFrame, int]:
        """The rows that the rule makes, and how many requests it leaves out as unknown."""
        assert self.rule is not None
        table, _ = self._read
        time = table["time"]
        inside = time[time.between(OPENS, CLOSES, inclusive="left")]  # a time beyond by years ends nothing
        return label(table, self.rule, self.config.hours, int((inside if len(inside) else time).max()))

    def events(self) -> pd.DataFrame:
        """`user`, `item` (int32), `action` (categorical), `time`."""
        return self._read[0][["user", "item", "action", "time"]]

    def items(self) -> pd.DataFrame:
        """`item.category`: an item's most frequent one, the lowest of several equally frequent."""
        return self._categories[0]

    def labels(self, task: str) -> pd.DataFrame | None:
        """`user`, `id`, `value` (1 right, 0 wrong) and the `time` of the request."""
        return self._requests[0] if self.rule is not None and task == self.rule.task.name else None

    def notes(self) -> list[str]:
        """Events outside the published days, items of several categories, and what the rule made."""
        (table, outside), (_, several) = self._read, self._categories
        lines = []
        if outside:
            kept = self.config.outside == "keep"
            lines.append(
                f"{outside:,} of {len(table) + (0 if kept else outside):,} events lie outside 2017-11-25 to 2017-12-03 "
                f"(China Standard Time) and are {'kept' if kept else 'left out'}"
            )
        if several:
            lines.append(f"{several:,} items occur with several categories: the most frequent counts")
        if self.rule is None:
            return lines
        asked, unknown = self._requests
        if self.rule.asked:
            right = asked["value"].mean() if len(asked) else 0.0
            span = "" if self.config.hours is None else f" within {self.config.hours:g} hours"
            lines.append(f"{self.rule.task.name} ({self.config.rule}{span}): {len(asked):,} requests, {right:.1%} of them right")
        if unknown:
            lines.append(f"{self.rule.task.name}: {unknown:,} requests are left out, for their hours reach past the last event")
        return lines

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """800 made-up users who browse 600 items of 40 categories for nine days; writes `UserBehavior.csv` to `home`."""
        rng = np.random.default_rng(20171125)
        drawn = sample.world(rng, users=800, items=600, clusters=40, length=(20, 90), **SAMPLE)
        shop = sample.shop(rng, drawn, OPENS, CLOSES)
        item, category = 1 + rng.permutation(5000)[: drawn.items], 1 + rng.permutation(900)[: drawn.cluster.max() + 1]
        columns = (1 + shop.user, item[shop.item], category[drawn.cluster[shop.item]], np.array(ACTIONS)[shop.action], shop.time)
        lines = [",".join(map(str, row)) for row in zip(*(column.tolist() for column in columns), strict=True)]
        home.mkdir(parents=True, exist_ok=True)
        (home / FILE).write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")
        return True


def main_category(item: NDArray[np.int32], category: NDArray[np.int32]) -> tuple[pd.DataFrame, int]:
    """(`item`, `item.category`: the most frequent, the lowest of equals; how many items have several)."""
    pairs = item.astype(np.int64)
    pairs <<= 31
    pairs |= category
    pairs.sort()
    first = np.flatnonzero(np.append(True, pairs[1:] != pairs[:-1]))
    count, pairs = np.diff(first, append=len(pairs)), pairs[first]
    order = np.lexsort((pairs, -count, pairs >> 31))
    owner = pairs[order] >> 31
    best = pairs[order[np.diff(owner, prepend=-1) > 0]]
    several = len(np.unique(owner[1:][np.diff(owner) == 0]))
    return pd.DataFrame({"item": best >> 31, "item.category": best & 2**31 - 1}), several


def read_events(path: Path) -> pd.DataFrame:
    """`user`, `item`, `category` (int32), `action` (categorical) and `time` (int64), read in blocks of text.

    Raises UserError with the line of the first row that is none."""
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in COLUMNS}
    types = {"user": pa.int32(), "item": pa.int32(), "category": pa.int32(), "behavior": pa.string(), "time": pa.int64()}
    with _opened(path) as stream:
        try:
            batches = csv.open_csv(
                stream,
                csv.ReadOptions(column_names=COLUMNS, block_size=1 << 24),
                csv.ParseOptions(quote_char=False),
                csv.ConvertOptions(column_types=types, null_values=[]),
            )
            for batch in batches:
                for name, column in zip(COLUMNS, batch.columns, strict=True):
                    parts[name].append(_numbers(name, column))
            if not parts["user"]:
                raise pa.ArrowInvalid("no lines")
        except pa.ArrowInvalid as error:
            raise _fault(path, error) from None
    columns = {name: np.concatenate(parts.pop(name)) for name in COLUMNS}
    action = pd.Categorical.from_codes(columns.pop("behavior"), pd.Index(ACTIONS))
    return pd.DataFrame({**{name: columns.pop(name) for name in list(columns)}, "action": action}, copy=False)


def _numbers(name: str, column: pa.Array) -> NDArray[Any]:
    """A column as numbers, a behaviour as its place among `ACTIONS` (int8). Raises ArrowInvalid at a value that is none."""
    if name == "behavior":
        found = pc.index_in(column, value_set=pa.array(ACTIONS))
        if found.null_count:
            raise pa.ArrowInvalid("an unknown behaviour")
        return found.to_numpy(zero_copy_only=False).astype(np.int8)
    numbers: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    if name != "time" and len(numbers) and numbers.min() < 0:
        raise pa.ArrowInvalid("a negative id")
    return numbers


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, or the one of that name in the zip. Raises UserError where it cannot be read."""
    try:
        if path.suffix != ".zip":
            with path.open("rb") as stream:
                yield stream
            return
        with zipfile.ZipFile(path) as members:
            member = next((name for name in members.namelist() if name.rpartition("/")[2] == FILE), None)
            if member is None:
                raise UserError(f"{path} has no member {FILE}: it is not Tianchi's archive")
            with members.open(member) as stream:
                yield stream
    except DAMAGE as error:
        raise UserError(f"{path} cannot be unpacked ({error}); delete it and download it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _fault(path: Path, error: Exception) -> UserError:
    """The error for the first bad line: slow and plain, for it runs once and only then."""
    empty = True
    with _opened(path) as stream:
        for number, line in enumerate(io.TextIOWrapper(stream, "utf-8-sig", errors="replace", newline="\n"), start=1):
            complaint = _complaint(line.rstrip("\r\n"))
            empty = empty and not line.strip()
            if complaint:
                return UserError(f"{path}, line {number}: {complaint}")
    if empty:
        return UserError(f"{path} has no line; it must hold {','.join(COLUMNS)}")
    return UserError(f"{path}: cannot be read as {','.join(COLUMNS)} ({str(error).splitlines()[0]})")


def _complaint(line: str) -> str | None:
    """What is wrong with a line, None where it is sound. Empty lines are skipped by the reader."""
    if not line:
        return None
    cells = line.split(",")
    if len(cells) != len(COLUMNS):
        return f"{len(cells)} cells, expected {len(COLUMNS)}: {','.join(COLUMNS)}, without a header"
    for name, cell in zip(COLUMNS, cells, strict=True):
        if name == "behavior":
            if cell not in ACTIONS:
                return f"unknown behavior {cell!r}; it is one of {', '.join(ACTIONS)}"
            continue
        digits = cell.removeprefix("-") if name == "time" else cell
        if not (digits.isascii() and digits.isdecimal()):
            return f"the {name} {cell!r} is not a whole number"
        if len(digits) > 19 or int(cell) > LARGEST[name]:
            return f"the {name} {cell} is above {LARGEST[name]}"
    return None
