"""Which provider serves a call: asked once per kind of request, remembered with the reasons, never by trying and failing."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor

from userec.errors import UserError, in_words, unknown
from userec.kernel.contract import Kernel, No, Request

CHOICE: Final = "USEREC_KERNELS"
"""The environment variable of the choice, words with commas between: `auto`; a provider (`torch`: every op's reference), which is
preferred wherever it serves; `op=provider`, which must serve; `strict`: what is preferred must serve every op."""


@dataclass(frozen=True)
class Verdict:
    """What became of one kernel in one request."""

    kernel: Kernel
    verdict: Literal["chosen", "yes", "no"]
    reason: str
    raised: Exception | None = None
    """What its `supports` raised instead of an answer."""


@dataclass(frozen=True)
class Resolution:
    """The kernel that serves a request, its loaded function, and {provider: why it was or was not taken}."""

    kernel: Kernel
    fn: Callable[..., Any]
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class _Choice:
    """What was asked for, and what it resolved so far."""

    pins: Mapping[str, str]  # {op: provider}
    preferred: tuple[str, ...]
    strict: bool
    resolved: dict[Request, Resolution] = field(default_factory=dict)


class Kernels:
    """All providers of all ops. `use` overrides the environment's choice (see `CHOICE`). Forms of an op whose reference nobody
    brings are left out, and told to whoever asks for the op.

    Raises UserError where an op has two references, two kernels have the same op and provider, or the choice names none."""

    def __init__(self, kernels: Iterable[Kernel], use: str | None = None) -> None:
        brought: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            brought.setdefault(kernel.op, []).append(kernel)
        for op, providers in brought.items():
            _check(op, providers)
            providers.sort(key=lambda kernel: (-kernel.priority, kernel.provider))
        self._by_op = {op: forms for op, forms in brought.items() if any(kernel.reference for kernel in forms)}
        self._without = {op: forms for op, forms in brought.items() if op not in self._by_op}
        self._choice = self._parse(use if use is not None else os.environ.get(CHOICE, "auto"))
        self._served: dict[Request, list[Resolution]] = {}

    @property
    def ops(self) -> Mapping[str, tuple[Kernel, ...]]:
        """{op: its kernels, the most preferred first}."""
        return {op: tuple(kernels) for op, kernels in sorted(self._by_op.items())}

    @property
    def without_reference(self) -> Mapping[str, tuple[Kernel, ...]]:
        """{op: its kernels} of what is left out, since no installed kernel of the op is its reference."""
        return {op: tuple(kernels) for op, kernels in sorted(self._without.items())}

    def reference(self, op: str) -> Kernel:
        """The op's reference. Raises UserError for an unknown op, and for one that has none."""
        self._known(op)
        return next(kernel for kernel in self._by_op[op] if kernel.reference)

    @contextmanager
    def use(self, choice: str, strict: bool = False) -> Iterator[None]:
        """Inside the block the choice stands over the environment's: `with kernels.use("torch"):`. Raises as the constructor."""
        before = self._choice
        self._choice = self._parse(f"{choice},strict" if strict else choice)
        try:
            yield
        finally:
            self._choice = before

    def resolve(self, request: Request) -> Resolution:
        """The preferred provider that says Yes, else the one of highest priority; a pinned one must, else UserError."""
        known = self._choice.resolved.get(request)
        if known is None:
            known = self._choice.resolved[request] = self._choose(request)
            served = self._served.setdefault(request, [])
            if all((known.kernel, known.reasons) != (one.kernel, one.reasons) for one in served):
                served.append(known)
        return known

    def asked(self, op: str) -> tuple[str, ...]:
        """The providers asked for by name: the pinned one, else all that are preferred."""
        pin = self._choice.pins.get(op)
        return self._choice.preferred if pin is None else (pin,)

    def explain(self, request: Request) -> list[Verdict]:
        """What becomes of each kernel of the op, the most preferred first; one whose `supports` raises says no, and
        `resolve` raises that. Raises UserError as `reference`."""
        self.reference(request.op)
        if refused := _refusal(request):
            return [Verdict(kernel, "no", refused) for kernel in self._by_op[request.op]]
        pin, preferred = self._choice.pins.get(request.op), self._choice.preferred
        taken: Kernel | None = None
        verdicts = []
        for kernel in sorted(self._by_op[request.op], key=lambda kernel: _rank(kernel.provider, preferred)):
            asked = kernel.provider in self.asked(request.op)
            if pin is not None and kernel.provider != pin:
                verdicts.append(Verdict(kernel, "no", f"not asked: {pin} is pinned"))
                continue
            if self._choice.strict and not asked:
                verdicts.append(Verdict(kernel, "no", f"not asked: strict, {' or '.join(preferred)} must serve"))
                continue
            if kernel.opt_in and not asked:
                verdicts.append(Verdict(kernel, "no", f"opt-in: ask with {CHOICE}={kernel.provider}"))
                continue
            try:
                answer = kernel.supports(request)
            except Exception as error:
                verdicts.append(Verdict(kernel, "no", f"supports raises {in_words(error)}", error))
                continue
            if isinstance(answer, No):
                verdicts.append(Verdict(kernel, "no", answer.reason))
            elif taken is None:
                taken = kernel
                why = "pinned" if pin else "asked for" if asked else f"priority {kernel.priority}"
                verdicts.append(Verdict(kernel, "chosen", why))
            elif taken.provider in preferred:
                verdicts.append(Verdict(kernel, "yes", f"{taken.provider} is asked for"))
            else:
                verdicts.append(Verdict(kernel, "yes", f"priority {kernel.priority} is below {taken.provider}'s"))
        return verdicts

    def op(self, name: str) -> Callable[..., Any]:
        """The op as a function of the reference's signature; each call resolves by the facts of its arguments."""
        reference = self.reference(name)
        names = tuple(inspect.signature(reference.load()).parameters)

        def call(*args: Any, **kwargs: Any) -> Any:
            request = request_of(name, dict(zip(names, args, strict=False)) | kwargs, reference.lengths)
            return self.resolve(request).fn(*args, **kwargs)

        call.__name__ = name
        return call

    def chosen(self) -> dict[str, dict[str, Any]]:
        """What served so far, for the report: {op: {"provider": "cpu", "reasons": {provider: why}}}; several with commas."""
        out: dict[str, dict[str, Any]] = {}
        for request, resolutions in self._served.items():
            for resolution in resolutions:
                entry = out.setdefault(request.op, {"provider": resolution.kernel.provider, "reasons": {}})
                if resolution.kernel.provider not in entry["provider"].split(", "):
                    entry["provider"] += f", {resolution.kernel.provider}"
                for provider, reason in resolution.reasons.items():
                    kept = entry["reasons"].setdefault(provider, reason)
                    if reason not in kept.split("; "):
                        entry["reasons"][provider] = f"{kept}; {reason}"
        return dict(sorted(out.items()))

    def _choose(self, request: Request) -> Resolution:
        if refused := _refusal(request):
            raise UserError(f"{request.op} in {refused}")
        verdicts = self.explain(request)
        for one in verdicts:
            if one.raised is not None:
                raise one.raised
        prefix = {"chosen": "", "yes": "yes, but ", "no": "no: "}
        reasons = {one.kernel.provider: prefix[one.verdict] + one.reason for one in verdicts}
        taken = next((one.kernel for one in verdicts if one.verdict == "chosen"), None)
        why = "; ".join(f"{provider}: {reason}" for provider, reason in reasons.items())
        preferred = self._choice.preferred
        if taken is None and self._choice.strict and request.op not in self._choice.pins:
            raise UserError(f"{CHOICE} is strict, and none of {', '.join(preferred)} serves {request.op!r}: {why}")
        if taken is None:
            raise UserError(f"no kernel serves {request.op!r} on {request.device} in {request.dtype}: {why}")
        return Resolution(taken, taken.load(), reasons)

    def _parse(self, choice: str) -> _Choice:
        pins: dict[str, str] = {}
        preferred: list[str] = []
        words = [word.strip() for word in choice.split(",") if word.strip()]
        providers = {
            kernel.provider for forms in (self._by_op, self._without) for kernels in forms.values() for kernel in kernels
        }
        for part in words:
            op, equals, provider = (word.strip() for word in part.partition("="))
            if equals:
                self._known(op, CHOICE)
                if op in pins:
                    raise UserError(f"{CHOICE} pins {op} twice, to {pins[op]} and to {provider}: leave one out")
                if provider not in (known := [kernel.provider for kernel in self._by_op[op]]):
                    raise unknown(f"provider of {op}", provider, known, CHOICE)
                pins[op] = provider
            elif part in providers:
                preferred.append(part)
            elif part not in ("auto", "strict") and providers:
                raise unknown("kernel provider", part, {*providers, "auto", "strict"}, CHOICE)
        if "strict" in words and not preferred and providers:
            raise UserError(f"strict needs a provider to be strict about: {CHOICE}=torch,strict")
        return _Choice(pins, tuple(preferred), "strict" in words)

    def _known(self, op: str, where: str = "") -> None:
        if op in self._without:
            told = ", ".join(kernel.provider for kernel in self._without[op])
            raise UserError(
                f"kernel op {op!r} has no reference; brought by {told}: install what brings it, or mend the op's name"
            )
        if op not in self._by_op:
            raise unknown("kernel op", op, self._by_op, where)


def _refusal(request: Request) -> str:
    """Why no kernel may serve the request, or nothing."""
    slow = request.device == "cpu" and request.dtype == "float16"
    return "float16 on a CPU would be far slower than in float32: use float32 or bfloat16" if slow else ""


def _rank(provider: str, preferred: tuple[str, ...]) -> int:
    return preferred.index(provider) if provider in preferred else len(preferred)


def _check(op: str, kernels: list[Kernel]) -> None:
    providers = [kernel.provider for kernel in kernels]
    if twice := sorted({provider for provider in providers if providers.count(provider) > 1}):
        raise UserError(f"kernel op {op!r} is provided twice by {', '.join(twice)}: uninstall one")
    references = [kernel.provider for kernel in kernels if kernel.reference]
    if len(references) > 1:
        told = ", ".join(references)
        raise UserError(f"kernel op {op!r} has several references ({told}): exactly one of its kernels must say reference=True")


def request_of(op: str, arguments: Mapping[str, Any], lengths: Collection[str] = ()) -> Request:
    """The facts of a call: device and dtype of the first floating tensor, the last axis of each one of two axes or more
    (widths are static, batch and length are not), and as flags every argument that is given or switched on.

    The last axis of those named in `lengths` is no width: see `Kernel.lengths` of the op's reference."""
    first: Tensor | None = None
    where: Tensor | None = None
    dims: list[tuple[str, int]] = []
    flags: set[str] = set()
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            flags.add(name)
            where = value if where is None else where
            if value.is_floating_point():
                first = value if first is None else first
                if value.dim() >= 2 and name not in lengths:
                    dims.append((name, value.shape[-1]))
                if value.requires_grad and torch.is_grad_enabled():
                    flags.add("needs_grad")
        elif isinstance(value, str):
            flags.add(f"{name}={value}")
        elif isinstance(value, (bool, float)):
            flags |= {name} if value else set()
        elif isinstance(value, int):
            flags.add(name)
    first = where if first is None else first
    if first is None:
        return Request(op, dims=tuple(dims), flags=frozenset(flags))
    device, dtype = first.device, str(first.dtype).removeprefix("torch.")
    return Request(op, device.type, dtype, tuple(dims), frozenset(flags), capability(device))


def capability(device: torch.device) -> int | None:
    """90 for 9.0, of a CUDA device; None where it is none, or where this machine has none."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
