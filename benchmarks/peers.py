"""userec beside RecTools 0.19 and RecBole 1.2.1 on MovieLens-1M, the same model in each, in one run:

    python benchmarks/peers.py [--data-dir ../shared/data] [--model sasrec ...] [--length 50 200] [--save]
    python benchmarks/peers.py --quality [--model sasrec ...] [--save]

Alike: the archive, the targets (all but each user's last two events are trained on), window, width 64, two layers, dropout 0.2,
the catalogue, fp32, two threads, the version of torch. Each system has an environment of its own, made once in
benchmarks/.work/peers, and a process of its own, `benchmarks/peers/run_SYSTEM.py`; what is measured is its own loading, training
loop and evaluation. Before the race each of RecTools' batch sizes is tried, and the one that trains most targets a second races;
of evaluation batch sizes each peer's quickest counts. The systems take turns, five times, each time another first; ratios are of
medians. `--quality` instead trains each to as many targets, by the same optimizer, rate and users a batch in userec and RecTools,
and has one judge rank the validation targets by the scores that each gives.

`--save` keeps benchmarks/results/peers.json (or peers-quality.json), which docs/results.md is made from."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterable, Sequence
from importlib.metadata import version
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
"""What pip is asked for, call by call; of torch's range, the very version that userec runs on."""
SYSTEMS: Final = {
    "sasrec": ("userec", "rectools", "recbole"),
    "bert4rec": ("userec", "rectools", "recbole"),
    "gru4rec": ("userec", "recbole"),  # RecTools has none
}
LENGTHS: Final = {"sasrec": (200, 50), "bert4rec": (200,), "gru4rec": (200,)}
TURNS: Final = 5
THREADS: Final = 2
BATCHES: Final = {
    "userec": {50: (5, 60), 200: (5, 60)},
    "recbole": {50: (3, 20), 200: (2, 10)},
}
"""{length: (batches before the clock, timed ones)}. userec's have some 6,000 events, RecBole's 256 prefixes."""
ROWS: Final = {50: {128: (2, 24), 512: (1, 6)}, 200: {32: (8, 32), 128: (2, 8)}}
"""{length: {users a batch: (batches before the clock, timed ones)}} that RecTools is tried at; 128 are its default."""
TRIALS: Final = 2
JUDGED_ROWS: Final = 128
"""Users a batch in `--quality`."""
EPOCHS: Final = {"sasrec": 20, "bert4rec": 40}
"""Epochs of RecTools whose targets all train in `--quality`. RecBole would take an hour and a half for as many: left out."""

WHAT: Final[dict[str, str]] = {
    "targets_per_s": "trained targets a second",
    "startup_s": "archive (RecBole: atomic file) to a model ready to train, seconds, imports apart",
    "ready_s": "the same from the start of the process, seconds",
    "evaluate_s": "full ranking of 6,040 users with metrics, seconds",
    "peak_mb": "peak memory, MB",
}
SIZES: Final = {"batch": "a training batch", "evaluate_batch": "a batch of the evaluation"}
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
WHY: Final[dict[tuple[str, int, str], str]] = {
    ("sasrec", 200, "targets_per_s"): (
        "The goal was set when RecBole trained 85 targets a second. Half of userec's step are matrix products; exponentials and"
        " attention take a fifth"
    ),
    ("sasrec", 200, "evaluate_s"): (
        "The goal was set when RecBole took 6.0 s. Attention and matrix products are three fifths of userec's time, and of what"
        " is left no operator takes a tenth"
    ),
    ("sasrec", 50, "evaluate_s"): (
        "The goal was set when RecBole's quickest batch size took 0.93 s. Attention and matrix products are half of userec's"
        " time, and of what is left no operator takes a tenth"
    ),
}
"""What was found out about a goal that was missed, by `PROFILE`."""
PROFILE: Final = "python benchmarks/peers/profile_userec.py --data-dir ../shared/data"
NAMES: Final = {"rectools": "RecTools", "recbole": "RecBole"}
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
            exact = [f"torch=={version('torch')}" if word == TORCH else word for word in words]
            subprocess.run([str(python), "-m", "pip", "install", "-q", *exact], check=True, stdout=sys.stderr)
        made.write_text(asked)
    return str(python)


def same_torch() -> None:
    """Stops where an environment has another torch than userec runs on: then the race is one of torches too."""
    ask = "from importlib.metadata import version; print(version('torch'))"
    for system in PIP:
        found = subprocess.check_output([python_of(system), "-c", ask], text=True).strip()
        if found != version("torch"):
            told = f"{system}'s environment has torch {found}, userec runs on {version('torch')}"
            raise SystemExit(f"{told}: remove {WORK / 'peers' / system} and it is made anew, with userec's")


def said(system: str, script: str, given: argparse.Namespace, *words: str) -> Kept:
    """The last line that a script prints, in a process of its own and the environment of that system."""
    threads = {name: str(given.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    call = [python_of(system), str(HERE / "peers" / script), "--data-dir", str(given.data_dir.resolve()), *words]
    done = subprocess.run(call, env={**os.environ, **threads}, check=True, text=True, stdout=subprocess.PIPE)
    found: Kept = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), file=sys.stderr)
    return found


def run(system: str, model: str, length: int, given: argparse.Namespace, *words: str) -> Kept:
    """What the runner of a system says."""
    about = ["--model", model, "--length", str(length), "--attention-dropout", str(given.attention_dropout)]
    about += ["--atomic", str(given.atomic)] if system == "recbole" else []
    return said(system, f"run_{system}.py", given, *about, *words)


def rotated(systems: Sequence[str], turn: int) -> list[str]:
    """Their order at that turn."""
    first = turn % len(systems)
    return [*systems[first:], *systems[:first]]


def median(runs: Sequence[Kept]) -> Kept:
    """The median of every number, the range of those that are told, words that differ joined; all else as the last run says."""
    out = dict(runs[-1])
    for name, value in out.items():
        if isinstance(value, float):
            out[name] = statistics.median(run[name] for run in runs)
        elif isinstance(value, str):
            out[name] = " or ".join(dict.fromkeys(run[name] for run in runs))
    out["range"] = {name: [min(run[name] for run in runs), max(run[name] for run in runs)] for name in WHAT if name in out}
    return out


def timed(warm: int, steps: int, given: argparse.Namespace) -> list[str]:
    """The words for so many batches, or fewer where `--steps` says so."""
    return ["--warm", str(warm), "--steps", str(min(steps, given.steps or steps))]


def trials(model: str, length: int, given: argparse.Namespace) -> dict[int, Kept]:
    """{users a batch: trained targets a second and peak memory, of the quicker trial} of RecTools."""
    found: dict[int, Kept] = {}
    for _ in range(TRIALS):
        for rows, batches in ROWS[length].items():
            words = [*timed(*batches, given), "--rows", str(rows), "--no-evaluation"]
            trial = run("rectools", model, length, given, *words)
            if rows not in found or trial["targets_per_s"] > found[rows]["targets_per_s"]:
                found[rows] = {name: trial[name] for name in ("targets_per_s", "peak_mb")}
    return found


def races(given: argparse.Namespace) -> Iterable[Kept]:
    """One of each model and length: the median of every system, RecTools at the batch size that trains fastest."""
    for model in given.model or SYSTEMS:
        for length in given.length or LENGTHS[model]:
            words = {name: timed(*each[length], given) for name, each in BATCHES.items()}
            tried = trials(model, length, given) if "rectools" in SYSTEMS[model] else {}
            if tried:
                best = max(tried, key=lambda rows: tried[rows]["targets_per_s"])
                words["rectools"] = [*timed(*ROWS[length][best], given), "--rows", str(best)]
            runs: dict[str, list[Kept]] = {system: [] for system in SYSTEMS[model]}
            for turn in range(given.turns):
                for system in rotated(SYSTEMS[model], turn):
                    runs[system].append(run(system, model, length, given, *words[system]))
            medians = {system: median(each) for system, each in runs.items()}
            yield {"model": model, "length": length, "tried": tried, "systems": medians}


def qualities(given: argparse.Namespace) -> Iterable[Kept]:
    """RecTools trains its epochs, the others as many targets; the same judge for all."""
    for model in given.model or EPOCHS:
        for length in given.length or (50,):
            epochs, rows = given.epochs or EPOCHS[model], ["--rows", str(JUDGED_ROWS), "--warm", "0"]
            found = {"rectools": run("rectools", model, length, given, *rows, "--epochs", str(epochs))}
            targets = [*rows, "--targets", str(found["rectools"]["trained"])]
            for system in ("userec", "recbole") if given.recbole else ("userec",):
                found[system] = run(system, model, length, given, *targets)
            yield {"model": model, "length": length, "epochs": epochs, "systems": found}


def ratio(name: str, systems: Kept, peer: str) -> float:
    """How many times better userec is."""
    own, other = systems["userec"][name], systems[peer][name]
    return float(own / other if name == "targets_per_s" else other / own)


def figure(name: str, found: Kept) -> str:
    """The median with the range of the turns."""
    digits = 0 if name in ("targets_per_s", "peak_mb") else 1
    value, low, high = (f"{each:,.{digits}f}" for each in (found[name], *found["range"][name]))
    return f"{value} ({low} to {high})"


def compared(race: Kept) -> list[str]:
    """The rows of one model and length."""
    lines = []
    systems = race["systems"]
    for name, what in SIZES.items():
        sizes = [systems[system][name] if system in systems else "-" for system in ("userec", "rectools", "recbole")]
        lines.append(f"| `{race['model']}`, {race['length']} | {what} | {' | '.join(sizes)} | | |")
    for name, what in WHAT.items():
        cells = [f"`{race['model']}`, {race['length']}", what]
        cells += [figure(name, systems[system]) if system in systems else "-" for system in ("userec", "rectools", "recbole")]
        goals = GOALS.get((race["model"], race["length"], name), {})
        for peer in ("rectools", "recbole"):
            goal = f" (goal {goals[peer]})" if peer in goals else ""
            cells.append(f"{ratio(name, systems, peer):.1f}{goal}" if peer in systems else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def missed(race: Kept) -> list[str]:
    """A line for each goal that this model and length miss, and what was found out about it."""
    lines = []
    for name, what in WHAT.items():
        key = (race["model"], race["length"], name)
        for peer, goal in GOALS.get(key, {}).items():
            reached = ratio(name, race["systems"], peer)
            if reached < goal:
                told = f"`{race['model']}`, {race['length']}, {what}: {reached:.1f} times {NAMES[peer]} misses the goal of {goal}"
                seen = f" (`{PROFILE} --model {race['model']} --length {race['length']}`)"
                lines.append(f"- {told}. {WHY[key] + seen if key in WHY else 'Not explained yet'}.")
    return lines


def table(kept: Kept) -> list[str]:
    """The section of docs/results.md: times better than each peer, with the goal, and what was missed."""
    lines = ["## Beside other libraries: speed and memory", ""]
    lines += ["| model, length | what | userec | RecTools | RecBole | times RecTools | times RecBole |", "|---" * 7 + "|"]
    for race in kept["races"]:
        lines += compared(race)
    short = [line for race in kept["races"] for line in missed(race)]
    return [
        *lines,
        "",
        *([*short, ""] if short else []),
        f"{NOTE} Times better: more targets, or less time or memory. {sizes_tried(kept)}"
        " RecBole's atomic file was written before, by a process of its own,"
        f" in {kept['written']['write_s']:.1f} s: not counted. {made_by(kept)};"
        f" medians of {kept['turns']} turns, the range in brackets.",
        "",
    ]


def sizes_tried(kept: Kept) -> str:
    """What RecTools' batch sizes came to before the race."""
    found = []
    for race in kept["races"]:
        told = (f"{each['targets_per_s']:,.0f} ({each['peak_mb']:,.0f} MB) at {rows}" for rows, each in race["tried"].items())
        found += [f"`{race['model']}`, {race['length']}: {', '.join(told)}"] if race["tried"] else []
    about = "RecTools races at the users a batch that train most targets a second, and its memory is of that batch; tried before"
    return f"{about} the race, training alone: {'; '.join(found)}." if found else ""


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
        f"One seed; userec and RecTools both train by Adam at a constant rate of 1e-3 with {JUDGED_ROWS} random users a batch,"
        " which is not userec's own recipe. One judge ranks all items not seen before. RecTools knows the items of the events"
        " that it trains on, the others are missed. RecBole would need an hour and a half for as many targets."
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
    given = parser.parse_args(words)
    without = [model for model in given.model or () if given.quality and model not in EPOCHS]
    if without:
        parser.error(f"--quality compares with RecTools, which has no {', '.join(without)}: --model takes {', '.join(EPOCHS)}")
    return given


def main() -> None:
    """Measure alone, print, and keep with `--save`."""
    given = read_words()
    name, measure, show = ("peers-quality", qualities, quality_table) if given.quality else ("peers", races, table)
    lock = alone()
    same_torch()
    asked = [word for word in sys.argv[1:] if word != "--save" and str(given.data_dir) != word and word != "--data-dir"]
    command = " ".join(["python benchmarks/peers.py --data-dir ../shared/data", *asked, "--save"])
    about = {"command": command, "commit": commit(), "machine": machine(), "turns": given.turns, "threads": given.threads}
    with tempfile.TemporaryDirectory() as folder:
        given.atomic = Path(folder)
        written = said("recbole", "write_recbole.py", given, "--atomic", folder)
        kept = {**about, "attention_dropout": given.attention_dropout, "written": written, "races": list(measure(given))}
    print("\n".join(show(kept)))
    if given.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    del lock


if __name__ == "__main__":
    main()
