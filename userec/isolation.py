"""Isolation: one plugin is imported and asked alone, in a pluggy manager that nobody else sees, so that it harms no other."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pluggy

from userec import hookspecs
from userec.errors import did_you_mean

CONTRACTS: Final = {
    "datasets": ("userec.dataset.contract", "Dataset"),
    "encoders": ("userec.encoder.contract", "Encoder"),
    "objectives": ("userec.objective.contract", "Objective"),
    "evaluators": ("userec.evaluator.contract", "Evaluator"),
    "kernels": ("userec.kernel.contract", "Kernel"),
}
"""{kind: (module, class)} of what the hook `userec_<kind>` returns; imported only when a plugin brings one."""

HOOKS: Final = tuple(name for name in vars(hookspecs) if name.startswith("userec_"))

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]*")
_FIDELITIES: Final = ("paper", "official", "variant")


class BrokenPluginError(Exception):
    """Why a plugin is not kept, in one line; what it raised is the cause. `registry.load` catches it."""


@dataclass(frozen=True)
class Brought:
    """What one plugin brings."""

    plugin: Any
    hooks: tuple[str, ...]
    values: tuple[tuple[str, str, Any], ...]  # (kind, name, class), a kernel's name is `op/provider`


def new_manager() -> pluggy.PluginManager:
    """A pluggy manager that knows the hooks of `userec.hookspecs`."""
    manager = pluggy.PluginManager("userec")
    manager.add_hookspecs(hookspecs)
    return manager


def ask(entry: str, value: str) -> Brought:
    """Import the object reference `value` (`module` or `module:object`) and call its hooks; `entry` is its name in messages.

    Raises BrokenPluginError. What the plugin prints goes to stderr, so that `--json` stays clean."""
    with contextlib.redirect_stdout(sys.stderr):
        with _blaming("fails on import"):
            plugin = _import(value)
        manager = new_manager()
        try:
            manager.register(plugin, entry)
        except pluggy.PluginValidationError as error:
            head, _, rest = str(error).partition("\n")  # the first line repeats the plugin
            raise BrokenPluginError(_one_line(f"wrong hook signature: {rest or head}")) from error
        hooks = _hooks(manager, plugin)
        values: list[tuple[str, str, Any]] = []
        for kind in CONTRACTS:
            with _blaming(f"fails in userec_{kind}"):
                given = [value for result in getattr(manager.hook, f"userec_{kind}")() for value in result]
            values += [(kind, _checked(kind, value), value) for value in given]
    names = [(kind, name) for kind, name, _ in values]
    if twice := sorted({name for kind, name in names if names.count((kind, name)) > 1}):
        raise BrokenPluginError(f"brings {', '.join(map(repr, twice))} twice")
    return Brought(plugin, hooks, tuple(values))


def own_traceback(error: BrokenPluginError) -> str:
    """The traceback of what the plugin raised, from its own first line on; empty where it raised nothing."""
    cause = error.__cause__
    if cause is None or isinstance(cause, pluggy.PluginValidationError):
        return ""
    frames = traceback.TracebackException.from_exception(cause)
    ours = (__file__, importlib.__file__, "<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")
    pluggys = str(pluggy.__file__).removesuffix("__init__.py")
    kept = [f for f in frames.stack if f.filename not in ours and not f.filename.startswith(pluggys)]
    frames.stack = traceback.StackSummary.from_list(kept)
    return "".join(frames.format())


def _import(value: str) -> Any:
    module, _, path = value.partition("[")[0].partition(":")
    plugin = importlib.import_module(module.strip())
    for part in path.strip().split(".") if path.strip() else ():
        plugin = getattr(plugin, part)
    return plugin


def _hooks(manager: pluggy.PluginManager, plugin: Any) -> tuple[str, ...]:
    """The hooks that the plugin implements. Raises BrokenPluginError for a misspelt one, a forgotten marker, or none at all."""
    hooks = tuple(sorted(caller.name for caller in manager.get_hookcallers(plugin) or ()))
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        wrong = next(name for name in hooks if name not in HOOKS)
        raise BrokenPluginError(f"unknown hook {wrong!r}{did_you_mean(wrong, HOOKS)}") from error
    unmarked = [name for name in HOOKS if name not in hooks and inspect.isfunction(getattr(plugin, name, None))]
    if unmarked:
        raise BrokenPluginError(f"function {unmarked[0]!r} lacks the @hookimpl of userec.markers")
    if not hooks:
        raise BrokenPluginError("has no @hookimpl function")
    return hooks


def _checked(kind: str, value: Any) -> str:
    """The name of a value of that kind (`op/provider` of a kernel). Raises BrokenPluginError where it is none."""
    module, contract_name = CONTRACTS[kind]
    contract = getattr(importlib.import_module(module), contract_name)
    label = _one_line(getattr(value, "__name__", None) or repr(value))
    if kind == "kernels":
        if not isinstance(value, contract):
            raise BrokenPluginError(f"userec_kernels returns {label}, which is no Kernel")
        _named(f"a kernel of {value.provider!r}", "op", value.op)
        _named(f"a kernel of {value.op!r}", "provider", value.provider)
        return f"{value.op}/{value.provider}"
    if not (isinstance(value, type) and issubclass(value, contract)):
        raise BrokenPluginError(f"userec_{kind} returns {label}, which is no subclass of {contract_name} ({module})")
    name = getattr(value, "name", None)
    _named(label, "name", name)
    if missing := sorted(getattr(value, "__abstractmethods__", ())):
        raise BrokenPluginError(f"{label} lacks {', '.join(missing)}")
    fidelity, config = getattr(value, "fidelity", None), getattr(value, "Config", None)
    if fidelity not in _FIDELITIES:
        raise BrokenPluginError(f"{label}.fidelity is {fidelity!r}; it is one of {', '.join(_FIDELITIES)}")
    if not (isinstance(config, type) and issubclass(config, importlib.import_module("userec.config").Config)):
        raise BrokenPluginError(f"{label}.Config is no subclass of userec.config.Config")
    return str(name)


def _named(label: str, what: str, name: Any) -> None:
    if name is None:
        raise BrokenPluginError(f"{label} has no `{what}`")
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise BrokenPluginError(f"{label} has the {what} {name!r}; lower-case letters, digits, '-', '_' and '.' make one")


@contextlib.contextmanager
def _blaming(what: str) -> Iterator[None]:
    """Whatever a plugin's own code raises becomes BrokenPluginError: one line with `what` and the error."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise BrokenPluginError(_one_line(f"{what}: {type(error).__name__}: {error}")) from error


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 240 else f"{line[:237]}..."
