"""How time and memory grow with users, and with events a user, on generated data:

    python benchmarks/scaling.py [--save]

At 1, 2, 4 and 8 times the size, each point in a process of its own: a parquet file is loaded, coded and divided, one whole epoch
of a small SASRec is trained, and every user is evaluated over the whole catalogue. The quickest of five runs. An exponent of 1 is
linear growth: the slope of a straight line through the logarithms, by least squares. `--save` keeps the figures in
benchmarks/results/scaling.json, which docs/results.md is made from."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from measure import publish

SIZES: Final = (1, 2, 4, 8)
USERS: Final = 5000
EVENTS: Final = 25
"""A user, on average."""
ITEMS: Final = 2000
WINDOW: Final = 300
"""As long as the longest history at the greatest size: an encoder reads no more than its window, so that a shorter one would
keep the evaluation of a longer history from growing at all."""
TIMES: Final = 5
"""Runs of each point; the least of two was still swayed by slow spells of the machine."""
WHAT: Final = {
    "load_s": "load, code and divide, s",
    "train_s": "one epoch, s",
    "evaluate_s": "evaluation, s",
    "memory_mb": "peak memory above imports, MB",
}
LINEAR: Final = 1.15
"""An exponent up to this is called linear: the noise of four points."""


def write(path: Path, users: int, events: int) -> None:
    """A file of events of `users` users, half to one and a half times `events` each, items as popular as in Zipf's law."""
    import pandas as pd

    rng = np.random.default_rng(5)
    lengths = rng.integers(events // 2, events + events // 2 + 1, users)
    popular = 1 / (np.arange(ITEMS) + 10)
    item = rng.choice(ITEMS, lengths.sum(), p=popular / popular.sum())
    user = np.repeat(np.arange(users), lengths)
    moment = 1_600_000_000 + 60 * np.arange(len(user))
    pd.DataFrame({"user": user, "item": item, "time": moment}).to_parquet(path)


def measure(path: Path) -> dict[str, float]:
    """What this process takes for the file."""
    import torch

    from userec.dataset import cache
    from userec.dataset.table import TableDataset
    from userec.engine.learner import GradientLearner
    from userec.registry import load
    from userec.testing import open_session

    plugins = load().plugins
    before = held("VmRSS")
    began = time.perf_counter()
    coded = cache.load(TableDataset(TableDataset.Config(path=str(path)), path.parent), path.parent / "cache")
    said = {
        "encoder": {"name": "sasrec", "dim": 32, "layers": 1, "window": WINDOW},
        "batch": {"windows": "all"},
        "split": {"name": "leave_last"},
    }
    session = open_session(plugins, coded, said)
    loaded = time.perf_counter()
    experiment = session.run.experiment
    model = session.compose(experiment)
    encoder = model.encoder
    encoder.begin_task(("next",), "train")
    assert experiment.objective is not None
    objective = model.build.objective(experiment.objective)
    learner = GradientLearner(encoder.train(), objective, experiment.train, 1, torch.device("cpu"))
    loader = session.loader(model, ("next",), objective)
    targets, started = 0, time.perf_counter()
    for step, batch in enumerate(loader.batches(0)):
        targets += learner.step([batch], step, 0.0, 1000)[1]
    trained = time.perf_counter()
    evaluator = session.evaluator(model, "ranking")
    with torch.no_grad():
        list(evaluator.evaluate(encoder.eval(), session.view(model, evaluator), "test"))
    return {
        "events": int(coded.events.offsets[-1]),
        "targets": targets,
        "load_s": loaded - began,
        "train_s": trained - started,
        "evaluate_s": time.perf_counter() - trained,
        "memory_mb": held("VmHWM") - before,
    }


def held(name: str) -> float:
    """MB of this process by the kernel's own count."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 2**10 for line in status.splitlines() if line.startswith(name))


def points(users: int, events: int) -> dict[str, float]:
    """The least of every figure over fresh processes."""
    found: list[dict[str, float]] = []
    for _ in range(TIMES):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "events.parquet"
            write(path, users, events)
            found.append(json.loads(subprocess.check_output([sys.executable, __file__, "--point", str(path)], text=True)))
    return {name: min(one[name] for one in found) for name in found[0]}


def exponent(sizes: list[float], values: list[float]) -> float:
    """p of the growth values ~ sizes ** p."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def figures(data_dir: Path) -> dict[str, Any]:
    """Both series; the data is generated, so `data_dir` is left alone."""
    sizes = {"users": USERS, "events": EVENTS, "items": ITEMS, "window": WINDOW}
    out: dict[str, Any] = {**sizes, "times": TIMES, "series": {}}
    for name in ("users", "events a user"):
        rows = []
        for size in SIZES:
            grown = (USERS * size, EVENTS) if name == "users" else (USERS, EVENTS * size)
            rows.append({"size": size, **points(*grown)})
            print(json.dumps(rows[-1]), file=sys.stderr)
        out["series"][name] = {
            "points": rows,
            "exponents": {what: exponent([row["size"] for row in rows], [row[what] for row in rows]) for what in WHAT},
        }
    return out


def table(kept: dict[str, Any]) -> list[str]:
    """The section of docs/results.md: every figure with its ratio to the size before, and the fitted exponent, marked where it
    is above `LINEAR`."""
    lines = ["## Growth with the data", "", f"| what grows | events | {' | '.join(WHAT.values())} |", "|---" * 6 + "|"]
    for name, series in kept["series"].items():
        before: dict[str, float] = {}
        for row in series["points"]:
            cells = [f"{name} x {row['size']}", f"{row['events']:,}"]
            for what in WHAT:
                times = f" (x {row[what] / before[what]:.2f})" if before else ""
                cells.append(f"{row[what]:.{0 if what == 'memory_mb' else 2}f}{times}")
            lines.append("| " + " | ".join(cells) + " |")
            before = row
        exponents = [series["exponents"][what] for what in WHAT]
        fitted = [f"{one:.2f}" + (" (above)" if one > LINEAR else "") for one in exponents]
        lines.append(f"| {name}: exponent | at most {LINEAR} | {' | '.join(fitted)} |")
    about = f"{kept['users']:,} users of {kept['events']} events on average at size 1, {kept['items']:,} items"
    about += f", SASRec of width 32, one layer, window {kept['window']}, all windows"
    bounded = f"An evaluation reads a user's last {kept['window']} events and ranks once: beyond the window it does not grow with"
    bounded += " events a user, and before it the ranking does not"
    made = f"Made by `{kept['command']}` (commit {kept['commit']}, {kept['machine']}); the quickest of {kept['times']} runs"
    return [
        *lines,
        "",
        f"Generated data: {about}. In brackets: times the size before. {bounded}. {made}.",
        "",
    ]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--point"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    else:
        publish("scaling", __doc__, figures)
