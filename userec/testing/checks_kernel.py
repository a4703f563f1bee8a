"""The checks of an op's kernels: one reference, pure answers, one signature, and every provider against the float64 reference on
the op's own cases: values, gradients, layouts, guard zones, users that do not touch each other, equal bits, opcheck."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from userec.errors import UserError
from userec.kernel.contract import Case, Kernel, No, Request, Yes
from userec.kernel.dispatch import Kernels, request_of
from userec.testing.check import holds
from userec.testing.checks_kernel_calls import (
    calls,
    check_bits,
    check_gradcheck,
    check_guards,
    check_layouts,
    check_opcheck,
    check_users,
    check_values,
)

DTYPES: Final = ("float32", "float64", "bfloat16", "float16")
DEVICES: Final = ("cpu", "cuda", "mps")


def check_op(kernels: Sequence[Kernel]) -> None:
    """Exactly one reference, each provider once, and cases to prove them by."""
    try:
        op = Kernels(kernels, use="auto").reference(kernels[0].op)
    except UserError as error:
        raise AssertionError(f"{kernels[0].op}: {error}") from error
    names = [case.name for case in op.cases()]
    holds(names, f"{op.op}/{op.provider}: the reference brings no cases: nothing proves its providers")
    holds(len(set(names)) == len(names), f"{op.op}/{op.provider}: two cases have one name")
    if op.cost is not None:
        for case in op.cases():
            cost = op.cost(case.make(torch.Generator().manual_seed(17)))
            told = f"{op.op}/{op.provider}: case {case.name!r} costs {cost}"
            holds(0 <= cost.flops < math.inf and 0 <= cost.bytes < math.inf, told)


def check_supports(kernels: Sequence[Kernel]) -> None:
    """`supports` answers every request with Yes or No(reason), the same each time; the reference refuses none on the CPU."""
    for kernel in kernels:
        told = f"{kernel.op}/{kernel.provider}"
        for request in (Request(kernel.op, device, dtype) for device in DEVICES for dtype in DTYPES):
            answer = kernel.supports(request)
            holds(isinstance(answer, (Yes, No)), f"{told}: supports answers {answer!r} for {request}, neither Yes nor No")
            holds(answer == kernel.supports(request), f"{told}: supports answers otherwise when asked again: it is not pure")
            holds(not isinstance(answer, No) or answer.reason, f"{told}: supports says No without a reason")
            if kernel.reference and request.device == "cpu":
                holds(
                    isinstance(answer, Yes),
                    f"{told}: the reference refuses {request.dtype} on the CPU: nothing would serve the call",
                )


def check_signature(kernels: Sequence[Kernel]) -> None:
    """Every provider that serves here loads, and takes the reference's parameters: names, order, kinds and defaults."""
    reference = next(kernel for kernel in kernels if kernel.reference)
    want = _parameters(reference)
    for kernel in kernels:
        if device_of(kernel, list(reference.cases())) is not None:
            got = _parameters(kernel)
            holds(
                got == want,
                f"{kernel.op}/{kernel.provider}: takes ({', '.join(got)}), the reference ({', '.join(want)}): signature",
            )


def _parameters(kernel: Kernel) -> dict[str, Any]:
    return {name: (entry.kind, entry.default) for name, entry in inspect.signature(kernel.load()).parameters.items()}


def device_of(kernel: Kernel, cases: Sequence[Case]) -> str | None:
    """Where the kit runs it: the first device here on which it serves a case in a dtype of its own; None if nowhere."""
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        if any(True for dtype in kernel.tolerance for _ in calls(kernel, device, dtype, cases)):
            return device
    return None


def check_refused(kernels: Sequence[Kernel], provider: str, cases: Sequence[Case]) -> None:
    """A provider that serves none of the cases on this machine says why, in words of its own, to each."""
    kernel = next(kernel for kernel in kernels if kernel.provider == provider)
    for case in cases:
        answer = kernel.supports(request_of(kernel.op, case.make(torch.Generator().manual_seed(17))))
        holds(
            isinstance(answer, No) and answer.reason.strip(),
            f"{kernel.op}/{provider}: it refuses case {case.name!r} without a reason",
        )


PROOFS: Final = (check_values, check_layouts, check_guards, check_users, check_bits, check_opcheck)
"""Of every provider that serves on this machine."""


def kernel_checks(cls: Sequence[Kernel], settings: dict[str, Any], plugins: Callable[[], Any]) -> Iterable[tuple[Any, ...]]:
    """The op's own, then the proofs of each provider; of one that cannot serve here, that it says why. `settings` may name
    `providers` (those alone are proved; without it all but the opt-in ones) and `cases` (names)."""
    known = {"providers", "cases"}
    holds(settings.keys() <= known, f"settings of kernel checks are {', '.join(sorted(known))}, not {', '.join(settings)}")
    for check in (check_op, check_supports, check_signature):
        yield check, cls
    reference = next((kernel for kernel in cls if kernel.reference), None)
    if reference is None:  # check_op tells
        return
    cls = [replace(kernel, lengths=reference.lengths) for kernel in cls]
    names = settings.get("cases")
    cases = [case for case in reference.cases() if names is None or case.name in names]
    for kernel in cls:
        if kernel.opt_in if "providers" not in settings else kernel.provider not in settings["providers"]:
            continue
        device = device_of(kernel, cases)
        if device is None:
            yield check_refused, cls, kernel.provider, cases
            continue
        for proof in (*PROOFS, *((check_gradcheck,) if kernel.reference else ())):
            yield proof, cls, kernel.provider, device, cases
