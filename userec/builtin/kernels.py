"""The built-in ops: of each a reference in plain torch, its form for CPUs, and the reference compiled where that is asked for.

An op NAME is the function NAME in `userec/kernel/reference/NAME.py` and in `userec/kernel/cpu/NAME.py`.

What `compiled` is good for: a long run on a machine with a C++ compiler, of an op that the `cpu` form does not serve better; it
fuses what is made value by value. What not: short runs and tests, for the first call waits until C++ is written and compiled.
Sizes are symbols, so that one compilation serves all batches; others come with a size of 1, with a first call two of whose sizes
are equal by chance, with another option or dtype, or without gradients; more than torch allows (8) are an error. Loops over time
are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial, wraps
from importlib import import_module
from typing import Any, Final

from userec.kernel.contract import Kernel, No, Request, Yes
from userec.markers import hookimpl

OPS: Final = (
    "hstu_attention",
    "jagged_attention",
    "retention",
    "retention_step",
    "target_attention",
    "pair_linear",
    "augru",
    "simhash_pack",
    "hamming_topk",
    "linear_cross_entropy",
    "sampled_cross_entropy",
    "jagged_embedding_bag",
    "norm_gate",
)


def on_cpu(request: Request) -> Yes | No:
    """The CPU forms look at lengths and loop in Python: elsewhere that would wait for the device."""
    return Yes() if request.device == "cpu" else No(f"device is {request.device}")


def without_dropout(request: Request) -> Yes | No:
    """With dropout torch takes its MATH path on a CPU, 2.5 times slower."""
    return No("flash attention on a CPU has no dropout") if "dropout_p" in request.flags else on_cpu(request)


CPU_SUPPORTS: Final[Mapping[str, Callable[[Request], Yes | No]]] = {"jagged_attention": without_dropout}
"""{op: what its CPU form serves}, where that is not `on_cpu`."""

LENGTHS: Final[Mapping[str, tuple[str, ...]]] = {"target_attention": ("bias",), "sampled_cross_entropy": ("log_q",)}
"""{op: floating arguments whose last axis is no width}."""

NEVER_COMPILED: Final = {"augru": "its loop over events would be unrolled: a compilation for every max_len, minutes each"}
"""{op: why its reference is no use to torch.compile}."""


def with_compiler(request: Request) -> Yes | No:
    """torch.compile on a CPU writes C++; a loop over time it unrolls."""
    if request.op in NEVER_COMPILED:
        return No(NEVER_COMPILED[request.op])
    if request.device == "cpu" and not (shutil.which("g++") or shutil.which("clang++")):
        return No("torch.compile needs a C++ compiler on a CPU: install g++")
    return Yes()


def _load(room: str, op: str) -> Callable[..., Any]:
    return getattr(import_module(f"userec.kernel.{room}.{op}"), op)


@cache
def _compile(op: str) -> Callable[..., Any]:
    """The reference, compiled at the first call that has something to compute: nothing is left to the reference but calls with an
    empty tensor, which inductor cannot trace. One graph or an error (`fullgraph`), also where too many kinds of call came."""
    import torch

    reference = _load("reference", op)
    compiled = cache(lambda: torch.compile(reference, fullgraph=True, dynamic=True))

    @wraps(reference)
    def call(*args: Any, **kwargs: Any) -> Any:
        empty = any(isinstance(x, torch.Tensor) and not x.numel() for x in (*args, *kwargs.values()))
        return reference(*args, **kwargs) if empty else compiled()(*args, **kwargs)

    return call


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
        lengths=LENGTHS.get(op, ()),
    )
    yield Kernel(op, "cpu", 10, partial(_load, "cpu", op), CPU_SUPPORTS.get(op, on_cpu))
    yield Kernel(op, "compiled", 50, partial(_compile, op), with_compiler, tolerance={"float32": 1e-5}, opt_in=True)


@hookimpl
def userec_kernels() -> Iterable[Kernel]:
    """Every op, by all of its forms."""
    return [kernel for op in OPS for kernel in _forms(op)]
