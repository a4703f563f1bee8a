"""Which provider serves a call: asked once per kind of request, remembered with the reasons, never by trying and failing."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from userec.errors import UserError, unknown
from userec.kernel.contract import Kernel, No, Request

CHOICE: Final = "USEREC_KERNELS"
"""The environment variable of the choice: `auto`, `torch` (every op's reference), or `op=provider`, several with commas."""


@dataclass(frozen=True)
class Resolution:
    """The kernel that serves a request, its loaded function, and {provider: why it was or was not taken}."""

    kernel: Kernel
    fn: Callable[..., Any]
    reasons: Mapping[str, str]


class Kernels:
    """All providers of all ops. `use` overrides the environment's choice: `auto`, `torch` or `attention=torch,...`.

    Raises UserError where an op has no reference, two kernels have the same op and provider, or the choice names none."""

    def __init__(self, kernels: Iterable[Kernel], use: str | None = None) -> None:
        self._by_op: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            self._by_op.setdefault(kernel.op, []).append(kernel)
        for op, providers in self._by_op.items():
            _check(op, providers)
            providers.sort(key=lambda kernel: (-kernel.priority, kernel.provider))
        self._pinned = self._pins(use if use is not None else os.environ.get(CHOICE, "auto"))
        self._resolved: dict[Request, Resolution] = {}

    @property
    def ops(self) -> Mapping[str, tuple[Kernel, ...]]:
        """{op: its kernels, the most preferred first}."""
        return {op: tuple(kernels) for op, kernels in sorted(self._by_op.items())}

    def resolve(self, request: Request) -> Resolution:
        """The provider of highest priority that says Yes; a pinned one must, else UserError with its reason."""
        known = self._resolved.get(request)
        if known is None:
            known = self._resolved[request] = self._choose(request)
        return known

    def op(self, name: str) -> Callable[..., Any]:
        """The op as a function of the reference's signature; each call resolves by the facts of its arguments."""
        if name not in self._by_op:
            raise unknown("kernel op", name, self._by_op)
        reference = next(kernel for kernel in self._by_op[name] if kernel.reference)
        signature = inspect.signature(reference.load())

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            return self.resolve(request_of(name, bound.arguments)).fn(*args, **kwargs)

        call.__name__ = name
        return call

    def chosen(self) -> dict[str, dict[str, Any]]:
        """What served so far, for the report: {op: {"provider": "cpu", "reasons": {provider: why}}}; several with commas."""
        out: dict[str, dict[str, Any]] = {}
        for request, resolution in self._resolved.items():
            entry = out.setdefault(request.op, {"provider": resolution.kernel.provider, "reasons": {}})
            if resolution.kernel.provider not in entry["provider"].split(", "):
                entry["provider"] += f", {resolution.kernel.provider}"
            for provider, reason in resolution.reasons.items():
                kept = entry["reasons"].setdefault(provider, reason)
                if reason not in kept.split("; "):
                    entry["reasons"][provider] = f"{kept}; {reason}"
        return dict(sorted(out.items()))

    def _choose(self, request: Request) -> Resolution:
        if request.op not in self._by_op:
            raise unknown("kernel op", request.op, self._by_op)
        pin = self._pinned.get(request.op)
        taken: Kernel | None = None
        reasons: dict[str, str] = {}
        for kernel in self._by_op[request.op]:
            if pin is not None and kernel.provider != pin:
                reasons[kernel.provider] = f"not asked: {pin} is pinned"
                continue
            answer = kernel.supports(request)
            if isinstance(answer, No):
                reasons[kernel.provider] = f"no: {answer.reason}"
            elif taken is None:
                taken = kernel
                reasons[kernel.provider] = "pinned" if pin else f"yes, priority {kernel.priority}"
            else:
                reasons[kernel.provider] = f"yes, but priority {kernel.priority} is below {taken.provider}'s"
        if taken is None:
            why = "; ".join(f"{provider}: {reason}" for provider, reason in reasons.items())
            raise UserError(f"no kernel serves {request.op!r} on {request.device} in {request.dtype}: {why}")
        return Resolution(taken, taken.load(), reasons)

    def _pins(self, choice: str) -> dict[str, str]:
        pins: dict[str, str] = {}
        for part in filter(None, (word.strip() for word in choice.split(","))):
            op, equals, provider = part.partition("=")
            if equals:
                if op not in self._by_op:
                    raise unknown("kernel op", op, self._by_op, CHOICE)
                if provider not in (known := [kernel.provider for kernel in self._by_op[op]]):
                    raise unknown(f"provider of {op}", provider, known, CHOICE)
                pins[op] = provider
            elif part == "torch":
                for name, kernels in self._by_op.items():
                    pins.setdefault(name, next(kernel.provider for kernel in kernels if kernel.reference))
            elif part != "auto":
                raise UserError(f"{CHOICE}: {part!r} is none of auto, torch and op=provider")
        return pins


def _check(op: str, kernels: list[Kernel]) -> None:
    providers = [kernel.provider for kernel in kernels]
    if twice := sorted({provider for provider in providers if providers.count(provider) > 1}):
        raise UserError(f"kernel op {op!r} is provided twice by {', '.join(twice)}: uninstall one")
    references = [kernel.provider for kernel in kernels if kernel.reference]
    if len(references) != 1:
        told = "no reference" if not references else f"several references ({', '.join(references)})"
        raise UserError(f"kernel op {op!r} has {told}: exactly one of its kernels must say reference=True")


def request_of(op: str, arguments: Mapping[str, Any]) -> Request:
    """The facts of a call: device and dtype of the first floating tensor, the last axis of each one of two axes or more
    (widths are static, batch and length are not), and as flags every argument that is switched on."""
    first: Tensor | None = None
    dims: list[tuple[str, int]] = []
    flags: set[str] = set()
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            flags.add(name)
            if value.is_floating_point():
                first = value if first is None else first
                if value.dim() >= 2:
                    dims.append((name, value.shape[-1]))
                if value.requires_grad and torch.is_grad_enabled():
                    flags.add("needs_grad")
        elif isinstance(value, str):
            flags.add(f"{name}={value}")
        elif isinstance(value, (bool, float)) and value:
            flags.add(name)
    if first is None:
        return Request(op, dims=tuple(dims), flags=frozenset(flags))
    return Request(op, first.device.type, str(first.dtype).removeprefix("torch."), tuple(dims), frozenset(flags))
