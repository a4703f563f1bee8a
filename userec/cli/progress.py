"""What a run shows: bars on a terminal, plain lines elsewhere, and the result table at the end. An observer like any other."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, TextIO

from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from userec.markers import hookimpl

LINE_SECONDS = 15.0
"""Without a terminal, a line of training no oftener."""


class Console:
    """The terminal of one run."""

    def __init__(self, stream: TextIO) -> None:
        self.rich = RichConsole(file=stream, highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, TextColumn("{task.fields[now]}"), console=self.rich, disable=not self.rich.is_terminal)
        self.bar: Any = None
        self.lined = time.monotonic()

    def __enter__(self) -> Console:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def tell(self, line: str) -> None:
        """One plain line."""
        self.rich.print(line, markup=False)

    def print(self, thing: Any) -> None:
        """Anything that rich can print."""
        self.rich.print(thing)

    @hookimpl
    def userec_run_started(self, run: Any) -> None:
        """Say what is about to happen."""
        self.tell(f"training {run.model} on {run.dataset}")

    @hookimpl
    def userec_progress(self, run: Any, step: int, values: dict[str, float]) -> None:
        """Move the bar, or print a line now and then."""
        text = "  ".join(f"{name.removeprefix('train/')} {value:.4g}" for name, value in values.items())
        validated = any(name.startswith("valid/") for name in values)
        if self.rich.is_terminal:
            if self.bar is None:
                self.bar = self.bars.add_task(run.model, total=run.total_steps, now="")
            self.bars.update(self.bar, completed=step, now=text)
        now = time.monotonic()
        if validated or (not self.rich.is_terminal and now - self.lined >= LINE_SECONDS):
            self.lined = now
            self.tell(f"step {step}/{run.total_steps}  {text}")


SHOWN = ("hr@10", "recall@10", "ndcg@10", "mrr", "map@10", "coverage@10")
"""Ranking has some thirty metrics; the table shows these of it and everything of the others. The report has all."""


def result_table(report: dict[str, Any]) -> Table:
    """Test metrics with their 95 % intervals, the baselines beside them."""
    table = Table(box=box.SIMPLE, title=f"{report['experiment']['encoder']['name']} on {report['dataset']['name']}, test")
    for column in ("evaluator", "task", "metric"):
        table.add_column(column)
    table.add_column(report["experiment"]["encoder"]["name"], justify="right")
    names = list(dict.fromkeys(row["encoder"] for row in report["baselines"]))
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("n", justify="right")
    beside = {(row["encoder"], *_key(row)): row for row in report["baselines"]}
    for row in _shown(report["metrics"]):
        others = [beside.get((name, *_key(row))) for name in names]
        table.add_row(row["evaluator"], row["task"], row["metric"], _cell(row), *map(_cell, others), str(row["n"] or ""))
    return table


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["evaluator"], row["task"], row["split"], row["metric"], row.get("slice", ""), row.get("period")


def _shown(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    test = [row for row in rows if row["split"] == "test"]
    return [row for row in test if row["evaluator"] != "ranking" or row["metric"].partition("~")[0] in SHOWN]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    if row["low"] is None:
        return f"{row['value']:.4f}"
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
