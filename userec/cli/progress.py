"""What a run shows: bars on a terminal, plain lines elsewhere, and the result table at the end. An observer like any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import pluggy
from rich import box
from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from userec.errors import UserError
from userec.markers import hookimpl

LINE_SECONDS = 15.0
"""Without a terminal, a line of training no oftener."""

PLAIN_WIDTH = 180
"""Columns, where there is no terminal to ask."""


class Observers:
    """Calls every observer of a hook, each alone: one that raises is told of and not called again; the run goes on."""

    def __init__(self, manager: pluggy.PluginManager, warn: Callable[[str], None]) -> None:
        self.manager, self.warn = manager, warn
        self.failed: set[str] = set()

    def __call__(self, hook: str, **values: Any) -> None:
        """The hook with its arguments."""
        for observer in getattr(self.manager.hook, hook).get_hookimpls():
            if observer.plugin_name in self.failed:
                continue
            try:
                observer.function(*(values[name] for name in observer.argnames))
            except UserError:
                raise
            except Exception as error:
                self.failed.add(observer.plugin_name)
                self.warn(f"observer {observer.plugin_name} failed in {hook} and is left out: {type(error).__name__}: {error}")


class Console:
    """The terminal of one run."""

    def __init__(self, stream: TextIO) -> None:
        self.rich = RichConsole(file=stream, highlight=False, width=None if stream.isatty() else PLAIN_WIDTH)
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
        self.rich.print(line, markup=False, soft_wrap=True)

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


def result_tables(report: dict[str, Any], headlines: Mapping[str, tuple[str, ...]]) -> Iterator[Table]:
    """A table an evaluator: its test metrics (those of `headlines`, where it has some) with intervals, baselines beside.

    Rows of a slice of the users stand below the row of all of them."""
    model, data = report["experiment"]["encoder"]["name"], report["dataset"]["name"]
    beside = {(row["encoder"], *_key(row)): row for row in report["baselines"]}
    test = [row for row in report["metrics"] if row["split"] == "test"]
    for evaluator in dict.fromkeys(row["evaluator"] for row in test):
        names = list(dict.fromkeys(row["encoder"] for row in report["baselines"] if row["evaluator"] == evaluator))
        own = [row for row in test if row["evaluator"] == evaluator]
        sliced = any("slice" in row for row in own)
        table = Table(box=box.SIMPLE, title=f"{evaluator}: {model} on {data}, test", title_justify="left")
        for column in ("task", "metric", *(["slice"] if sliced else [])):
            table.add_column(column, no_wrap=True)
        for column in (model, *names):
            table.add_column(column, justify="right")  # where there is no room, intervals stand below their values
        table.add_column("n", justify="right", no_wrap=True)
        shown = headlines.get(evaluator, ())
        for row in own:
            if not shown or row["metric"].partition("~")[0] in shown:
                others = [beside.get((name, *_key(row))) for name in names]
                about = (row["task"], row["metric"], *([row.get("slice", "")] if sliced else []))
                table.add_row(*about, _cell(row), *map(_cell, others), str(row["n"] or ""))
        yield table


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["evaluator"], row["task"], row["split"], row["metric"], row.get("slice", ""), row.get("period")


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "-"
    if row["low"] is None:
        return f"{row['value']:.4f}"
    return f"{row['value']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
