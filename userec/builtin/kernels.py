"""The built-in ops: of each a reference in plain torch, its form for CPUs, and the reference compiled where that is asked for.

An op NAME is the function NAME in `userec/kernel/reference/NAME.py` and in `userec/kernel/cpu/NAME.py`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any, Final

from userec.kernel.contract import Kernel, No, Request, Yes
from userec.kernel.cpu import attention as cpu_attention
from userec.kernel.reference import attention
from userec.markers import hookimpl

OPS: Final = ("hstu_attention", "augru")


def on_cpu(request: Request) -> Yes | No:
    """The CPU forms look at lengths and loop in Python: elsewhere that would wait for the device."""
    return Yes() if request.device == "cpu" else No(f"device is {request.device}")


def with_compiler(request: Request) -> Yes | No:
    """torch.compile on a CPU writes C++."""
    if request.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return No("torch.compile needs a C++ compiler on a CPU: install g++")
    return Yes()


def _load(room: str, op: str) -> Callable[..., Any]:
    return getattr(import_module(f"userec.kernel.{room}.{op}"), op)


def _compile(op: str) -> Callable[..., Any]:
    import torch

    return torch.compile(_load("reference", op))


def _forms(op: str) -> Iterable[Kernel]:
    reference = partial(import_module, f"userec.kernel.reference.{op}")
    yield Kernel(
        op,
        "torch",
        0,
        partial(_load, "reference", op),
        reference=True,
        cases=lambda: reference().cases(),
        cost=lambda arguments: reference().cost(arguments),
    )
    yield Kernel(op, "cpu", 10, partial(_load, "cpu", op), on_cpu)
    yield Kernel(op, "compiled", 50, partial(_compile, op), with_compiler, opt_in=True)


@hookimpl
def userec_kernels() -> Iterable[Kernel]:
    """Every op, by all of its forms."""
    from userec.kernel.cpu import cross_entropy as cpu_cross_entropy
    from userec.kernel.reference import cross_entropy

    return [
        Kernel("attention", "torch", 0, lambda: attention.attention, reference=True),
        Kernel("attention", "cpu", 10, lambda: cpu_attention.attention, cpu_attention.supports),
        Kernel("linear_cross_entropy", "torch", 0, lambda: cross_entropy.linear_cross_entropy, reference=True),
        Kernel("linear_cross_entropy", "cpu", 10, lambda: cpu_cross_entropy.linear_cross_entropy, cpu_cross_entropy.supports),
        *(kernel for op in OPS for kernel in _forms(op)),
    ]
