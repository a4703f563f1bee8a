"""`userec show NAME`: one data set, model, objective, evaluator or op whole."""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from userec.capability import Can
from userec.cli.list import WORDS, rows_of
from userec.cli.output import print_json, print_table, registry_of
from userec.errors import UserError, did_you_mean, in_words

if TYPE_CHECKING:
    from userec.kernel.contract import Kernel
    from userec.registry import Registry

_TOLD = ("offers", "needs", "reads", "hides", "window", "phases", "ahead", "baselines", "recipe")
_TOLD_OF_DATA = ("fields", "tasks", "default_split", "source", "files")


def show(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="A name of any kind; `distribution:NAME` where two claim it.")],
    as_json: Annotated[bool, typer.Option("--json", help="A list on stdout, an object for each kind that has the name.")] = False,
) -> None:
    """Show the settings with types and defaults, what it offers, needs, reads and hides, and who brings it."""
    registry = registry_of(ctx)
    for kind, claimed in registry.clashes:
        if claimed == name:
            raise UserError(registry.clash(kind, name))
    found = [described(registry, word, key) for word, kind in WORDS.items() if (key := registry.key(kind, name)) is not None]
    if not found:
        known = [key for kind in registry.plugins.values() for key in kind]
        raise UserError(f"nothing is called {name!r}{did_you_mean(name, known)}{registry.absent()}")
    if as_json:
        print_json(found)
        return
    for one in found:
        _print(one)


def described(registry: Registry, word: str, key: str) -> dict[str, Any]:
    """One of a kind as plain values: the row of `userec list`, `doc`, `config`, and what its contract declares."""
    value = registry.plugins[WORDS[word]][key]
    if word == "kernels":
        return _op(key, value, [row for row in rows_of(registry, word) if row["op"] == key])
    row = next(row for row in rows_of(registry, word) if row["name"] == key)
    told = {what: _plain(getattr(value, what)) for what in (*_TOLD, *_TOLD_OF_DATA) if hasattr(value, what)}
    return row | {"doc": inspect.cleandoc(value.__doc__ or ""), "config": settings(value.Config)} | told


def _op(op: str, kernels: Sequence[Kernel], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An op as its reference tells it: `signature`, `doc` (the formula), `cases`; each provider with its `tolerance` by dtype.

    `faults`, where there are any, tells what is missing and why, and whose fault that is."""
    own = {kernel.provider: {"tolerance": dict(kernel.tolerance), "opt_in": kernel.opt_in} for kernel in kernels}
    one: dict[str, Any] = {"kind": "kernels", "name": op, "config": [], "providers": [row | own[row["provider"]] for row in rows]}
    faults = []
    for kernel in kernels:
        if kernel.reference:
            for what, tell in (("load", _formula), ("cases", _cases)):
                try:
                    one |= tell(kernel)
                except Exception as error:
                    row = next(row for row in rows if row["provider"] == kernel.provider)
                    faults.append(f"{what} of {row['name']} ({row['distribution']} {row['version']}) raises {in_words(error)}")
    if not any(kernel.reference for kernel in kernels):
        faults.append(f"kernel op {op!r} has no reference, so nothing can call it")
    return one | ({"faults": faults} if faults else {})


def _formula(reference: Kernel) -> dict[str, Any]:
    fn = reference.load()
    signature = re.sub(r"(: |-> )(['\"])(.*?)\2", r"\1\3", str(inspect.signature(fn)))  # annotations are strings
    return {"signature": reference.op + signature, "doc": inspect.cleandoc(fn.__doc__ or "")}


def _cases(reference: Kernel) -> dict[str, Any]:
    return {"cases": [case.name for case in reference.cases()]}


def settings(config: type[BaseModel], prefix: str = "") -> list[dict[str, Any]]:
    """`name type default required help` of every setting; a nested model's stand under `outer.inner`."""
    rows: list[dict[str, Any]] = []
    texts = _texts(config)
    for name, field in config.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            rows += settings(inner, f"{prefix}{name}.")
            continue
        default = field.get_default(call_default_factory=True, validated_data={}) if not field.is_required() else None
        row = {"name": prefix + name, "type": _type(inner), "default": _plain(None if default is PydanticUndefined else default)}
        rows.append(row | {"required": field.is_required(), "help": field.description or texts.get(name, "")})
    return rows


def _texts(config: type[BaseModel]) -> dict[str, str]:
    """{setting: the string that stands under it in the source, else the comment behind it}; empty where there is no source."""
    texts: dict[str, str] = {}
    for model in reversed(config.__mro__):
        if not issubclass(model, BaseModel) or model is BaseModel:
            continue
        with contextlib.suppress(OSError, TypeError):  # a class made in a shell has no source
            source = textwrap.dedent(inspect.getsource(model))
            lines = source.splitlines()
            body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
            for node, after in zip(body, [*body[1:], None], strict=True):
                if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                    continue
                tail = lines[(node.end_lineno or node.lineno) - 1].encode()[node.end_col_offset :].decode()
                texts[node.target.id] = tail.strip().removeprefix("#").strip()
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
                    texts[node.target.id] = " ".join(after.value.value.split())
    return texts


def _type(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    return text.replace("typing.", "").replace("userec.config.", "").replace("collections.abc.", "")


def _plain(value: Any) -> Any:
    """A declaration as JSON values; a property is known only once the settings are."""
    if isinstance(value, property):
        return "depends on the settings"
    if isinstance(value, Can):
        return value.words
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, frozenset | set):
        return sorted(_plain(entry) for entry in value)
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _print(one: Mapping[str, Any]) -> None:
    if one["kind"] == "kernels":
        _print_op(one)
        return
    kind = one["kind"].removesuffix("s")
    typer.echo(f"{kind} {one['name']}  ({one['distribution']} {one['version']}, fidelity {one['fidelity']})")
    if one["doc"]:
        typer.echo(textwrap.indent(one["doc"], "  "))
    typer.echo()
    if one["config"]:
        default = [("(required)" if row["required"] else repr(row["default"])) for row in one["config"]]
        rows = [[row["name"], row["type"], shown, row["help"]] for row, shown in zip(one["config"], default, strict=True)]
        print_table(("setting", "type", "default", "help"), rows)
    else:
        typer.echo("no settings")
    typer.echo()
    for what in (*_TOLD, *_TOLD_OF_DATA):
        if what in one and one[what] not in ("", None, [], {}):
            typer.echo(f"{what:13} {_line(what, one[what])}")
    typer.echo()


def _print_op(one: Mapping[str, Any]) -> None:
    typer.echo(f"op {one['name']}")
    if one.get("doc"):
        typer.echo(textwrap.indent(one["doc"], "  "))
    if "signature" in one:
        typer.echo(f"\n{one['signature']}\n")
    columns = ("provider", "distribution", "version", "summary")
    limits = [", ".join(f"{dtype} {limit:g}" for dtype, limit in row["tolerance"].items()) for row in one["providers"]]
    rows = [[*(row[column] for column in columns), limit] for row, limit in zip(one["providers"], limits, strict=True)]
    print_table((*columns, "tolerance"), rows)
    if "cases" in one:
        typer.echo(f"\n{'cases':13} {', '.join(one['cases']) or 'none: nothing proves it'}")
    for fault in one.get("faults", ()):
        typer.echo(f"\n{'fault':13} {fault}")


def _line(what: str, value: Any) -> str:
    if what == "tasks":
        return "; ".join(", ".join(f"{task['name']} ({task['kind']})" for task in group) for group in value)
    if what == "fields":
        return ", ".join(f"{name} ({field['kind']})" for name, field in value.items())
    if what == "source":
        return "; ".join(filter(None, (value["url"], value.get("terms"))))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={entry}" for key, entry in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
