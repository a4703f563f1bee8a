"""The contract of a kernel: an op has one torch reference and any number of providers; a request is made of facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Request:
    """What a call needs, hashable: resolved once, remembered."""

    op: str
    device: str = "cpu"
    dtype: str = "float32"
    dims: tuple[tuple[str, int], ...] = ()
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Yes:
    """The provider can serve the request."""


@dataclass(frozen=True)
class No:
    """It cannot, and why."""

    reason: str


def always(request: Request) -> Yes | No:
    """Serves every request."""
    return Yes()


@dataclass(frozen=True)
class Kernel:
    """One provider's form of one op. An op exists when one kernel says `reference=True`."""

    op: str
    provider: str
    priority: int
    load: Callable[[], Callable[..., Any]]
    """Imports and returns the function: nothing heavy happens before."""
    supports: Callable[[Request], Yes | No] = always
    """Pure: allocates nothing, imports nothing."""
    reference: bool = False
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"float32": 1e-5, "float64": 1e-12})
    """Greatest relative error against the float64 reference, by dtype."""
