"""The contract of a kernel: an op has one torch reference and any number of providers; a request is made of facts.

Tensors are positional, numbers and words keyword-only. A sequence op takes jagged input: `values` [S, ...], all users' events one
after another, and `offsets` [B + 1], where each user begins, with `max_len`, the longest, known without looking (no sync)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Generator

Layout = Literal["event", "user", "shared"]
"""How axis 0 of a tensor lies: an entry an event (cut into users by `offsets`), an entry a user, or one for all."""


@dataclass(frozen=True)
class Request:
    """What a call needs, hashable: resolved once, remembered."""

    op: str
    device: str = "cpu"
    dtype: str = "float32"
    dims: tuple[tuple[str, int], ...] = ()
    """(("q", 64), ...): the last axis of floating tensors of two axes or more, where it is a width; batch and length are none."""
    flags: frozenset[str] = frozenset()
    """Names of all arguments that are given or switched on, words as `reduction=mean`, and `needs_grad`. Of a tensor and of a
    whole number the name alone: `max_len` is there, its value is no fact."""
    cc: int | None = None
    """Compute capability of the CUDA device, 90 for 9.0; None on a machine without one, also where it is asked about cuda."""


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
class Cost:
    """What one call must do at least, by its formula: floating-point operations, and bytes read and written."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Case:
    """One call of an op that the kit makes of every provider, and how its arguments and results lie."""

    name: str
    make: Callable[[Generator], dict[str, Any]]
    """Fresh arguments by name, floating ones in float64, drawn with the generator given."""
    event: tuple[str, ...] = ()
    """Arguments with an entry an event; `offsets` is one of the arguments."""
    user: tuple[str, ...] = ()
    """Arguments with an entry a user."""
    out: tuple[Layout, ...] = ("event",)
    """Of each result."""
    fixed: tuple[str, ...] = ()
    """Floating arguments that get no gradient."""


def no_cases() -> Iterable[Case]:
    """None: what is not the reference brings no cases."""
    return ()


@dataclass(frozen=True)
class Kernel:
    """One provider's form of one op. An op exists when one kernel says `reference=True`."""

    op: str
    provider: str
    priority: int
    """Reference 0, `cpu` 10, `compiled` 50, `triton` 100, `cuda` 150; of all that say Yes the highest serves."""
    load: Callable[[], Callable[..., Any]]
    """Imports and returns the function: nothing heavy happens before."""
    supports: Callable[[Request], Yes | No] = always
    """Pure: allocates nothing, imports nothing."""
    reference: bool = False
    tolerance: Mapping[str, float] = field(default_factory=lambda: {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2})
    """Greatest relative error against the float64 reference, by dtype; gradients may err ten times that (bfloat16: twice)."""
    opt_in: bool = False
    """Serves only where it is asked for by name."""
    deterministic: bool = True
    """The same call gives the same bits."""
    cases: Callable[[], Iterable[Case]] = no_cases
    """Of the reference: the calls by which every provider is proved."""
    cost: Callable[[Mapping[str, Any]], Cost] | None = None
    """Of the reference: what a call with those arguments costs."""
    lengths: tuple[str, ...] = ()
    """Of the reference: floating arguments whose last axis is a length, a batch or a count, so no width for `Request.dims`."""
