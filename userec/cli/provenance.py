"""Who made a run: the plugins behind its encoder, objective and data set, and whether those installed are the same."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from userec.errors import UserError

if TYPE_CHECKING:
    from userec.registry import Registry

WORDS = {"encoder": "encoder", "objective": "objective", "dataset": "data set"}


def origin_of(registry: Registry, kind: str, name: str, file: bool) -> Mapping[str, str]:
    """{name, distribution, version} of a plugin; of a data set that is a `file` of the user's own, the core's, which reads it."""
    from userec.registry import CORE, core_version

    origin = None if file and kind == "datasets" else registry.origins.get((kind, name.partition("@")[0]))
    distribution, version = (origin.distribution, origin.version) if origin else (CORE, core_version())
    return {"name": name, "distribution": distribution, "version": version}


def check_made_by(registry: Registry, folder: Path, said: Mapping[str, Any] | None, tell: Callable[[str], None]) -> None:
    """See that what made the run in `folder` is installed and no older than it was; newer is told. With `said`, only what that
    asks for again.

    Raises UserError, every reason a line. A folder that says nothing of its makers is left alone."""
    file = folder / "checkpoint" / "made_by.json"
    if not file.is_file():
        return
    try:
        made = {word: {key: str(entry[key]) for key in entry} for word, entry in json.loads(file.read_text("utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{file} cannot be read ({error}); remove it to go on without knowing who made {folder}") from None
    faults = []
    for word, by in made.items():
        asked = by if said is None else said.get(word)
        if word not in WORDS or "distribution" not in by or not isinstance(asked, Mapping) or asked.get("name") != by["name"]:
            continue
        fault, note = _compare(registry, by)
        if fault:
            faults.append(f"{WORDS[word]} {by['name']!r} of {folder} {fault}")
        elif note:
            tell(f"{WORDS[word]} {by['name']!r} of {folder} {note}")
    if faults:
        raise UserError("\n".join(dict.fromkeys(faults)))


def _compare(registry: Registry, by: Mapping[str, str]) -> tuple[str, str]:
    """(why it cannot go on, what to tell), both empty where the very version is installed."""
    name, version = by["distribution"], by.get("version", "?")
    own = [entry for entry in registry.installed if canonicalize_name(entry.distribution) == canonicalize_name(name)]
    if not own:
        return f"is from {name} {version}, which is not installed: pip install {name}", ""
    now = own[0].version
    order = _order(now, version)
    if order < 0:
        return f"was made with {name} {version}, installed is {now}: pip install -U '{name}>={version}'", ""
    if all(entry.status != "ok" for entry in own):
        return f"is from {name} {version}, which is not loaded: {own[0].reason}", ""
    return "", f"was made with {name} {version}, installed is {now}" if order > 0 else ""


def _order(now: str, made: str) -> int:
    """-1 where `now` is the older version, 1 where the newer; 0 where alike, or where one of them is no version."""
    try:
        first, second = Version(now), Version(made)
    except InvalidVersion:
        return 0
    if "source" in (first.local, second.local):  # the core, run uninstalled
        return 0
    return (first > second) - (first < second)
