"""userec beside RecTools 0.19 and RecBole 1.2.1 on MovieLens-1M, the same model in each, in one run:

    python benchmarks/peers.py [--data-dir ../shared/data] [--model sasrec ...] [--length 50 200] [--save]
    python benchmarks/peers.py --quality [--model sasrec ...] [--save]

Alike: the archive, the targets (all but each user's last two events are trained on), window, width 64, two layers, dropout 0.2,
the catalogue, fp32, two threads. Each system has an environment of its own, made once in benchmarks/.work/peers, and a process of
its own, `benchmarks/peers/run_SYSTEM.py`; what is measured is its own loading, training loop and evaluation. The systems take
turns, five times, each time another first; ratios are of medians. `--quality` instead trains each to as many targets and has one
judge rank the validation targets by the scores that each gives.

`--save` keeps benchmarks/results/peers.json (or peers-quality.json), which docs/results.md is made from."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
from measure import HERE, RESULTS, WORK, alone, commit, machine

Kept = dict[str, Any]

TORCH: Final = "torch>=2.6,<2.14"
TABLES: Final = ("numpy==1.26.4", "pandas==2.3.3", "scipy==1.17.1")
PIP: Final = {
    "rectools": [["--only-binary", ":all:", "rectools[torch]==0.19.0", TORCH, *TABLES]],
    "recbole": [
        ["--only-binary", ":all:", TORCH, *TABLES]
        + ["scikit-learn", "tqdm", "colorlog==4.7.2", "colorama==0.4.4", "pyyaml", "tensorboard", "thop", "tabulate"]
        + ["plotly", "texttable", "psutil"],
        ["--no-deps", "recbole==1.2.1"],  # it asks for a ray that no longer runs
    ],
}
"""What pip is asked for, call by call."""
SYSTEMS: Final = {
    "sasrec": ("userec", "rectools", "recbole"),
    "bert4rec": ("userec", "rectools", "recbole"),
    "gru4rec": ("userec", "recbole"),  # RecTools has none
}
LENGTHS: Final = {"sasrec": (200, 50), "bert4rec": (200,), "gru4rec": (200,)}
TURNS: Final = 5
THREADS: Final = 2
BATCHES: Final = {
    ("userec", 50): (5, 60),
    ("userec", 200): (5, 60),
    ("rectools", 50): (2, 24),
    ("rectools", 200): (2, 8),
    ("recbole", 50): (3, 20),
    ("recbole", 200): (1, 3),
}
"""(batches before the clock, timed ones). userec's have some 6,000 events, RecTools' 128 users, RecBole's 256 prefixes."""
EPOCHS: Final = {"sasrec": 20, "bert4rec": 40}
"""Epochs of RecTools whose targets all train in `--quality`. RecBole would take an hour and a half for as many: left out."""

WHAT: Final[dict[str, str]] = {
    "targets_per_s": "trained targets a second",
    "startup_s": "archive to a model ready to train, seconds, imports apart",
    "ready_s": "the same from the start of the process, seconds",
    "evaluate_s": "full ranking of 6,040 users with metrics, seconds",
    "peak_mb": "peak memory, MB",
}
GOALS: Final[dict[tuple[str, int, str], dict[str, float]]] = {
    ("sasrec", 200, "targets_per_s"): {"rectools": 3, "recbole": 200},
    ("sasrec", 50, "targets_per_s"): {"rectools": 2},
    ("bert4rec", 200, "targets_per_s"): {"rectools": 2, "recbole": 3},
    ("gru4rec", 200, "targets_per_s"): {"recbole": 50},
    ("sasrec", 200, "startup_s"): {"rectools": 2, "recbole": 5},
    ("sasrec", 200, "evaluate_s"): {"rectools": 3, "recbole": 3},
    ("sasrec", 50, "evaluate_s"): {"recbole": 1.5},
    ("sasrec", 200, "peak_mb"): {"rectools": 2, "recbole": 6},
}
"""How many times better userec is to be, at least."""
CLOSE: Final = 0.01
"""How far apart NDCG@10 after equal targets may be."""
NOTE: Final = (
    "RecBole trains one target a row: a row for every prefix of a user's events. Most of the ratio to it is that design; the"
    " ratio to RecTools, which like userec trains every position of a row, is the one between implementations."
)


def python_of(system: str) -> str:
    """The interpreter of its environment; a peer's is made where it is not there yet, or was made of other packages."""
    if system == "userec":
        return sys.executable
    folder = WORK / "peers" / system
    python, made = folder / "bin" / "python", folder / "made.json"
    asked = json.dumps(PIP[system])
    if not made.is_file() or made.read_text() != asked:
        venv.create(folder, with_pip=True, clear=True)
        for words in PIP[system]:
            subprocess.run([str(python), "-m", "pip", "install", "-q", *words], check=True, stdout=sys.stderr)
        made.write_text(asked)
    return str(python)


def run(system: str, model: str, length: int, given: argparse.Namespace, *words: str) -> Kept:
    """What the runner of a system says, in a process of its own."""
    script = str(HERE / "peers" / f"run_{system}.py")
    about = ["--model", model, "--length", str(length), "--data-dir", str(given.data_dir.resolve())]
    about += ["--attention-dropout", str(given.attention_dropout)]
    threads = {name: str(given.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [python_of(system), script, *about, *words], env={**os.environ, **threads}, check=True, text=True, stdout=subprocess.PIPE
    )
    found: Kept = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), file=sys.stderr)
    return found


def rotated(systems: Sequence[str], turn: int) -> list[str]:
    """Their order at that turn."""
    first = turn % len(systems)
    return [*systems[first:], *systems[:first]]


def median(runs: Sequence[Kept]) -> Kept:
    """The median of every number, and the range of those that are told; what is no number as the last run says."""
    out = dict(runs[-1])
    for name, value in out.items():
        if isinstance(value, float):
            out[name] = statistics.median(run[name] for run in runs)
    out["range"] = {name: [min(run[name] for run in runs), max(run[name] for run in runs)] for name in WHAT if name in out}
    return out


def races(given: argparse.Namespace) -> Iterable[Kept]:
    """One of each model and length: the median of every system."""
    for model in given.model or SYSTEMS:
        for length in given.length or LENGTHS[model]:
            runs: dict[str, list[Kept]] = {system: [] for system in SYSTEMS[model]}
            for turn in range(given.turns):
                for system in rotated(SYSTEMS[model], turn):
                    warm, steps = BATCHES[system, length]
                    steps = min(steps, given.steps or steps)
                    runs[system].append(run(system, model, length, given, "--warm", str(warm), "--steps", str(steps)))
            yield {"model": model, "length": length, "systems": {system: median(each) for system, each in runs.items()}}


def qualities(given: argparse.Namespace) -> Iterable[Kept]:
    """RecTools trains its epochs, the others as many targets; the same judge for all."""
    for model in given.model or EPOCHS:
        for length in given.length or (50,):
            epochs = given.epochs or EPOCHS[model]
            found = {"rectools": run("rectools", model, length, given, "--epochs", str(epochs), "--warm", "0")}
            targets = ["--targets", str(found["rectools"]["trained"]), "--warm", "0"]
            for system in ("userec", "recbole") if given.recbole else ("userec",):
                found[system] = run(system, model, length, given, *targets)
            yield {"model": model, "length": length, "epochs": epochs, "systems": found}


def ratio(name: str, systems: Kept, peer: str) -> float:
    """How many times better userec is."""
    own, other = systems["userec"][name], systems[peer][name]
    return float(own / other if name == "targets_per_s" else other / own)


def compared(race: Kept) -> list[str]:
    """The rows of one model and length."""
    lines = []
    systems = race["systems"]
    for name, what in WHAT.items():
        cells = [f"`{race['model']}`, {race['length']}", what]
        for system in ("userec", "rectools", "recbole"):
            cells.append(
                f"{systems[system][name]:,.{1 if name.endswith('_s') and name != 'targets_per_s' else 0}f}"
                if system in systems
                else "-"
            )
        goals = GOALS.get((race["model"], race["length"], name), {})
        for peer in ("rectools", "recbole"):
            goal = f" (goal {goals[peer]})" if peer in goals else ""
            cells.append(f"{ratio(name, systems, peer):.1f}{goal}" if peer in systems else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table(kept: Kept) -> list[str]:
    """The section of docs/results.md: times better than each peer, with the goal."""
    lines = ["## Beside other libraries: speed and memory", ""]
    lines += ["| model, length | what | userec | RecTools | RecBole | times RecTools | times RecBole |", "|---" * 7 + "|"]
    for race in kept["races"]:
        lines += compared(race)
    return [
        *lines,
        "",
        f"{NOTE} Times better: more targets, or less time or memory. {made_by(kept)}; medians of {kept['turns']} turns.",
        "",
    ]


def quality_table(kept: Kept) -> list[str]:
    """The section of docs/results.md on what equal training comes to."""
    lines = ["## Beside other libraries: NDCG@10 on validation after as many trained targets", ""]
    lines += ["| model, length | targets | userec | RecTools | RecBole | userec less RecTools | goal |", "|---" * 7 + "|"]
    for race in kept["races"]:
        systems = race["systems"]
        values = {name: each["ndcg@10"] for name, each in systems.items()}
        cells = [f"`{race['model']}`, {race['length']}", f"{systems['rectools']['trained']:,}"]
        cells += [f"{values[name]:.4f}" if name in values else "-" for name in ("userec", "rectools", "recbole")]
        cells += [f"{values['userec'] - values['rectools']:+.4f}", f"at least -{CLOSE}"]
        lines.append("| " + " | ".join(cells) + " |")
    why = (
        "One seed; one judge ranks all items not seen before. RecTools knows the items of the events that it trains on, the"
        " others are missed. RecBole would need an hour and a half for as many targets."
    )
    return [*lines, "", f"{why} {made_by(kept)}.", ""]


def made_by(kept: Kept) -> str:
    """Where the figures are from, and what all systems shared."""
    packages = {name: each["versions"] for race in kept["races"] for name, each in race["systems"].items()}
    versions = ", ".join(f"{name} {said[name]}" for name, said in packages.items())
    shared = f"{kept['threads']} threads, dropout 0.2, of attention weights {kept['attention_dropout']:g}"
    torch = "/".join(dict.fromkeys(said["torch"] for said in packages.values()))
    return f"{versions}; torch {torch}; {shared}. Made by `{kept['command']}` (commit {kept['commit']}, {kept['machine']})"


def read_words(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    parser.add_argument("--model", nargs="+", choices=SYSTEMS)
    parser.add_argument("--length", nargs="+", type=int, choices=(50, 200))
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--recbole", action="store_true", help="with --quality: RecBole too, for hours")
    parser.add_argument("--epochs", type=int, help="with --quality: of RecTools")
    parser.add_argument("--attention-dropout", type=float, default=0.0, help="of attention weights, in every system")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--steps", type=int, help="timed batches, at most")
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--save", action="store_true")
    return parser.parse_args(words)


def main() -> None:
    """Measure alone, print, and keep with `--save`."""
    given = read_words()
    name, measure, show = ("peers-quality", qualities, quality_table) if given.quality else ("peers", races, table)
    lock = alone()
    for system in PIP:
        python_of(system)
    said = [word for word in sys.argv[1:] if word != "--save" and str(given.data_dir) != word and word != "--data-dir"]
    command = " ".join(["python benchmarks/peers.py --data-dir ../shared/data", *said, "--save"])
    about = {"command": command, "commit": commit(), "machine": machine(), "turns": given.turns, "threads": given.threads}
    kept = {**about, "attention_dropout": given.attention_dropout, "races": list(measure(given))}
    print("\n".join(show(kept)))
    if given.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    del lock


if __name__ == "__main__":
    main()
