"""The contract of a data set: tables of external ids. The core codes the ids and sizes the schema, so a data set stays small."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from userec.config import Config, Plugin
from userec.errors import UserError
from userec.schema import NEXT, Field, Task


@dataclass(frozen=True)
class Source:
    """Where `userec data fetch` gets a data set. `sha256` None = the publisher gives no checksum and we have none to trust."""

    url: str
    file: str
    """The name it is kept under in the data folder."""
    sha256: str | None = None
    md5: str | None = None
    """The checksum that the publisher prints beside the file, where it is an md5."""
    terms: str = ""
    """One line: what the licence asks."""
    login: bool = False
    """Whether the publisher gives it only to people who log in: then no program can fetch it, and the user is told so."""


class Dataset(Plugin, ABC):
    """Events of users. `home` is the folder where its files lie, in their original published layout.

    Readers return tables of external ids (str or int); order within equal times is the row order."""

    fields: ClassVar[Mapping[str, Field]] = {}
    """Fields beyond `user`, `item` and `time` that the tables hold, by column name."""
    tasks: ClassVar[tuple[tuple[Task, ...], ...]] = ((NEXT,),)
    default_split: ClassVar[str | None] = None
    """None: `by_time` where times exist, else `leave_last`."""
    source: ClassVar[Source | None] = None
    files: ClassVar[tuple[str, ...]] = ()
    """Paths relative to a data folder, any one of which shows that the data set lies there, the usual one first."""
    summary: ClassVar[str] = ""

    def __init__(self, config: Config, home: Path) -> None:
        self.config = config
        self.home = Path(home)

    @abstractmethod
    def events(self) -> pd.DataFrame:
        """Columns `user`, `item`, and any of `time` (int64 seconds), `split` (train, valid, test), and the fields."""

    def users(self) -> pd.DataFrame | None:
        """Column `user` and the `profile.X` columns, or None."""
        return None

    def items(self) -> pd.DataFrame | None:
        """Column `item` and the `item.X` columns, or None."""
        return None

    def labels(self, task: str) -> pd.DataFrame | None:
        """Rows of a task that is not the events themselves: `user`, `id` (external id in the task's space), and any of
        `value` (1.0), `time` (of the request: only strictly earlier events may be used), `until` (when the value was known, where
        that is later: a split by time trains on none that its test part would tell), `split`. None = its file is absent."""
        return None

    def sources(self) -> list[Path]:
        """The files that the tables are read from: the cache is keyed by their content."""
        return [path for path in (self.home / name for name in self.files) if path.is_file()]

    def notes(self) -> list[str]:
        """Lines to tell the user once the tables are read: what was absent, repaired or dropped."""
        return []

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """Write the embedded generated sample to `home` in the original layout; False where there is none."""
        return False

    @classmethod
    def locate(cls, folder: Path) -> Path:
        """The folder where the files lie, `folder` itself or its child named like the data set.

        Raises UserError that names the expected file."""
        for home in (folder, folder / cls.name):
            if any((home / name).exists() for name in cls.files):
                return home
        expected = " or ".join(cls.files[:3])
        raise UserError(f"data set {cls.name!r} is not in {folder}: expected {expected}; `userec data fetch {cls.name}` gets it")
