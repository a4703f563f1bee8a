"""`userec data`: which data sets there are, how one is fetched, and what is in it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

    from userec.dataset.contract import Dataset
    from userec.schema import Task

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help="Data sets: list, fetch, describe.")

DataDir = Annotated[Path | None, typer.Option(help="Where data sets lie. Default: USEREC_DATA, else the cache.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def print_list(ctx: typer.Context, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """The data sets, their tasks, and where each one lies."""
    from userec.cli.output import print_json, print_table, registry_of

    registry = registry_of(ctx)
    rows = [_row(name, dataset, registry.origins.get(("datasets", name)), data_dir) for name, dataset in _sorted(registry)]
    if as_json:
        print_json(rows)
        return
    table = [
        [row["name"], ", ".join(row["tasks"]), row["found"] or ("not here, sample" if row["sample"] else "not here")]
        for row in rows
    ]
    print_table(["name", "tasks", "found"], table)


def _sorted(registry: Any) -> list[tuple[str, type[Dataset]]]:
    return sorted(registry.plugins["datasets"].items())


def _row(name: str, dataset: type[Dataset], origin: Any, data_dir: Path | None) -> dict[str, Any]:
    from userec.dataset.contract import Dataset
    from userec.dataset.locate import data_folder
    from userec.errors import UserError

    try:
        found: str | None = str(dataset.locate(data_folder(data_dir, os.environ)))
    except UserError:
        found = None
    return {
        "name": name,
        "summary": dataset.summary,
        "distribution": origin.distribution if origin else None,
        "version": origin.version if origin else None,
        "fidelity": dataset.fidelity,
        "tasks": [task.name for group in dataset.tasks for task in group],
        "fields": list(dataset.fields),
        "found": found,
        "sample": dataset.write_sample.__func__ is not Dataset.write_sample.__func__,  # type: ignore[attr-defined]
        "address": dataset.source.url if dataset.source else None,
    }


@app.command("fetch")
def fetch(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A data set, as `userec data list` names it.")],
    data_dir: DataDir = None,
) -> None:
    """Download a data set into the data folder, in its original layout."""
    from rich.console import Console

    from userec.cli.output import registry_of
    from userec.dataset.download import extract
    from userec.dataset.download import fetch as download
    from userec.dataset.locate import data_folder
    from userec.errors import UserError

    dataset = registry_of(ctx).find("datasets", name)
    root = data_folder(data_dir, os.environ)
    if any((home / file).exists() for home in (root, root / dataset.name) for file in dataset.files):
        typer.echo(f"{name} is already in {dataset.locate(root)}")
        return
    if dataset.source is None:
        raise UserError(
            f"data set {name!r} has no public address; put {dataset.files[0] if dataset.files else 'its files'} into {root}"
        )
    folder = root / dataset.name
    if dataset.source.terms:
        typer.echo(f"terms: {dataset.source.terms}")
    with _bar(Console(stderr=True), dataset.source.file) as progress:
        archive = download(dataset.source, folder, progress=progress)
    if dataset.source.file not in dataset.files:
        extract(archive, folder)
        archive.unlink()
    typer.echo(f"{name} is in {dataset.locate(root)}")


class _bar:  # reads as the context that it is
    """A bar on a terminal, nothing elsewhere."""

    def __init__(self, console: Any, what: str) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bars.add_task(what, total=None)

    def __enter__(self) -> Any:
        self._bars.start()
        return lambda done, total: self._bars.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bars.stop()


@app.command("describe")
def describe(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A data set's name, NAME@sample, or a file of your own.")],
    data_dir: DataDir = None,
    columns: Annotated[str | None, typer.Option(help="Columns of your own file: user=uid,item=iid,time=ts.")] = None,
    as_json: AsJson = False,
) -> None:
    """Users, items, events, lengths, times, fields and tasks of a data set or of a file of your own."""
    from userec.cli.locate import open_dataset
    from userec.cli.output import print_json, print_table, registry_of

    opened = open_dataset(registry_of(ctx), {"name": name}, columns, data_dir)
    facts = {"name": opened.name, "home": str(opened.dataset.home), "sample": opened.sample, **summarise(opened.dataset)}
    if as_json:
        print_json(facts)
        return
    if opened.sample:
        typer.echo(f"{opened.name}: the embedded generated sample, not the real data")
    print_table(["", ""], [[key, _text(value)] for key, value in facts.items() if key not in ("tasks", "notes", "sample")])
    tasks = [[task["name"], task["kind"], f"{task['answers']:,}", f"{task['users']:,}", _counts(task)] for task in facts["tasks"]]
    print_table(["task", "kind", "answers", "users", "classes"], tasks)
    for note in facts["notes"]:
        typer.echo(f"note: {note}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:,.4g}" if value < 1 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _counts(task: dict[str, Any], most: int = 8) -> str:
    """`0: 400, 1: 200`, the largest first."""
    shown = [f"{name}: {count:,}" for name, count in list(task["counts"].items())[:most]]
    return ", ".join(
        [*shown, f"{task['classes'] - most:,} more"] if task["classes"] > most and shown else shown or [f"{task['classes']:,}"]
    )


def summarise(dataset: Dataset) -> dict[str, Any]:
    """What `describe` prints, as plain values, counted on the tables as the data set reads them. Raises UserError."""
    events = dataset.events()
    lengths = events.groupby("user", sort=False).size()
    facts: dict[str, Any] = {
        "users": len(lengths),
        "items": int(events["item"].nunique()),
        "events": len(events),
        "length": {"mean": float(lengths.mean()), "median": float(lengths.median()), "max": int(lengths.max())}
        if len(lengths)
        else {},
    }
    if "time" in events:
        facts |= _time_facts(events)
    scalar = [name for name in events.columns if name not in dataset.fields or not dataset.fields[name].many]
    facts["duplicates" if "time" in events else "repeats"] = int(events.duplicated(scalar).sum())  # equal in every field
    tables = {"user": dataset.users(), "item": dataset.items()}
    fields = [
        *events.columns,
        *(name for key, table in tables.items() if table is not None for name in table.columns if name != key),
    ]
    facts["fields"] = fields
    facts["tasks"] = [_task_facts(dataset, events, task) for group in dataset.tasks for task in group]
    facts["notes"] = dataset.notes()
    return facts


def _time_facts(events: pd.DataFrame) -> dict[str, Any]:
    """The range in UTC, and the share of neighbouring events of one user that have one time."""
    import numpy as np
    import pandas as pd

    inside = events.sort_values(["user", "time"], kind="stable")
    neighbours = inside["user"].to_numpy()[1:] == inside["user"].to_numpy()[:-1]
    tied = neighbours & (np.diff(inside["time"].to_numpy()) == 0)
    first, last = (pd.Timestamp(int(value), unit="s").isoformat() for value in (events["time"].min(), events["time"].max()))
    return {"time": {"from": first, "to": last}, "tied": float(tied.sum() / max(neighbours.sum(), 1))}


def _task_facts(dataset: Dataset, events: pd.DataFrame, task: Task) -> dict[str, Any]:
    """How many answers, users and classes; `counts` names the users of each class of a label task, the largest first."""
    table = events.rename(columns={"item": "id"}) if task.events else dataset.labels(task.name)
    if table is None:
        return {"name": task.name, "kind": task.kind, "space": task.space, "answers": 0, "users": 0, "classes": 0, "counts": {}}
    counts = table["id"].value_counts()
    return {
        "name": task.name,
        "kind": task.kind,
        "space": task.space,
        "answers": len(table),
        "users": int(table["user"].nunique()),
        "classes": len(counts),
        "counts": {str(name): int(count) for name, count in counts.items()} if task.kind == "label" else {},
    }
