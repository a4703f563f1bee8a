"""Discovery, isolation, provenance: which plugins are installed, what each one brings, and who brought it.

Our own loop over the entry points, because pluggy's dies with the first bad plugin and silently skips a second entry
point of the same name. A plugin is asked alone (`userec.isolation`); only what passes whole is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pluggy

from userec.dataset.locate import cache_folder
from userec.errors import UserError, did_you_mean
from userec.isolation import BrokenPluginError, ask, new_manager, own_traceback
from userec.markers import API, GROUP

KINDS: Final = ("datasets", "encoders", "objectives", "evaluators", "kernels")
"""What a plugin may bring; the hook of a kind is `userec_<kind>`."""

NOUNS: Final = {
    "datasets": "data set",
    "encoders": "model",
    "objectives": "objective",
    "evaluators": "evaluator",
    "kernels": "kernel",
}
"""What a user calls one of a kind."""

DEFAULTS: tuple[str, ...] = (
    "userec.builtin.popularity",
    "userec.builtin.bag_of_items",
    "userec.builtin.same_category",
    "userec.builtin.rating_baselines",
    "userec.builtin.next_item",
    "userec.builtin.cloze",
    "userec.builtin.future",
    "userec.builtin.labelled",
    "userec.builtin.ranking",
    "userec.builtin.classification",
    "userec.builtin.reid",
    "userec.builtin.click",
    "userec.builtin.rating",
    "userec.builtin.tensorboard",
    "userec.builtin.journal",
    "userec.builtin.kernels",
)
"""The modules that are loaded like a plugin of the distribution `userec`."""

CORE: Final = "userec"

Status = Literal["ok", "blocked", "incompatible", "broken"]


@dataclass(frozen=True)
class Origin:
    """Who brought a name."""

    entry: str
    distribution: str
    version: str


@dataclass(frozen=True)
class Installed:
    """One entry point and how it stands. `hooks` is known once it was loaded."""

    entry: str
    distribution: str
    version: str
    value: str
    status: Status = "ok"
    reason: str = ""
    hooks: tuple[str, ...] = ()
    traceback: str = ""

    @property
    def origin(self) -> Origin:
        """The same without the state."""
        return Origin(self.entry, self.distribution, self.version)

    def answers_to(self, names: Iterable[str]) -> bool:
        """Whether its entry name or its distribution is among `names`, spelt as pip allows (`_`, `-`, `.` are one)."""
        wanted = {_canonical(name) for name in names}
        return not wanted.isdisjoint((_canonical(self.entry), _canonical(self.distribution)))


@dataclass
class Registry:
    """What the loaded plugins bring. A name that two of them claim is kept as `distribution:name` only."""

    plugins: dict[str, dict[str, Any]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    """{kind: {name: class}}; under `kernels` {op: [Kernel, ...]}."""
    origins: dict[tuple[str, str], Origin] = field(default_factory=dict)
    """{(kind, name)}; a kernel's name is `op/provider` here."""
    clashes: dict[tuple[str, str], list[Origin]] = field(default_factory=dict)
    """Names claimed more than once."""
    installed: list[Installed] = field(default_factory=list)
    """Every entry point, loaded or not."""
    notes: list[str] = field(default_factory=list)
    """Lines to tell the user: a name to block or allow that nothing answers to."""
    manager: pluggy.PluginManager = field(default_factory=new_manager)

    @property
    def broken(self) -> list[Installed]:
        """Those that failed to load, each with its reason."""
        return [entry for entry in self.installed if entry.status == "broken"]

    @property
    def hook(self) -> Any:
        """The pluggy relay, for the observers: `registry.hook.userec_progress(run=..., step=..., values=...)`."""
        return self.manager.hook

    def key(self, kind: str, name: str) -> str | None:
        """Under what a name stands in `plugins[kind]`: itself, or where `name` says whose it is (`distribution:name` or
        `entry:name`), that one's; None where there is none."""
        if name in self.plugins[kind]:
            return name
        owner, _, short = name.rpartition(":")
        for (its_kind, key), origin in self.origins.items():
            if (
                owner
                and its_kind == kind
                and key.rpartition(":")[2] == short
                and key in self.plugins[kind]
                and _owns(origin, owner)
            ):
                return key
        return None

    def find(self, kind: str, name: str) -> Any:
        """The class of that name (the kernels of that op); `distribution:name` or `entry:name` says whose.

        Raises UserError: an unknown name, or one that two distributions claim."""
        if (kind, name) in self.clashes:
            raise UserError(self.clash(kind, name))
        key = self.key(kind, name)
        if key is None:
            raise UserError(f"unknown {NOUNS[kind]} {name!r}{did_you_mean(name, self.plugins[kind])}{self.absent()}")
        return self.plugins[kind][key]

    def clash(self, kind: str, name: str) -> str:
        """Who claims a name in `clashes`, and how to choose."""
        origins = self.clashes[kind, name]
        who = " and ".join(f"{o.distribution} {o.version} (entry point {o.entry!r})" for o in origins)
        way = f"choose with {_owner(origins[0], origins)}:{name}, or block one with -p no:NAME"
        return f"{NOUNS[kind]} {name!r} is claimed by {who};\n{way if kind != 'kernels' else 'block one with -p no:NAME'}"

    def absent(self) -> str:
        """A second line that says which plugins are not loaded, and so what a missing name may have come with."""
        absent = [f"{entry.entry} ({entry.status}: {entry.reason})" for entry in self.installed if entry.status != "ok"]
        if not absent:
            return ""
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        return f"\nit may come with a plugin that is not loaded: {', '.join(absent[:3])}{more}; see `userec plugins list`"


def installed(
    block: Sequence[str] = (), only: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ
) -> list[Installed]:
    """All plugins, from metadata alone: nothing of theirs is imported, `broken` is as remembered from the last load."""
    only = _allowed(only, environ)
    remembered = _recall(environ)
    entries = []
    for entry in (*_defaults(), *_entry_points()):
        builtin = entry.distribution == CORE
        if entry.status == "ok" and entry.answers_to(block):
            entry = dataclasses.replace(entry, status="blocked", reason="blocked by -p no:")
        elif entry.status == "ok" and not builtin and only is not None and not entry.answers_to(only):
            entry = dataclasses.replace(entry, status="blocked", reason="not in USEREC_LOAD_PLUGINS")
        elif entry.status == "ok" and _key(entry) in remembered:
            entry = dataclasses.replace(entry, status="broken", reason=remembered[_key(entry)])
        entries.append(entry)
    return entries


def load(block: Sequence[str] = (), only: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> Registry:
    """Import every plugin that is neither blocked nor incompatible, and ask each one alone what it brings.

    A plugin that fails anywhere is left out whole, stands in `broken`, and is remembered for `installed`.
    `only` stands over USEREC_LOAD_PLUGINS; the built-in ones always load unless they are blocked."""
    registry = Registry()
    claims: dict[tuple[str, str], list[tuple[Origin, Any]]] = {}
    for entry in installed(block, only, environ):
        if entry.status in ("blocked", "incompatible"):
            registry.installed.append(entry)
            continue
        try:
            brought = ask(entry.entry, entry.value)
        except BrokenPluginError as error:
            broken = dataclasses.replace(entry, status="broken", reason=str(error), traceback=own_traceback(error))
            registry.installed.append(broken)
            continue
        registry.installed.append(dataclasses.replace(entry, status="ok", reason="", hooks=brought.hooks))
        if registry.manager.is_registered(brought.plugin):
            continue  # a second entry point to the same module
        registry.manager.register(brought.plugin, f"{entry.distribution}:{entry.entry}")
        for kind, name, value in brought.values:
            held = claims.setdefault((kind, name), [])
            if not any(value is other and origin.distribution == entry.distribution for origin, other in held):
                held.append((entry.origin, value))
    for (kind, name), held in claims.items():
        _keep(registry, kind, name, held)
    registry.notes = _unmatched(registry.installed, (*block, *(_allowed(only, environ) or ())))
    _remember(registry.installed, environ)
    return registry


def core_version() -> str:
    """The version of userec itself; `0+source` where it runs uninstalled."""
    try:
        return importlib.metadata.version(CORE)
    except importlib.metadata.PackageNotFoundError:
        return "0+source"


# --- metadata ---------------------------------------------------------------------------------------------------------


def _defaults() -> Iterator[Installed]:
    version = core_version()
    for module in DEFAULTS:
        yield Installed(module.rpartition(".")[2], CORE, version, module)


def _entry_points() -> list[Installed]:
    found = importlib.metadata.entry_points()
    entries: list[Installed] = []
    version = core_version()
    current = {_distribution(point)[0] for point in found.select(group=GROUP)}
    for group in sorted(name for name in found.groups if re.fullmatch(r"userec\d*", name)):
        for point in found.select(group=group):
            name, its_version, requires = _distribution(point)
            if group != GROUP and name in current:
                continue  # it speaks our version of the hooks too
            reason = _incompatible(group, requires, version)
            entries.append(Installed(point.name, name, its_version, point.value, "incompatible" if reason else "ok", reason))
    return sorted(entries, key=lambda entry: (_canonical(entry.distribution), entry.entry))


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str, list[str]]:
    if point.dist is None:
        return "?", "?", []
    meta = point.dist.metadata
    return meta["Name"] or "?", meta["Version"] or "?", point.dist.requires or []


def _incompatible(group: str, requires: list[str], version: str) -> str:
    """Why a plugin of `group` cannot be loaded here, or nothing."""
    if group != GROUP:
        number = group.removeprefix("userec")
        if not number:
            return f"its entry-point group is 'userec', without a hook API; it has to be {GROUP!r}"
        out = "upgrade userec" if int(number) > API else "upgrade the plugin"
        return f"made for hook API {number}, this userec speaks {API}: {out}"
    for line in requires:
        if re.match(r"userec\b(?![-_.])", line, re.IGNORECASE) and version != "0+source":
            from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
            from packaging.requirements import InvalidRequirement, Requirement

            try:
                wanted = Requirement(line)
                applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
            except (InvalidRequirement, UndefinedComparison, UndefinedEnvironmentName):
                return f"its metadata asks for {line!r}, which is no requirement: upgrade the plugin"
            if applies and not wanted.specifier.contains(version, True):
                return f"needs userec{wanted.specifier}, this is {version}"
    return ""


def _allowed(only: Sequence[str] | None, environ: Mapping[str, str]) -> Sequence[str] | None:
    if only is None and "USEREC_LOAD_PLUGINS" in environ:
        only = [name.strip() for name in environ["USEREC_LOAD_PLUGINS"].split(",") if name.strip()]
    return only


def _unmatched(entries: list[Installed], names: Iterable[str]) -> list[str]:
    known = {name for entry in entries for name in (entry.entry, entry.distribution)}
    return [
        f"no plugin {name!r} is installed to block or allow{did_you_mean(name, known)}"
        for name in names
        if not any(entry.answers_to([name]) for entry in entries)
    ]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _owns(origin: Origin, owner: str) -> bool:
    return _canonical(owner) in (_canonical(origin.distribution), _canonical(origin.entry))


# --- names claimed twice ------------------------------------------------------------------------------------------


def _keep(registry: Registry, kind: str, name: str, held: list[tuple[Origin, Any]]) -> None:
    """Enter a claimed name; where several claim it, each as `distribution:name` (`entry:name` within one distribution)."""
    if len(held) > 1:
        registry.clashes[kind, name] = [origin for origin, _ in held]
    origins = [origin for origin, _ in held]
    for origin, value in held:
        full = name if len(held) == 1 else f"{_owner(origin, origins)}:{name}"
        registry.origins[kind, full] = origin
        if kind != "kernels":
            registry.plugins[kind][full] = value
        elif len(held) == 1:
            registry.plugins[kind].setdefault(value.op, []).append(value)


def _owner(origin: Origin, origins: Sequence[Origin]) -> str:
    """What tells one claimant from the others: its distribution, or its entry point within one distribution."""
    same = sum(other.distribution == origin.distribution for other in origins)
    return origin.distribution if same == 1 else origin.entry


# --- remembering ------------------------------------------------------------------------------------------


def _key(entry: Installed) -> str:
    return f"{entry.distribution}=={entry.version} {entry.entry}={entry.value} in {sys.prefix}"


def _recall(environ: Mapping[str, str]) -> dict[str, str]:
    """{key: reason} of the plugins that failed when last loaded; empty where nothing readable is kept."""
    try:
        kept = json.loads((cache_folder(environ) / "broken_plugins.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(reason) for key, reason in kept.items()} if isinstance(kept, dict) else {}


def _remember(entries: list[Installed], environ: Mapping[str, str]) -> None:
    """Keep what is broken now; a plugin not asked this time keeps its note. Best effort: `doctor` tells of a bad folder."""
    before = _recall(environ)
    asked = {_key(entry) for entry in entries if entry.status in ("ok", "broken")}
    after = {key: reason for key, reason in before.items() if key not in asked}
    after |= {_key(entry): entry.reason for entry in entries if entry.status == "broken"}
    if after == before:
        return
    file = cache_folder(environ) / "broken_plugins.json"
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(after, indent=1, sort_keys=True), "utf-8")
        draft.replace(file)
