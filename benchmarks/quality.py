"""The ranking tables of docs/results.md: one a protocol, a row a model over its seeds, published values beside.

A result file is named MODEL-DATASET.json or MODEL-SETTING-DATASET-seedN.json; what is left without data set and seed names the
row. Results of one row differ in their seed alone, or this raises ValueError."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import nan
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

from published import BELOW, GOALS, INSTEAD, NEEDS_GPU, NOTES, OVER, PUBLISHED, SEEDS, Relative


@dataclass(frozen=True)
class Run:
    """One committed result of `userec run`."""

    stem: str
    kept: dict[str, Any]

    @cached_property
    def report(self) -> dict[str, Any]:
        """As `userec run` wrote it."""
        report: dict[str, Any] = self.kept["report"]
        return report

    @property
    def dataset(self) -> str:
        """Its name."""
        return str(self.report["dataset"]["name"])

    @property
    def encoder(self) -> str:
        """Its name."""
        return str(self.report["experiment"]["encoder"]["name"])

    @property
    def split(self) -> str:
        """Its name."""
        return str(self.report["dataset"]["split"]["name"])

    @property
    def asked(self) -> tuple[str, str]:
        """The hash of the targets and the definition of NDCG@10, if any: where both are equal, values compare."""
        row = find(self.report["metrics"], "ndcg@10")
        return str(self.report["dataset"]["target_hash"]), row["definition"] if row else ""

    @property
    def row(self) -> str:
        """The file's name without the seed."""
        return re.sub(r"-seed\d+$", "", self.stem)

    @property
    def name(self) -> str:
        """The model and, where the file's name has one, its setting."""
        name, named = re.subn(rf"-{re.escape(self.dataset)}(?=-|$)", "", self.row, count=1)
        return name if named else self.encoder

    @property
    def label(self) -> str:
        """The name, and the encoder where the name does not tell it."""
        own = self.name == self.encoder or self.name.startswith(f"{self.encoder}-")
        return self.name if own else f"{self.name} ({self.encoder})"


@dataclass(frozen=True)
class Protocol:
    """Which runs are compared with one another, and by what."""

    title: str
    dataset: str
    split: str
    says: str
    metrics: tuple[str, ...] = ("ndcg@10", "hr@10")


PROTOCOLS: Final = (
    Protocol(
        "MovieLens-1M, leave-one-out",
        "movielens-1m",
        "leave_last",
        "All 3,706 rated items are ranked. Published values of 3,416 items are of BERT4Rec's file, which keeps those with five "
        "ratings or more: fewer to rank against. Nearest to this protocol are RecTools' (ties as here) and Meta's (the same "
        "items). Neighbouring events often share their second; ours keep the file's order.",
    ),
    Protocol("MovieLens-100K, leave-one-out", "movielens-100k", "leave_last", "All 1,682 rated items are ranked."),
    Protocol(
        "Beauty, leave-one-out",
        "beauty",
        "leave_last",
        "S3-Rec's file: 12,101 items, five reviews at least of each user and item. Other cuts of Amazon Beauty do not compare.",
    ),
    Protocol(
        "Diginetica, the given split",
        "diginetica",
        "given",
        "Each of the 60,858 published test lines is one question; clicked items are ranked too. Of one target, MAP@20 is MRR@20.",
        ("ndcg@10", "hr@10", "hr@20", "map@20"),
    ),
)

READING: Final = """\
The whole catalogue is ranked. A value is the mean over the seeds; of several, the least and the greatest stand in round brackets.
Square brackets: the 95 % bootstrap interval over users, its bounds averaged over the seeds (all seeds have the same users, so
more seeds do not narrow it). `n=1` marks a single seed. Times are medians over the runs that had the machine to themselves; with
`~`, epochs times what an epoch of the same command took alone (`python benchmarks/pace.py`). Neither counts validation.
"""


def load(files: Iterable[Path]) -> list[Run]:
    """The runs among the result files."""
    kept = [(file.stem, json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return [Run(stem, content) for stem, content in kept if "report" in content]


def cell(row: dict[str, Any] | None) -> str:
    """Value and interval."""
    if row is None or row["value"] is None:
        return "-"
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]" if row["low"] is not None else f"{row['value']:.4f}"


def test(rows: list[dict[str, Any]], evaluator: str) -> list[dict[str, Any]]:
    """The evaluator's test rows of all users."""
    return [row for row in rows if row["evaluator"] == evaluator and row["split"] == "test" and "slice" not in row]


def find(rows: list[dict[str, Any]], metric: str) -> dict[str, Any] | None:
    """The test row of that ranking metric, of all users; of baselines that of popularity."""
    found = (row for row in test(rows, "ranking") if row["metric"] == metric)
    return next((row for row in found if row.get("encoder", "popularity") == "popularity"), None)


def grouped(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ in their seed alone, by seed. Raises ValueError where a seed comes twice or a setting differs."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        key = (run.name, run.encoder, run.dataset, run.split, *run.asked)
        groups.setdefault(key, []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: (int(run.kept["seed"]), run.stem))
        for one, other in pairwise(group):
            if one.kept["seed"] == other.kept["seed"]:
                raise ValueError(f"{one.stem} and {other.stem} have the same seed, {one.kept['seed']}: remove one")
            if differing := differences(one, other):
                raise ValueError(
                    f"{one.stem} and {other.stem} are one row and differ in {', '.join(differing)}: name the setting"
                )
    return list(groups.values())


def differences(one: Run, other: Run) -> list[str]:
    """Settings of training that two runs both have and that differ. A setting that came later is in one of them alone."""
    found = []
    for part in ("dataset", "encoder", "objective", "split", "batch", "train"):
        first, second = (run.report["experiment"][part] or {} for run in (one, other))  # who counts has no objective
        shared = (first.keys() & second.keys()) - {"checkpoint_seconds", "eval_rows", "eval_tokens"}
        found += [f"{part}.{key}" for key in sorted(shared) if first[key] != second[key]]
    return found


def numbers(group: list[Run], metric: str, bound: str = "value") -> list[float]:
    """The metric, or one of its bounds, of each run that has it."""
    rows = (find(run.report["metrics"], metric) for run in group)
    return [row[bound] for row in rows if row is not None and row[bound] is not None]


def spread(group: list[Run], metric: str) -> str:
    """The metric's mean over the seeds, their range where there are several, and the interval."""
    values, low, high = (numbers(group, metric, bound) for bound in ("value", "low", "high"))
    if not values:
        return "-"
    between = f" ({min(values):.4f} to {max(values):.4f})" if len(values) > 1 else ""
    return f"{mean(values):.4f}{between}" + (f" [{mean(low):.4f}, {mean(high):.4f}]" if low and high else "")


def costs(group: list[Run], paces: dict[str, Any]) -> tuple[str, str, str]:
    """Training seconds and targets a second, of an epoch's pace where every run had company, else `-`; and epochs."""
    alone = [run.report["timing"] for run in group if "beside" not in run.kept]
    seconds, speed = ([timing[key] for timing in alone if timing.get(key)] for key in ("train_s", "targets_per_s"))
    epochs = [run.report["timing"]["epochs"] for run in group]
    if not alone and (pace := paces.get(group[0].row)):
        shown = f"~{median(epochs) * pace['epoch_s']:,.0f}", f"~{pace['targets_per_s']:,.0f}"
    else:
        shown = f"{median(seconds):,.0f}" if seconds else "-", f"{median(speed):,.0f}" if speed else "-"
    return (
        *shown,
        f"{median(epochs):g}" if len(set(epochs)) == 1 else f"{min(epochs)} to {max(epochs)}",
    )


def ranked(row: dict[str, Any]) -> str:
    """How many items the metric's definition says were ranked."""
    found = re.search(r"catalogue=\w+\((\d+)\)", row["definition"])
    return f"{int(found[1]):,}" if found else "-"


def beside(name: str, dataset: str) -> tuple[str, str, str]:
    """Published values, their numbers of items, and protocol with source; a line each."""
    found = [one for one in PUBLISHED if (one.model, one.dataset) == (name, dataset)]
    if not found:
        return "none known in this protocol", "-", "-"
    items = (f"{one.items:,}" if one.items else "not told" for one in found)
    return "<br>".join(one.values for one in found), "<br>".join(items), "<br>".join(f"{x.protocol}: {x.source}" for x in found)


def value(group: list[Run], metric: str = "ndcg@10", bound: str = "value") -> float:
    """The mean of the metric, or of one of its bounds, over the seeds; NaN where none has it."""
    found = numbers(group, metric, bound)
    return mean(found) if found else nan


def of_users(group: list[Run], users: str) -> float:
    """The mean NDCG@10 of those users over the seeds that `measure.py --users` told them apart in; NaN without one."""
    found = [part["value"] for run in group if (part := run.kept.get("part")) is not None and part["users"] == users]
    return mean(found) if found else nan


def lacking(goal: Relative, group: list[Run], groups: list[list[Run]]) -> str:
    """How the row misses a goal that another row sets; empty where it reaches it."""
    same = (group[0].dataset, group[0].split, group[0].asked)
    others = [one for one in groups if one[0].name == goal.other and (one[0].dataset, one[0].split, one[0].asked) == same]
    whom = f" of users {goal.users.replace('-', ' to ')}" if goal.users else ""
    own, theirs = (of_users(one, goal.users) if goal.users else value(one) for one in (group, others[0] if others else []))
    if own >= goal.times * theirs:
        return ""
    if own != own or theirs != theirs:  # NaN
        return f"NDCG@10{whom} is not measured beside {goal.other}'s"
    least = f"{goal.times:g} times " if goal.times != 1 else ""
    return f"NDCG@10{whom}, {own:.4f}, is less than {least}{goal.other}'s {theirs:.4f}"


def aimed(goals: Iterable[Relative], run: Run) -> list[Relative]:
    """Those of the goals that are the row's."""
    return [goal for goal in goals if goal.model == run.name and goal.dataset in (None, run.dataset)]


def behind(group: list[Run], groups: list[list[Run]]) -> list[str]:
    """A sentence for each goal that another row sets and this one misses."""
    found = (lacking(goal, group, groups) for goal in aimed(OVER, group[0]))
    return [f"{what}." for what in found if what]


def short(group: list[Run], groups: list[list[Run]]) -> list[str]:
    """A sentence where the row's own goal is missed, with what there is in its place; and where seeds are too few to judge."""
    first = group[0]
    key, says = (first.name, first.dataset), []
    wanted = SEEDS.get(key, SEEDS.get((None, first.dataset), 1))
    if len(group) < wanted:
        says.append(f"Too few seeds: {len(group)} of {wanted}.")
    reached, goal = value(group), GOALS.get(key)
    if goal is not None and reached < goal:
        told, open_ = f"NDCG@10 {reached:.4f} misses the goal of {goal:.3f}", "" if key in NOTES else "; not explained yet"
        instead = {one: lacking(one, group, groups) for one in aimed(INSTEAD, first)}
        met = [one for one, what in instead.items() if not what]
        if met:
            says.append(f"{told}; in its place, of users {met[0].users} it is at least {met[0].times:g} times {met[0].other}'s.")
        else:
            says.append(f"{'; '.join((told, *instead.values()))}{open_}.")
    return says


def noted(run: Run) -> list[str]:
    """What a reader must know of the row."""
    note = NOTES.get((run.name, run.dataset))
    return [note] if note else []


def remarks(groups: list[list[Run]]) -> list[str]:
    """A line for each row that misses a goal, has too few seeds or does not beat popularity, and for each note."""
    lines = []
    for group in groups:
        first = group[0]
        says = [*short(group, groups), *behind(group, groups)]
        popular = find(first.report["baselines"], "ndcg@10")
        if popular is not None and not (popular["high"] is not None and value(group, bound="low") > popular["high"]):
            says.append("It does not beat popularity beyond the intervals.")
        says += noted(first)
        if says:
            lines.append(f"- **{first.label}**: {' '.join(says)}")
    return [*lines, ""] if lines else []


def over_bias(groups: list[list[Run]]) -> list[str]:
    """A line for each rating model whose RMSE, mean over its seeds, is not below that of the baseline it must beat."""

    def rmse(group: list[Run], rows: str, task: str, encoder: str | None) -> list[float]:
        found = (row for run in group for row in test(run.report[rows], "rating") if row["task"] == task)
        found = (row for row in found if row["metric"] == "rmse" and row.get("encoder") == encoder)
        return [row["value"] for row in found if row["value"] is not None]

    lines = []
    for group in groups:
        for (encoder, task), baseline in BELOW.items():
            own, theirs = rmse(group, "metrics", task, None), rmse(group, "baselines", task, baseline)
            if group[0].encoder == encoder and own and theirs and mean(own) >= mean(theirs):
                told = f"RMSE {mean(own):.4f} is not below {baseline}'s {mean(theirs):.4f}"
                lines.append(f"- **{group[0].label}**, {group[0].dataset}: {told}.")
    return [*lines, ""] if lines else []


def parted(groups: list[list[Run]]) -> list[str]:
    """NDCG@10 of those users whom `measure.py --users` told apart, a table each such range."""
    lines = []
    for users in sorted({run.kept["part"]["users"] for group in groups for run in group if "part" in run.kept}):
        found = [
            (group[0].label, [run.kept["part"] for run in group if run.kept.get("part", {}).get("users") == users])
            for group in groups
        ]
        rows = sorted(((label, parts) for label, parts in found if parts), key=lambda row: -mean(one["value"] for one in row[1]))
        lines += [f"Users {users.replace('-', ' to ')} alone:", "", "| model | seeds | NDCG@10 | users |", "|---|---|---|---|"]
        for label, parts in rows:
            bounds = ", ".join(f"{mean(one[end] for one in parts):.4f}" for end in ("low", "high"))
            shown = f"{mean(one['value'] for one in parts):.4f} [{bounds}]"
            lines.append(f"| {label} | {len(parts)} | {shown} | {parts[0]['n']:,} |")
        lines.append("")
    return lines


def awaited(protocol: Protocol, known: list[str], paces: dict[str, Any]) -> list[str]:
    """A row without quality for each model of the data set that nobody could train yet."""
    lines = []
    for name, dataset in NEEDS_GPU:
        if dataset == protocol.dataset and name not in known:
            pace = paces.get(f"{name}-{dataset}")
            speed = f"~{pace['targets_per_s']:,.0f}" if pace else "-"
            cells = (name, "-", "needs GPU", *["-"] * len(protocol.metrics), *["-"] * 3, speed, "-", *beside(name, dataset))
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def section(protocol: Protocol, runs: list[Run], paces: dict[str, Any]) -> list[str]:
    """A protocol's heading, and a table for all runs that compare; nothing where no run is of it."""
    lines = [f"## Ranking: {protocol.title}", "", protocol.says, ""]
    names = [metric.upper() for metric in protocol.metrics]
    sides = ("popularity NDCG@10", "users", "items", "train s", "targets/s", "epochs")
    columns = ("model", "seeds", *names, *sides, "published", "its items", "its protocol: source")
    tables: dict[tuple[str, str], list[list[Run]]] = {}
    for group in grouped(runs):
        tables.setdefault(group[0].asked, []).append(group)
    for (target_hash, definition), groups in sorted(tables.items()):
        groups.sort(key=lambda group: (-value(group), group[0].name))
        lines += [f"Target hash `{target_hash}`; `{definition}`.", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
        for group in groups:
            first = group[0]
            seeds = ", ".join(str(run.kept["seed"]) for run in group) + (" (n=1)" if len(group) == 1 else "")
            row = find(first.report["metrics"], "ndcg@10")
            assert row is not None
            metrics = [spread(group, metric) for metric in protocol.metrics]
            popular = cell(find(first.report["baselines"], "ndcg@10"))
            cells = (first.label, seeds, *metrics, popular, f"{row['n']:,}", ranked(row), *costs(group, paces))
            lines.append(f"| {' | '.join((*cells, *beside(first.name, first.dataset)))} |")
        lines += [*awaited(protocol, [group[0].name for group in groups], paces), "", *remarks(groups), *parted(groups)]
    return lines if tables else []


def compared(runs: list[Run], paces: dict[str, Any]) -> tuple[list[str], list[Run]]:
    """All protocols' sections, and the runs that are of none; nor is one that ranked for nobody."""
    ranking = [run for run in runs if numbers([run], "ndcg@10")]
    by_protocol = {
        protocol: [run for run in ranking if (run.dataset, run.split) == (protocol.dataset, protocol.split)]
        for protocol in PROTOCOLS
    }
    taken = {run.stem for own in by_protocol.values() for run in own}
    lines = [line for protocol, own in by_protocol.items() for line in section(protocol, own, paces)]
    return ([READING, *lines] if lines else []), [run for run in runs if run.stem not in taken]
