"""What an epoch of each row of docs/results.md takes on this machine when nothing else runs:

    python benchmarks/pace.py [--data-dir ../shared/data] [ROW ...]

Trainings run beside one another, so most rows have no times of their own. Here the command of each row is given two epochs alone
(one, where it makes no more), and the mean of the two is kept in benchmarks/results/pace.json as soon as it is known: a cut
measurement goes on where it was. A ROW named, as `sasrec-movielens-1m`, is measured anew. The page shows that times epochs."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
from measure import HERE, RESULTS, alone, commit, machine
from published import NEEDS_GPU
from quality import PROTOCOLS, load

FILE: Final = "pace.json"
EPOCHS: Final = 2


def rows(results: Path) -> dict[str, tuple[str, int]]:
    """{row: (its command, epochs to measure)} of what stands in a protocol's table."""
    asked = {(protocol.dataset, protocol.split) for protocol in PROTOCOLS}
    found = {}
    for run in load(sorted(results.glob("*.json"))):
        if (run.dataset, run.split) in asked:
            found.setdefault(run.row, (str(run.kept["command"]), min(EPOCHS, run.report["timing"]["epochs"])))
    return {**{f"{name}-{dataset}": (command, 1) for (name, dataset), command in NEEDS_GPU.items()}, **found}


def measured(command: str, epochs: int, data_dir: Path) -> dict[str, Any]:
    """Seconds an epoch, targets a second, where and of which code."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        shorter = ["--data-dir", str(data_dir.resolve()), "--set", f"train.epochs={epochs}", "--evaluator", "ranking"]
        said = shlex.split(command)[2:]  # without `userec run`; what is said last counts
        subprocess.run([sys.executable, "-m", "userec", "run", *said, *shorter, "--out", str(out)], check=True, stdout=sys.stderr)
        timing = json.loads((out / "report.json").read_text())["timing"]
    epoch_s = timing["train_s"] / timing["epochs"]
    return {"epoch_s": epoch_s, "targets_per_s": timing["targets_per_s"], "commit": commit(), "machine": machine()}


def main() -> None:
    """Measure what is missing, and what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", nargs="*")
    parser.add_argument("--data-dir", type=Path, default=HERE.parent / "../shared/data")
    given = parser.parse_args()
    known = rows(RESULTS)
    for row in given.row:
        if row not in known:
            parser.error(f"no row {row!r}; known: {', '.join(known)}")
    file = RESULTS / FILE
    kept = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    lock = alone()
    for row in given.row or [row for row in known if row not in kept]:
        kept[row] = measured(*known[row], given.data_dir)
        print(row, json.dumps(kept[row]))
        file.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n", encoding="utf-8")
    del lock


if __name__ == "__main__":
    main()
