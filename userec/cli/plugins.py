"""`userec plugins`: what is installed (from metadata, importing nothing), one plugin in detail, and its contract checks."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

import typer

from userec.cli.output import blocked, print_json, print_table, registry_of
from userec.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from userec.registry import Installed, Registry

app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, add_completion=False, help="The installed plugins: list, info, check."
)


@app.command("list")
def print_plugins(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Load them now instead of remembering how the last load went.")] = False,
) -> None:
    """List entry points with their distribution and whether they are ok, blocked, incompatible or broken."""
    from userec.registry import installed

    entries = registry_of(ctx).installed if load else installed(block=blocked(ctx))
    if as_json:
        print_json([_row(entry) for entry in entries])
        return
    columns = ["plugin", "distribution", "version", "status", *(["hooks"] if load else []), "reason"]
    rows = []
    for entry in entries:
        hooks = [", ".join(entry.hooks)] if load else []
        rows.append([entry.entry, entry.distribution, entry.version, entry.status, *hooks, entry.reason])
    print_table(columns, rows)


@app.command("info")
def print_info(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="An entry point or a distribution.")],
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout.")] = False,
) -> None:
    """Load a plugin and tell what it brings, or why it is broken, with the traceback."""
    registry = registry_of(ctx)
    entries = _entries(registry, name)
    if as_json:
        print_json([_row(entry) | {"brings": _brings(registry, entry), "traceback": entry.traceback} for entry in entries])
        return
    for entry in entries:
        typer.echo(f"{entry.entry}: {entry.status}{f', {entry.reason}' if entry.reason else ''}")
        typer.echo(f"  distribution  {entry.distribution} {entry.version}")
        typer.echo(f"  object        {entry.value}")
        typer.echo(f"  hooks         {', '.join(entry.hooks) or '-'}")
        for kind, names in _brings(registry, entry).items():
            typer.echo(f"  {kind:13} {', '.join(names)}")
        if entry.traceback:
            typer.echo(entry.traceback)


@app.command("check")
def check(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="An entry point, a distribution, or a name that one brings (`sasrec`).")],
) -> None:
    """Run the contract checks on all that a plugin brings, a line each; exits 1 where one fails."""
    from userec.testing.checks import checks_for

    registry = registry_of(ctx)
    subjects = _subjects(registry, name)
    if not subjects:
        raise UserError(f"plugin {name!r} brings nothing to check; `userec plugins info {name}` tells why")
    failed = total = 0
    for kind, key in subjects:
        value = registry.plugins[kind][key]
        for one in checks_for(kind, value, registry):
            total += 1
            try:
                one.run()
            except Exception as error:
                failed += 1
                typer.echo(f"FAIL  {key}  {one.name}: {type(error).__name__}: {' '.join(str(error).split())}")
            else:
                typer.echo(f"ok    {key}  {one.name}")
    typer.echo(f"{total - failed} of {total} checks passed")
    if failed:
        raise typer.Exit(1)


def _row(entry: Installed) -> dict[str, Any]:
    row = dataclasses.asdict(entry)
    del row["traceback"]
    return row


def _entries(registry: Registry, name: str) -> list[Installed]:
    entries = [entry for entry in registry.installed if entry.answers_to([name])]
    if not entries:
        known = {word for entry in registry.installed for word in (entry.entry, entry.distribution)}
        raise UserError(f"no plugin {name!r} is installed{did_you_mean(name, known)}")
    return entries


def _brings(registry: Registry, entry: Installed) -> dict[str, list[str]]:
    """{kind: names} of one entry point."""
    brings: dict[str, list[str]] = {}
    for (kind, name), origin in registry.origins.items():
        if origin == entry.origin:
            brings.setdefault(kind, []).append(name)
    return brings


def _subjects(registry: Registry, name: str) -> list[tuple[str, str]]:
    """(kind, key in `registry.plugins[kind]`) of all that a name stands for."""
    named = [(kind, key) for kind in registry.plugins if (key := registry.key(kind, name)) is not None]
    if named:
        return named
    pairs = [(k, n) for entry in _entries(registry, name) for k, names in _brings(registry, entry).items() for n in names]
    return list(dict.fromkeys((kind, key.partition("/")[0] if kind == "kernels" else key) for kind, key in pairs))
