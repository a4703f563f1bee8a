"""`userec run`: one experiment from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def run(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Option(help="The encoder, as `userec list models` names it.")] = None,
    dataset: Annotated[str | None, typer.Option(help="A data set's name, NAME@sample, or a file of your own.")] = None,
    objective: Annotated[str | None, typer.Option(help="Default: what the model's recipe names.")] = None,
    evaluator: Annotated[list[str] | None, typer.Option(help="Repeatable. Default: all that fit.")] = None,
    config: Annotated[Path | None, typer.Option(help="A TOML file; an experiment.toml of an earlier run is one.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE, as in encoder.dim=64. Repeatable.")] = None,
    columns: Annotated[str | None, typer.Option(help="Columns of your own file: user=uid,item=iid,time=ts.")] = None,
    split: Annotated[str | None, typer.Option(help="by_time, leave_last, by_user or given.")] = None,
    task: Annotated[str | None, typer.Option(help="The task to train on. Default: the data set's first.")] = None,
    slice_: Annotated[
        list[str] | None, typer.Option("--slice", help="Metrics by group of users too: activity, or a profile field. Repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default 0.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default cpu.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie. Default: USEREC_DATA, else the cache.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/MODEL-DATASET, numbered.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON; everything else goes to stderr.")] = False,
) -> None:
    """Train a model on a data set and report trustworthy metrics."""
    from userec.engine.experiment import merge, read_file, read_settings
    from userec.errors import UserError

    if resume and out is None:
        raise UserError("--resume needs --out DIR: the folder of the run to go on with")
    said: dict[str, Any] = read_file(config) if config is not None else {}
    for section, name in (("encoder", model), ("dataset", dataset), ("objective", objective), ("split", split)):
        if name is not None:
            said = merge(said, {section: {"name": name}})
    for key, value in (
        ("evaluators", evaluator or None),
        ("slices", slice_ or None),
        ("task", task),
        ("seed", seed),
        ("device", device),
    ):
        if value is not None:
            said[key] = value
    said = merge(said, read_settings(set_ or []))
    of = config.parent if config is not None else None
    start(ctx, said, columns=columns, data_dir=data_dir, out=out, resume=resume, as_json=as_json, of=of)


def start(
    ctx: typer.Context,
    said: dict[str, Any],
    *,
    columns: str | None,
    data_dir: Path | None,
    out: Path | None,
    resume: bool,
    as_json: bool,
    of: Path | None = None,
) -> None:
    """Find the plugins and the data, run, and print the result. `of`: the folder that the settings come from, maybe a run's."""
    from userec.cli.interrupt import Interrupts, farewell
    from userec.cli.locate import open_dataset
    from userec.cli.output import blocked, registry_of, warn
    from userec.cli.progress import Console, Observers, result_tables
    from userec.cli.provenance import check_made_by, origin_of
    from userec.dataset.locate import cache_folder
    from userec.engine import run as engine
    from userec.engine.session import Host
    from userec.errors import UserError

    for section, flag in (("encoder", "--model"), ("dataset", "--dataset")):
        if not isinstance(said.get(section), dict) or "name" not in said[section]:
            raise UserError(f"no {section} was named: give {flag} NAME (see `userec list`)")
    registry = registry_of(ctx)
    console = Console(sys.stderr if as_json else sys.stdout)
    if resume and out is not None:
        check_made_by(registry, out, None, console.tell)
    elif of is not None:
        check_made_by(registry, of, said, console.tell)
    said = named(registry, said)
    opened = open_dataset(registry, said["dataset"], columns, data_dir)
    said = {**said, "dataset": {**opened.settings, "name": opened.name}}
    if opened.sample:
        console.tell(
            f"{opened.name}: the embedded generated sample, not the real data; `userec data fetch` or --data-dir gives that"
        )
    registry.manager.register(console, "console")
    about = {entry.distribution: entry.version for entry in registry.installed if entry.status == "ok"}
    notify = Observers(registry.manager, warn)
    interrupts = Interrupts()
    host = Host(
        registry.plugins,
        notify,
        lambda kind, name: describe(registry, kind, name),
        console.tell,
        about,
        lambda kind, name: origin_of(registry, kind, name, "path" in opened.settings),
        interrupts.shield,
    )
    folder = out if out is not None else free_folder(Path("runs"), f"{said['encoder']['name']}-{opened.name}")
    try:
        with interrupts, console:
            report = engine.run(host, said, opened.dataset, opened.name, cache_folder() / "coded", folder, resume)
    except KeyboardInterrupt:
        warn(farewell(folder, data_dir, blocked(ctx)))
        raise typer.Exit(interrupts.code) from None
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        headlines = {name: found.headline for name, found in registry.plugins["evaluators"].items()}
        for table in result_tables(report, headlines):
            console.print(table)
        for left in report["skipped"]:
            console.tell(f"skipped {left['evaluator']}: {left['reason']}")
        console.tell(f"written to {folder}")


def named(registry: Any, said: dict[str, Any]) -> dict[str, Any]:
    """What was said, every plugin by the key it has in the registry. Raises UserError for a name that nothing answers to."""

    def key(kind: str, name: Any) -> Any:
        registry.find(kind, str(name))
        return registry.key(kind, str(name))

    said = {**said, "encoder": {**said["encoder"], "name": key("encoders", said["encoder"]["name"])}}
    if isinstance(said.get("objective"), dict) and "name" in said["objective"]:
        said["objective"] = {**said["objective"], "name": key("objectives", said["objective"]["name"])}
    if said.get("evaluators"):
        names = said["evaluators"]
        said["evaluators"] = [key("evaluators", name) for name in (names if isinstance(names, list) else [names])]
    return said


def describe(registry: Any, kind: str, name: str) -> str:
    """`'din' (userec-target-attention 0.1.0)`."""
    origin = registry.origins.get((kind, name))
    return f"{name!r} ({origin.distribution} {origin.version})" if origin else repr(name)


def free_folder(parent: Path, stem: str) -> Path:
    """`parent/stem`, or the first of `stem-2`, `stem-3`, ... that is free."""
    stem = stem.replace("/", "-").replace(":", "-")
    number, folder = 1, parent / stem
    while folder.exists():
        number += 1
        folder = parent / f"{stem}-{number}"
    return folder
