"""The checks of an op's kernels: one reference, pure answers, one signature. Values are compared by each op's own tests."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from userec.errors import UserError
from userec.kernel.contract import Kernel, No, Request, Yes
from userec.kernel.dispatch import Kernels
from userec.testing.check import holds

DTYPES: Final = ("float32", "float64", "bfloat16", "float16")
DEVICES: Final = ("cpu", "cuda", "mps")


def check_op(kernels: Sequence[Kernel]) -> None:
    """Exactly one reference, each provider once."""
    try:
        Kernels(kernels, use="auto")
    except UserError as error:
        raise AssertionError(f"{kernels[0].op}: {error}") from error


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
    """Every provider that serves the CPU loads, and takes the reference's parameters: names, order and defaults."""
    reference = next(kernel for kernel in kernels if kernel.reference)
    want = _parameters(reference)
    for kernel in kernels:
        if isinstance(kernel.supports(Request(kernel.op)), Yes):
            got = _parameters(kernel)
            holds(
                got == want,
                f"{kernel.op}/{kernel.provider}: takes ({', '.join(got)}), the reference ({', '.join(want)}): signature",
            )


def _parameters(kernel: Kernel) -> dict[str, Any]:
    return {name: entry.default for name, entry in inspect.signature(kernel.load()).parameters.items()}


def kernel_checks(
    cls: Sequence[Kernel], settings: dict[str, Any], plugins: Callable[[], Any]
) -> Iterable[tuple[Any, Sequence[Kernel]]]:
    """All of them."""
    return [(check, cls) for check in (check_op, check_supports, check_signature)]
