"""What all verbs share: tables, JSON, the loaded registry with its warnings, and which error ends in which exit code."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from userec.errors import UserError

if TYPE_CHECKING:
    from userec.registry import Registry


def print_json(value: Any) -> None:
    """`value` on stdout, indented; what JSON does not know is written as its `str`."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table: drawn by rich on a terminal, plain aligned lines elsewhere, which are never cut to a width."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(title) or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        Console().print(table)
        return
    if title:
        typer.echo(title)
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    for row in (columns, *rows):
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def warn(line: str) -> None:
    """One line on stderr."""
    typer.echo(f"userec: {line}", err=True)


def blocked(ctx: typer.Context) -> tuple[str, ...]:
    """The names given with `-p no:NAME`."""
    return tuple(ctx.find_root().obj or ())


def registry_of(ctx: typer.Context) -> Registry:
    """The registry as this command line asks for it. What is broken is told on stderr, a line each."""
    from userec.registry import load

    registry = load(block=blocked(ctx))
    for entry in registry.broken:
        warn(f"plugin {entry.entry!r} ({entry.distribution} {entry.version}) is broken and left out: {entry.reason}")
    for note in registry.notes:
        warn(note)
    return registry


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """2 for the user's mistake, told without a traceback; 130 for an interrupt; 1 with the traceback for ours.

    Usage errors are left to typer, which ends with 2 as well."""
    try:
        yield
    except UserError as error:
        warn(str(error))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        warn("interrupted")
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if hasattr(error, "exit_code"):  # typer's own: a usage error
            raise
        typer.echo(traceback.format_exc(), err=True, nl=False)
        warn(f"this is our fault, not yours: {type(error).__name__}: {error}")
        raise typer.Exit(1) from None
