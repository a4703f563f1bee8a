"""Make docs/results.md from the committed results: `python benchmarks/tables.py`. A test fails where the two differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peers
import scaling
from quality import Run, behind, cell, compared, find, grouped, load, noted, over_bias, test

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results.md"

HEAD = """# Results

Made by `python benchmarks/tables.py` from the files in `benchmarks/results/`; do not edit by hand. Every row has the command
that made it. Metrics are on the test split, with 95 % bootstrap intervals over users; what each means is in
[evaluation.md](evaluation.md). A data set called `NAME@sample` is the embedded *generated* sample and says nothing about the
real data.
What the other evaluators say of runs that differ in their seed alone is of the first seed.
"""

SHOWN = {
    "classification": ("accuracy", "macro_f1", "auc"),
    "reid": ("mrr", "top@1", "eer"),
    "click": ("auc", "gauc", "logloss"),
    "rating": ("rmse", "mae"),
}
"""Evaluators beside `ranking`, and which of their metrics the page shows; the reports have all."""


def others(runs: list[Run]) -> list[str]:
    """One row a kept run that ranks and is of no protocol with a table of its own."""
    lines = [
        "## Ranking: other splits and data",
        "",
        "| model | data set | split | NDCG@10 | HR@10 | popularity NDCG@10 | n | train s | all s | peak MB | target hash |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        kept, report = run.kept, run.report
        ndcg, hr = find(report["metrics"], "ndcg@10"), find(report["metrics"], "hr@10")
        if ndcg is None:
            continue
        split = report["dataset"]["split"]
        leaky = {True: ", leaky", False: "", None: ", no times"}[split["leaky"]]
        names = (run.encoder, run.dataset, split["name"] + leaky)
        metrics = (cell(ndcg), cell(hr), cell(find(report["baselines"], "ndcg@10")), ndcg["n"])
        seconds = [f"{value:.0f}" for value in (report["timing"]["train_s"], kept["wall_s"])]
        if kept["resumed"]:
            seconds[1] = "-"
        costs = (*(["-", "-"] if "beside" in kept else seconds), f"{report['peak_rss_mb']:.0f}")
        lines.append("| " + " | ".join(map(str, (*names, *metrics, *costs, f"`{report['dataset']['target_hash']}`"))) + " |")
    groups = grouped(run for run in runs if find(run.report["metrics"], "ndcg@10") is not None)
    says = [(group[0], [*behind(group, groups), *noted(group[0])]) for group in groups]
    told = [f"- **{run.label}**, {run.dataset}: {' '.join(lacks)}" for run, lacks in says if lacks]
    return [*lines, "", *told, *([""] if told else [])]


def judged(runs: list[Run], evaluator: str) -> list[str]:
    """One row a metric of a kept run, its baselines beside it; of runs that differ in their seed alone, the first."""
    groups = grouped(run for run in runs if test(run.report["metrics"], evaluator))
    if not groups:
        return []
    first = [group[0] for group in groups]
    names = list(dict.fromkeys(row["encoder"] for run in first for row in test(run.report["baselines"], evaluator)))
    columns = ("model", "data set", "task", "metric", "value", *names, "n")
    lines = [f"## {evaluator}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for run in first:
        beside = {(row["encoder"], row["task"], row["metric"]): row for row in test(run.report["baselines"], evaluator)}
        for row in test(run.report["metrics"], evaluator):
            if row["metric"].partition("~")[0] in SHOWN[evaluator]:
                values = [cell(beside.get((name, row["task"], row["metric"]))) for name in names]
                about = (run.label, run.dataset, row["task"], row["metric"])
                lines.append("| " + " | ".join(map(str, (*about, cell(row), *values, row["n"]))) + " |")
    return [*lines, "", *(over_bias(groups) if evaluator == "rating" else [])]


def commands(runs: list[Run]) -> list[str]:
    """What made each run."""
    lines = ["## Made by", ""]
    for kept in (run.kept for run in runs):
        beside = f"; no times: {kept['beside']}" if "beside" in kept else ""
        again = "; trained before, judged by `--resume`" if kept["resumed"] else ""
        lines.append(f"- `{kept['command']}` (seed {kept['seed']}, commit {kept['commit']}, {kept['machine']}{again}{beside})")
    return [*lines, ""]


def speed(kept: dict[str, Any]) -> list[str]:
    """The spine's own speeds."""
    rows = [(f"`{name}`, seconds", f"{value:.2f}", "0.4") for name, value in kept["startup_s"].items()]
    first, sasrec = kept["movielens_1m_first_batch_s"], kept["sasrec_movielens_1m"]
    rows += [
        ("MovieLens-1M, archive to first batch, cold, seconds", f"{first['cold']:.2f}", "4"),
        ("the same, warm", f"{first['warm']:.2f}", "1"),
        (
            "full-catalogue evaluation over its forward passes alone (SASRec, length 200)",
            f"{sasrec['evaluation_over_forward']:.2f}",
            "1.3",
        ),
        ("loader's share of a training step (SASRec, length 200)", f"{100 * sasrec['loader_share']:.1f} %", "5 %"),
    ]
    lines = ["## Speeds of the spine", "", "| what | measured | goal, at most |", "|---|---|---|"]
    lines += [f"| {what} | {value} | {goal} |" for what, value, goal in rows]
    return [*lines, "", f"Made by `{kept['command']}` (commit {kept['commit']}, {kept['machine']}); medians.", ""]


def walk(kept: dict[str, Any]) -> list[str]:
    """How long a target-aware model takes to rank a catalogue."""
    widths = f"attention {'-'.join(map(str, kept['encoder']['attention']))}, head {'-'.join(map(str, kept['encoder']['hidden']))}"
    lines = ["## DIN ranks MovieLens-1M", "", "| what | seconds | goal, at most |", "|---|---|---|"]
    what = f"{kept['users']:,} users x {kept['items']:,} items, history {kept['encoder']['window']}, {widths}"
    lines.append(f"| {what} | {kept['seconds']:.0f} | 480, better 240 |")
    return [
        *lines,
        "",
        f"Made by `{kept['command']}` (commit {kept['commit']}, {kept['machine']}); one run, untrained weights.",
        "",
    ]


def kernels(kept: dict[str, Any]) -> list[str]:
    """What the kernels chosen on a CPU win over the plain forms, alone and in training."""
    lines = ["## Kernels on a CPU", "", "| op | at | pass | plain ms | chosen ms | times faster | goal, at least |"]
    lines.append("|---" * 7 + "|")
    for row in kept["ops"]:
        what = "forward and backward" if row["train"] else "forward"
        figures = (f"{row['plain_ms']:.1f}", f"{row['chosen_ms']:.1f}", f"{row['ratio']:.1f}", row["goal"] or "-")
        lines.append("| " + " | ".join(map(str, (f"`{row['op']}`", row["what"], what, *figures))) + " |")
    held = kept["linear_cross_entropy_memory_mb"]
    lines += ["", "| what | plain | chosen | ratio | goal, at least |", "|---|---|---|---|---|"]
    memory = (f"{held['plain']:.0f}", f"{held['chosen']:.0f}", f"{held['ratio']:.1f}")
    lines.append(f"| `linear_cross_entropy`, memory that one training call adds, MB | {' | '.join(memory)} | 8 |")
    lines += ["", "| a training step on MovieLens-1M, ms | before | plain forms now | now | times faster than before |"]
    lines.append("|---" * 5 + "|")
    for name, row in kept["training_step"].items():
        times = [f"{row[f'{side}_ms']:.0f}" for side in ("before", "plain", "now")]
        lines.append(f"| `{name}`, its recipe | {' | '.join(times)} | {row['before_ms'] / row['now_ms']:.2f} |")
    where = f"commit {kept['commit']}, {kept['machine']}, {kept['threads']} threads, torch {kept['torch']}"
    plain = "Plain: `USEREC_KERNELS=torch`, the padded or explicit form"
    return [
        *lines,
        "",
        f"{plain}. Made by `{kept['command']}` ({where}); medians of pairs measured in turn.",
        "",
    ]


def page(results: Path = HERE / "results") -> str:
    """The whole page, of the result files in that folder."""
    runs = load(sorted(results.glob("*.json")))
    paces = results / "pace.json"
    by_protocol, rest = compared(runs, json.loads(paces.read_text(encoding="utf-8")) if paces.is_file() else {})
    lines = [HEAD, *by_protocol, *others(rest)]
    lines += [line for evaluator in SHOWN for line in judged(runs, evaluator)]
    lines += commands(runs)
    grown = (("peers.json", peers.table), ("peers-quality.json", peers.quality_table), ("scaling.json", scaling.table))
    for name, table in (("spine.json", speed), ("din-ranking.json", walk), ("kernels.json", kernels), *grown):
        if (results / name).is_file():
            lines += table(json.loads((results / name).read_text(encoding="utf-8")))
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
