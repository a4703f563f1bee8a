"""`userec list`: what the loaded plugins bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from userec.cli.output import print_json, print_table, registry_of, warn
from userec.errors import unknown

if TYPE_CHECKING:
    from userec.registry import Origin, Registry

WORDS: Final = {
    "models": "encoders",
    "datasets": "datasets",
    "objectives": "objectives",
    "evaluators": "evaluators",
    "kernels": "kernels",
}
"""{what a user calls them: the registry's kind}."""


def print_list(
    ctx: typer.Context,
    what: Annotated[str | None, typer.Argument(metavar=f"[{'|'.join(WORDS)}]", help="Of one kind; all where left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout.")] = False,
) -> None:
    """List models, data sets, objectives, evaluators and kernels with the distribution that brings each."""
    if what is not None and what not in (*WORDS, *WORDS.values()):
        raise unknown("kind", what, WORDS)
    registry = registry_of(ctx)
    words = [word for word, kind in WORDS.items() if what in (None, word, kind)]
    rows = [row for word in words for row in rows_of(registry, word)]
    for kind, name in registry.clashes:
        if kind in [WORDS[word] for word in words]:
            warn(registry.clash(kind, name))
    if as_json:
        print_json(rows)
        return
    columns = ("name", "distribution", "version", "fidelity", "summary")
    for word in words:
        table = [[row[column] for column in columns] for row in rows if row["kind"] == word]
        if table or what is not None:
            print_table(columns, table, title=word)
            typer.echo()


def rows_of(registry: Registry, word: str) -> list[dict[str, Any]]:
    """One object for each of a kind: `kind name distribution version fidelity summary`, sorted by name."""
    kind = WORDS[word]
    rows = []
    for name, value in registry.plugins[kind].items():
        if kind != "kernels":
            rows.append(_row(word, name, registry.origins[kind, name], value.fidelity, summary(value)))
            continue
        for kernel in value:
            full = f"{kernel.op}/{kernel.provider}"
            line = (
                "the plain torch reference"
                if kernel.reference
                else f"priority {kernel.priority}{', opt-in' if kernel.opt_in else ''}"
            )
            row = _row(word, full, registry.origins[kind, full], "paper" if kernel.reference else "variant", line)
            rows.append(row | {"op": kernel.op, "provider": kernel.provider, "priority": kernel.priority})
    return sorted(rows, key=lambda row: row["name"])


def _row(word: str, name: str, origin: Origin, fidelity: str, line: str) -> dict[str, Any]:
    row = {"kind": word, "name": name, "distribution": origin.distribution, "version": origin.version}
    return row | {"fidelity": fidelity, "summary": line}


def summary(value: type) -> str:
    """A class in one line: its `summary`, else the first line of its own docstring."""
    lines = (getattr(value, "summary", "") or value.__doc__ or "").strip().splitlines()
    return lines[0].strip() if lines else ""
