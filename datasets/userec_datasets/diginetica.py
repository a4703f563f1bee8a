"""Diginetica's click sessions (CIKM Cup 2016, track 2), cut and numbered as SR-GNN does (Wu et al. 2019): order, no times.

The training file has one session a line, the earlier first. Each line of the test file is the beginning of a later session and
ends with the click that is asked for; the line after it is the same session with a click less. Published results ask every
such line once, so each is a user of its own: its last item is the question, the rest its history, and none of it trains.

The publisher names no validation part. The last click of the last sessions of the training file is asked instead, of a share
`dataset.validation` of them; their earlier clicks train."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field as Setting

from userec.config import Config
from userec.dataset.contract import Dataset
from userec.errors import UserError
from userec_datasets import sample
from userec_datasets.lines import Lines, find, read_lines

TRAIN: Final = "diginetica_train_sessions.txt"
TEST: Final = "diginetica_test_prefix_target.txt"
FOLDERS: Final = ("", "diginetica_sessions/")
"""Where they may lie in a data folder."""

SAMPLE: Final = {"follow": 0.6, "again": 0.07, "breadth": 0.06}
"""How the sample's visitors click, see `sample.world`."""


class DigineticaConfig(Config):
    """What validates."""

    validation: float = Setting(0.05, ge=0, lt=1)
    """The share of the training sessions, the last of the file, whose last click is asked for validation; 0 = `split.valid`
    decides: the last click of every session of three or more, none where it is 0."""


class Diginetica(Dataset):
    """Sessions of clicks; a session is a user, numbered by its line, the test file's lines behind those of the training file."""

    name = "diginetica"
    default_split = "given"
    files = tuple(f"{folder}{TRAIN}{suffix}" for folder in FOLDERS for suffix in ("", ".gz"))
    # no `source`: the publisher's clicks need SR-GNN's cut, and nobody is known to publish its outcome as text
    summary = "Diginetica sessions, SR-GNN's: 906,140 clicks in 186,670 sessions on 43,097 items, 60,858 test prefixes"
    Config = DigineticaConfig

    def __init__(self, config: DigineticaConfig, home: Path) -> None:
        super().__init__(config, home)
        self.config: DigineticaConfig = config

    def sources(self) -> list[Path]:
        """The training file and the test file."""
        return [path for name in (TRAIN, TEST) if (path := find(self.home, name, FOLDERS)) is not None]

    def events(self) -> pd.DataFrame:
        """`user`, `item` and `split`, in order."""
        train = self._lines(TRAIN, least=1, holds="the items of a session")
        test = self._lines(TEST, least=2, holds="the items before a target, and the target")
        split = np.zeros(len(train.ids) + len(test.ids), np.int8)
        split[train.offsets[self._validating(train) + 1] - 1] = 1
        split[len(train.ids) :] = 2
        return pd.DataFrame(
            {
                "user": np.repeat(np.arange(1, len(train) + len(test) + 1), np.append(train.lengths, test.lengths)),
                "item": np.append(train.ids, test.ids),
                "split": pd.Categorical.from_codes(split, pd.Index(["train", "valid", "test"])),
            }
        )

    def _validating(self, train: Lines) -> NDArray[np.intp]:
        """The lines whose last click validates: of the last share of the file, those with a click before it."""
        begins = len(train) - round(self.config.validation * len(train))
        return begins + np.flatnonzero(train.lengths[begins:] > 1)

    def _lines(self, name: str, *, least: int, holds: str) -> Lines:
        path = find(self.home, name, FOLDERS)
        if path is None:
            raise UserError(f"data set 'diginetica': {name} is not in {self.home}; it needs {TRAIN} and {TEST}")
        return read_lines(path, least=least, holds=holds)

    @classmethod
    def locate(cls, folder: Path) -> Path:
        """As every data set's, but there is no address to fetch it from."""
        try:
            return super().locate(folder)
        except UserError:
            raise UserError(
                f"data set 'diginetica' is not in {folder}: expected {TRAIN} and {TEST}, or both with .gz; "
                "no public address is known, so put the files there"
            ) from None

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """1,200 made-up sessions of 4 to 40 clicks on 500 items, the last 200 of them the test's; writes both files to `home`."""
        rng = np.random.default_rng(20160801)
        drawn = sample.world(rng, users=1200, items=500, clusters=25, length=(4, 40), **SAMPLE)
        name = 1 + rng.permutation(drawn.items)
        sessions = np.split(name[drawn.item], np.searchsorted(drawn.user, np.arange(1, drawn.users)))
        train, rest = sessions[:1000], sessions[1000:]
        test = [session[:end] for session in rest for end in range(len(session), 1, -1)]
        home.mkdir(parents=True, exist_ok=True)
        for file, lines in ((TRAIN, train), (TEST, test)):
            text = "".join(" ".join(map(str, line.tolist())) + "\n" for line in lines)
            (home / file).write_text(text, encoding="ascii", newline="\n")
        return True
