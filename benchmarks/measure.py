"""Run one `userec run` alone on this machine and keep its report, with command, seed, commit and machine inside.

    python benchmarks/measure.py sasrec-ml1m -- --model sasrec --dataset movielens-1m --data-dir ../shared/data --seed 1

writes benchmarks/results/sasrec-ml1m.json. The run's folder is benchmarks/.work/NAME; with `--resume` among the words a run
that was cut goes on there, and the result says so: its `wall_s` is then of the last part alone. `--beside "why"` before the `--`
does not wait for the machine to be free: the result says why, and the page shows no times of it."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from userec.evaluator.statistics import intervals

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORK = HERE / ".work"


def machine() -> str:
    """The processor, its cores, and the memory."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = names[0] if names else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB"


def commit() -> str:
    """The commit that is measured; `+` where the tree differs from it."""
    head = subprocess.check_output(["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, text=True).strip()
    changed = subprocess.check_output(["git", "status", "--porcelain", "--untracked-files=no"], cwd=HERE, text=True).strip()
    return head + ("+" if changed else "")


def alone() -> object:
    """Hold the lock that every training and benchmark of this checkout takes: one heavy thing at a time."""
    WORK.mkdir(exist_ok=True)
    lock = (WORK / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def publish(name: str, about: str | None, figures: Callable[[Path], dict[str, Any]]) -> None:
    """The command line of a benchmark: measure alone with `--data-dir`, print, and keep as results/NAME.json with `--save`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    lock = alone()
    command = f"python benchmarks/{Path(sys.argv[0]).name} --data-dir ../shared/data --save"
    text = json.dumps({"command": command, "commit": commit(), "machine": machine(), **figures(given.data_dir)}, indent=1)
    print(text)
    if given.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    del lock


def parsed(given: list[str]) -> argparse.Namespace:
    """`name`, `beside` (None = alone) and `words`, what stands behind `--`."""
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the result file, MODEL-DATASET-seedN or MODEL-SETTING-DATASET-seedN")
    parser.add_argument("--beside", metavar="WHY", help="run beside other work, without the lock; the result has no times")
    parser.add_argument("--users", metavar="FROM-TO", help="also keep the test NDCG@10 of users whose ids are in this range")
    asked = parser.parse_args(given[:cut])
    asked.words = given[cut + 1 :]
    if asked.users is not None and not re.fullmatch(r"\d+-\d+", asked.users):
        parser.error(f"--users {asked.users}: two ids with a `-` between them, as 1-2999")
    if not asked.words:
        parser.error("what `userec run` is to do stands behind `--`")
    return asked


def part(file: Path, report: dict[str, Any], users: str) -> dict[str, Any]:
    """The model's test NDCG@10 of users whose ids are numbers in the range `FROM-TO`, with its 95 % bootstrap interval.

    Raises ValueError where there is none."""
    first, last = (int(word) for word in users.split("-"))
    rows = pd.read_parquet(file)
    wanted = {"evaluator": "ranking", "split": "test", "metric": "ndcg@10", "encoder": report["experiment"]["encoder"]["name"]}
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    values = rows[rows["user"].astype(int).between(first, last)].sort_values("user")["value"].to_numpy()
    if not len(values):
        raise ValueError(f"--users {users}: no user of the test has such an id")
    low, high = intervals(values[:, None])
    return {"users": users, "n": len(values), "value": float(values.mean()), "low": float(low[0]), "high": float(high[0])}


def main(given: list[str]) -> int:
    """Measure one run."""
    asked = parsed(given)
    lock = alone() if asked.beside is None else None
    out = WORK / asked.name
    out.parent.mkdir(exist_ok=True)
    before = commit()
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "userec", "run", *asked.words, "--out", str(out)], cwd=HERE.parent, check=False)
    if done.returncode:
        return done.returncode
    report = json.loads((out / "report.json").read_text())
    about = {
        "command": shlex.join(["userec", "run", *(word for word in asked.words if word != "--resume")]),
        "resumed": "--resume" in asked.words,
        **({} if asked.beside is None else {"beside": asked.beside}),
        "commit": before,
        "machine": machine(),
        "wall_s": round(time.monotonic() - began, 1),
        "seed": report["experiment"]["seed"],
        **({} if asked.users is None else {"part": part(out / "per_user.parquet", report, asked.users)}),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{asked.name}.json").write_text(json.dumps({**about, "report": report}, indent=1) + "\n", encoding="utf-8")
    del lock
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
