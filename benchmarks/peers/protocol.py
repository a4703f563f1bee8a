"""What every runner does alike, whatever it measures: the words it takes, the archive, the clock, the judge.

It is run inside each peer's own environment, so it needs numpy and pandas alone."""

from __future__ import annotations

import argparse
import io
import json
import os
import time
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

WIDTH: Final = 64
LAYERS: Final = 2
DROPOUT: Final = 0.2
MASK: Final = 0.2
HEADS: Final = {"sasrec": 1, "bert4rec": 2}
INNER: Final = {"sasrec": 64, "bert4rec": 256}
"""Width inside a feed-forward layer."""
RATE: Final = 1e-3
BETAS: Final = (0.9, 0.98)
"""Adam's, where the systems are judged after equal training; RecTools knows no others."""
TOP: Final = 10
NAME: Final = "peers-ml-1m"
"""Of RecBole's atomic file and its folder."""


def words(about: str | None) -> argparse.Namespace:
    """The command line of a runner."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--warm", type=int, default=1, help="batches before the clock starts")
    parser.add_argument("--steps", type=int, default=3, help="timed batches")
    parser.add_argument("--rows", type=int, default=128, help="RecTools, and userec where it is judged: users a batch")
    parser.add_argument("--atomic", type=Path, help="RecBole: the folder of its atomic file")
    parser.add_argument("--no-evaluation", action="store_true", help="RecTools: time the training alone")
    parser.add_argument("--attention-dropout", type=float, default=0.0)
    parser.add_argument("--targets", type=int, help="train so many targets instead and judge the validation targets")
    parser.add_argument("--epochs", type=int, help="RecTools: train so many epochs instead and judge")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    given.data_dir = given.data_dir.resolve()
    given.atomic = given.atomic and given.atomic.resolve()
    return given


def ratings(data_dir: Path) -> pd.DataFrame:
    """`user`, `item`, `time` of MovieLens-1M in the order of the archive's file, by pandas' quick parser."""
    with zipfile.ZipFile(data_dir / "ml-1m.zip") as archive:
        text = archive.read("ml-1m/ratings.dat").replace(b"::", b"\t")
    return pd.read_csv(io.BytesIO(text), sep="\t", names=["user", "item", "rating", "time"], usecols=["user", "item", "time"])


def ordered(frame: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """(the events by user, time and row of the file, how many of the user's events follow each)."""
    frame = frame.sort_values(["user", "time"], kind="stable", ignore_index=True)
    user = frame["user"].to_numpy()
    last = np.flatnonzero(np.append(user[1:] != user[:-1], True))
    return frame, last[np.searchsorted(user[last], user)] - np.arange(len(user))


def judge(frame: pd.DataFrame, users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> dict[str, Any]:
    """NDCG@10 of the last event but one of every user, all else that he had not seen before ranked too.

    `scores` [users, items] by external ids; an item that a system does not know has no column, and is missed. Every order of
    equal scores is as likely."""
    frame, after = ordered(frame)
    known = np.unique(frame["item"])
    wide = np.full((len(users), len(known)), -np.inf, np.float32)
    wide[:, np.searchsorted(known, items)] = scores
    row = np.argsort(users)[np.searchsorted(np.sort(users), frame["user"])]
    column = np.searchsorted(known, frame["item"])
    target = after == 1
    own = np.full(len(users), -np.inf, np.float32)
    own[row[target]] = wide[row[target], column[target]]
    wide[row[after >= 1], column[after >= 1]] = np.nan  # his history, and the target itself
    above, tied = (wide > own[:, None]).sum(1), (wide == own[:, None]).sum(1)
    gains = np.append(1 / np.log2(np.arange(TOP) + 2), 0.0).cumsum()  # of the first so many places
    places = np.stack([above, above + tied + 1]).clip(max=TOP)
    total = np.append(0.0, gains)[places]
    value = np.where(np.isfinite(own), (total[1] - total[0]) / (tied + 1), 0.0)
    return {"ndcg@10": float(value.mean()), "users": len(value)}


def since_start() -> float:
    """Seconds since the kernel started this process."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def peak_mb() -> float:
    """The most memory that this process ever held."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith("VmHWM"))


class Peaks(dict[str, float]):
    """Peak memory in MB by the end of each part."""

    def at(self, part: str) -> None:
        """That part has ended."""
        self[part] = peak_mb()


class Watch:
    """Time and targets of the training batches, from the beginning of the first to the beginning of the one after the last."""

    def __init__(self, warm: int) -> None:
        self.warm, self.times, self.targets = warm, [], []  # type: int, list[float], list[int]
        self.trained = 0
        """Targets of the batches that have ended."""

    def begin(self, targets: int) -> None:
        """A batch begins that trains so many targets, and the one before has ended."""
        self.trained += self.targets[-1] if self.targets else 0
        self.times.append(time.perf_counter())
        self.targets.append(targets)

    def told(self) -> dict[str, Any]:
        """What it came to. The last batch that began is not counted: it only ends the one before."""
        seconds, targets = self.times[-1] - self.times[self.warm], sum(self.targets[self.warm : -1])
        return {"targets": targets, "train_s": seconds, "targets_per_s": targets / seconds, "trained": self.trained}


def tell(system: str, given: argparse.Namespace, packages: list[str], found: dict[str, Any]) -> None:
    """Print the one line that the driver reads."""
    about = {"system": system, "model": given.model, "length": given.length, "threads": int(os.environ["OMP_NUM_THREADS"])}
    print(json.dumps({**about, "versions": {name: version(name) for name in packages}, **found}), flush=True)
