"""TTL, the transfer-learning data of PeterRec, CONURE and TERACON (`ColdRec2`, clicks and likes apart).

Six files of plain integers, no header, no user id. A line of the first holds 100 watched items, the newest last, padded
with 0 on the left; a line of the others holds the same 100 items, an empty cell, and one target or more:

    0,0,17,...,42,,3,9

The files know no users, so **a user is a distinct row of 100 ids**: rows that are equal, in one file or in several, are one
user, and the notes tell how many lines that joined. Users are numbered by where they first appear, T1's lines first.
A source id that T1 lacks is an item like any other. There are no times."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from userec.config import Config
from userec.dataset.contract import Dataset, Source
from userec.errors import UserError
from userec.schema import Task
from userec_datasets import sample

WIDTH: Final = 100
"""Ids a line."""

FILES: Final = {
    "watch": "original_desen_pretrain.csv",
    "click": "original_desen_finetune_click_nouserID.csv",
    "like": "original_desen_finetune_like_nouserID.csv",
    "age": "original_desen_age.csv",
    "gender": "original_desen_gender.csv",
    "life_status": "original_desen_lifestatus.csv",
}
"""The file of each task, T1 to T6."""

FOLDERS: Final = ("", "ColdRec/")
"""Where they lie in a data folder; the archive unpacks to `ColdRec`."""

TASKS: Final[tuple[tuple[Task, ...], ...]] = (
    (Task("watch", "item", "item", events=True),),
    (Task("click", "item", "click"),),
    (Task("like", "item", "like"),),
    (Task("age", "label", "labels.age"),),
    (Task("gender", "label", "labels.gender"),),
    (Task("life_status", "label", "labels.life_status"),),
)
"""In training order. Each has a space of its own: ids of the files are not comparable. A class is in `labels.NAME`, for it is
not a field of the profile: no encoder may read it."""


SAMPLE: Final = {"follow": 0.35, "again": 0.2, "breadth": 0.06}
"""How the sample's users behave, see `sample.world`."""


@dataclass(frozen=True)
class Rows:
    """One file: n lines, and m pairs of a line and one of its targets (none in T1)."""

    ids: NDArray[np.int32]  # [n, 100]
    line: NDArray[np.int64]  # [m]
    target: NDArray[np.int64]  # [m]


class TTL(Dataset):
    """Six tasks over one watching history, in the order in which TERACON learns them; absent files are left out and told."""

    name = "ttl"
    tasks = TASKS
    default_split = "leave_last"
    files = tuple(folder + file for file in FILES.values() for folder in FOLDERS)
    # `file/d/ID`: the READMEs of PeterRec, CONURE and TERACON give a file, not a folder, so it can be fetched by program.
    source = Source(
        "https://drive.google.com/file/d/1imhHUsivh6oMEtEW-RwVc4OsDqn-xOaP/view",
        "ColdRec2.archive",
        terms="research use; cite PeterRec (SIGIR 2020) and CONURE (SIGIR 2021)",
    )
    summary = "TTL / ColdRec2: watching histories of 100, with clicks, likes, age, gender and life status"

    def __init__(self, config: Config, home: Path) -> None:
        super().__init__(config, home)
        found = {task: path for task in FILES if (path := self._path(task)) is not None}
        if not found:
            raise UserError(f"data set 'ttl': none of its files is in {home}; expected {FILES['watch']}")
        self.found = found
        self.tasks = tuple(group for group in TASKS if group[0].name in found)  # type: ignore[misc]  # by the files that are here

    def _path(self, task: str) -> Path | None:
        paths = (self.home / folder / FILES[task] for folder in FOLDERS)
        return next((path for path in paths if path.is_file()), None)

    def sources(self) -> list[Path]:
        """The files that are here, one a task."""
        return list(self.found.values())

    @cached_property
    def _rows(self) -> dict[str, Rows]:
        return {task: read_rows(path, targets=task != "watch") for task, path in self.found.items()}

    @cached_property
    def _users(self) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int32]]:
        """The user of each line, by file, from 1; and the distinct rows, [U, 100]."""
        ids = np.concatenate([rows.ids for rows in self._rows.values()])
        code, _ = pd.factorize(_fingerprint(ids))
        _, first = np.unique(code, return_index=True)
        bounds = np.cumsum([len(rows.ids) for rows in self._rows.values()])[:-1]
        return dict(zip(self._rows, np.split(code + 1, bounds), strict=True)), ids[first]

    def events(self) -> pd.DataFrame:
        """`user` and `item`, in order. A row of nothing but padding has no events."""
        _, distinct = self._users
        user, column = np.nonzero(distinct)
        return pd.DataFrame({"user": user + 1, "item": distinct[user, column]})

    def labels(self, task: str) -> pd.DataFrame | None:
        """`user` and `id`: the target or class, as the file numbers it; None for `watch` and for an absent file."""
        if task == "watch" or task not in self.found:
            return None
        users, distinct = self._users
        rows = self._rows[task]
        table = pd.DataFrame({"user": users[task][rows.line], "id": rows.target})
        return table[np.any(distinct, axis=1)[table["user"] - 1]].drop_duplicates(ignore_index=True)

    def notes(self) -> list[str]:
        """What is absent, how many lines were joined, and users of the later files that T1 lacks."""
        users, distinct = self._users
        lines = []
        absent = [f"{task} ({FILES[task]})" for task in FILES if task not in self.found]
        if absent:
            lines.append(f"left out, for want of the file: {', '.join(absent)}")
        joined = [
            f"{len(ids) - len(np.unique(ids)):,} in {task}" for task, ids in users.items() if len(np.unique(ids)) < len(ids)
        ]
        if joined:
            lines.append(f"lines with equal 100 ids are one user; joined within a file: {', '.join(joined)}")
        if "watch" in users and len(distinct) > users["watch"].max():
            lines.append(f"{len(distinct) - users['watch'].max():,} users appear in a task's file only, not in {FILES['watch']}")
        empty = int((~distinct.any(axis=1)).sum())
        if empty:
            lines.append("lines of nothing but padding have no history; their targets are left out")
        return lines

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """1,200 made-up users with 20 to 100 of 600 items; writes the six files to `home`."""
        rng = np.random.default_rng(20240201)
        drawn = sample.world(rng, users=1200, items=600, clusters=30, length=(20, WIDTH), **SAMPLE)
        name = 1 + rng.permutation(drawn.items)
        source = np.zeros((drawn.users, WIDTH), dtype=np.int64)  # [U, 100], padded on the left
        ends = np.searchsorted(drawn.user, np.arange(drawn.users), side="right")
        source[drawn.user, WIDTH - ends[drawn.user] + np.arange(len(drawn.user))] = name[drawn.item]
        text = [",".join(map(str, row)) for row in source.tolist()]
        warm = drawn.users - 60  # the last 60 users are cold: they appear in the task files only
        targets = {
            "click": [(1 + row).tolist() for row in sample.pick(rng, drawn.late, 240, 4)],
            "like": [(1 + row).tolist() for row in sample.pick(rng, drawn.taste, 120, 2)],
            "age": sample.classes(rng, drawn.taste, 8)[:, None].tolist(),
            "gender": sample.classes(rng, drawn.taste, 2)[:, None].tolist(),
            "life_status": sample.classes(rng, drawn.taste, 6)[:, None].tolist(),
        }
        shares = {"click": 0.7, "like": 0.4, "age": 0.9, "gender": 0.9, "life_status": 0.8}
        home.mkdir(parents=True, exist_ok=True)
        (home / FILES["watch"]).write_text("\n".join(text[:warm]) + "\n", encoding="ascii", newline="\n")
        for task, answers in targets.items():
            chosen = np.flatnonzero(rng.random(drawn.users) < shares[task])
            lines = [f"{text[user]},,{','.join(map(str, answers[user]))}\n" for user in chosen]
            (home / FILES[task]).write_text("".join(lines), encoding="ascii", newline="\n")
        return True


def read_rows(path: Path, *, targets: bool) -> Rows:
    """Reads one file in Arrow batches of lines, so that the text is never held whole beside the numbers.

    Raises UserError with the line of the first row that is not 100 integers (and, where `targets`, `,,` and integers)."""
    ids, line, target, count = [], [], [], 0
    options = csv.ReadOptions(column_names=["row"], block_size=1 << 24)
    plain = csv.ParseOptions(delimiter="\x01", quote_char=False)
    text = csv.ConvertOptions(column_types={"row": pa.string()}, strings_can_be_null=False)
    try:
        for batch in csv.open_csv(path, read_options=options, parse_options=plain, convert_options=text):
            halves = pc.split_pattern(batch.column(0), ",,", max_splits=1)
            if not pc.all(pc.equal(pc.list_value_length(halves), 2 if targets else 1)).as_py():
                raise pa.ArrowInvalid("targets")
            source = pc.split_pattern(pc.list_element(halves, 0), ",")
            if not pc.all(pc.equal(pc.list_value_length(source), WIDTH)).as_py():
                raise pa.ArrowInvalid("width")
            ids.append(source.flatten().cast(pa.int32()).to_numpy(zero_copy_only=False).reshape(-1, WIDTH))
            if targets:
                answers = pc.split_pattern(pc.list_element(halves, 1), ",")
                line.append(count + pc.list_parent_indices(answers).to_numpy(zero_copy_only=False))
                target.append(answers.flatten().cast(pa.int64()).to_numpy(zero_copy_only=False))
            if ids[-1].min(initial=0) < 0 or (targets and target[-1].min(initial=0) < 0):
                raise pa.ArrowInvalid("a negative id")
            count += batch.num_rows
        if not count:
            raise pa.ArrowInvalid("no lines")
    except pa.ArrowInvalid as error:
        raise _fault(path, targets, error) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    none = np.zeros(0, dtype=np.int64)
    return Rows(np.concatenate(ids), np.concatenate([none, *line]), np.concatenate([none, *target]))


def _fault(path: Path, targets: bool, error: Exception) -> UserError:
    """The error for the first bad line: slow and plain, for it runs once and only then."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            complaint = _complaint(line.rstrip("\r\n"), targets)
            if complaint:
                return UserError(f"{path}, line {number}: {complaint}")
    if not path.read_bytes().strip():
        return UserError(f"{path} has no lines; delete the file to leave its task out")
    return UserError(f"{path}: cannot be read as lines of {WIDTH} ids ({str(error).splitlines()[0]})")


def _complaint(line: str, targets: bool) -> str | None:
    """What is wrong with a line, None where it is sound. Empty lines are skipped by the reader."""
    if not line:
        return None
    source, comma, answers = line.partition(",,")
    if bool(comma) != targets:
        expected = "`,,` and at least one target after" if targets else "nothing after"
        return f"expected {expected} the {WIDTH} ids"
    cells = source.split(",")
    if len(cells) != WIDTH:
        return f"{len(cells)} ids, expected {WIDTH} (padded with 0 on the left)"
    for cell in cells + (answers.split(",") if targets else []):
        if not (cell.isascii() and cell.isdecimal()):
            return f"{cell!r} is not an integer id"
    big = max(cells, key=int)
    return f"id {big} is above {2**31 - 1}" if int(big) >= 2**31 else None


def _fingerprint(ids: NDArray[np.int32]) -> NDArray[np.uint64]:
    """64 bits for each row, [n]: a sum of the ids times fixed random weights, mixed. Two of a million distinct rows meet
    with a probability below 1e-6."""
    odd = np.random.default_rng(1).integers(1 << 62, size=(ids.shape[1], 1)).astype(np.uint64) * np.uint64(2) + np.uint64(
        1
    )  # [100, 1]
    total = np.zeros(len(ids), dtype=np.uint64)  # [n]
    for column in range(ids.shape[1]):
        value = ids[:, column].astype(np.uint64) * odd[column]
        total += value ^ (value >> np.uint64(29))
    return total
