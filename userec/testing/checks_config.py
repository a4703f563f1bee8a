"""The checks that are the same for several kinds of plugin: settings, and the words it is composed by."""

from __future__ import annotations

from typing import Any

from userec.capability import Can
from userec.config import Config, parse
from userec.testing.build import Case
from userec.testing.check import holds


def check_config(case: Case) -> None:
    """Settings are frozen, take no free keys, and survive a file: parsed again from JSON and TOML (no null), they are equal."""
    config, name = case.config, case.name
    holds(isinstance(config, Config), f"{name}: Config is not a userec Config: a misspelt setting would pass unseen")
    holds(config.model_config.get("frozen"), f"{name}: Config is not frozen")
    holds(config.model_config.get("extra") == "forbid", f"{name}: Config takes any key: a misspelt setting would pass unseen")
    for kind, values in (("JSON", config.model_dump(mode="json")), ("TOML", config.model_dump(mode="json", exclude_none=True))):
        again = parse(case.cls.Config, values, "settings")
        holds(
            again == config,
            f"{name}: settings written as {kind} and read again differ: {again!r} for {config!r}: config round trip",
        )


def check_words(name: str, other: Any) -> None:
    """`needs`, `reads` and `hides` of an objective or an evaluator are of their types."""
    holds(isinstance(other.needs, Can), f"{name}: needs is {other.needs!r}, not Can flags")
    for word in ("reads", "hides"):
        value = getattr(other, word)
        holds(isinstance(value, frozenset), f"{name}: {word} is {type(value).__name__}, not a frozenset")
