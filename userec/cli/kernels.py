"""`userec kernels`: which provider serves which op here, and why the others do not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from userec.cli.output import print_json, print_table, registry_of, warn
from userec.errors import in_words, unknown

if TYPE_CHECKING:
    from userec.kernel.contract import Kernel, Request
    from userec.kernel.dispatch import Kernels
    from userec.registry import Registry

DEVICES: Final = ("cpu", "cuda")
DTYPES: Final = ("float32", "bfloat16", "float64", "float16")


def print_kernels(
    ctx: typer.Context,
    op: Annotated[str | None, typer.Argument(help="One op; all where left out.")] = None,
    device: Annotated[str, typer.Option("--device", metavar="|".join(DEVICES), help="Where the call would run.")] = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", metavar="|".join(DTYPES), help="Of its floating tensors.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout.")] = False,
) -> None:
    """Tell of each op which provider is chosen, which would serve too, which not and why, and who brings it.

    The call asked about is the first of the op's own cases, with gradients; USEREC_KERNELS shows its effect."""
    if device not in DEVICES:
        raise unknown("device", device, DEVICES, "--device")
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES, "--dtype")
    registry = registry_of(ctx)
    for kind, name in registry.clashes:
        if kind == "kernels":
            warn(registry.clash(kind, name))
    kernels = kernels_of(registry)
    known = sorted({*kernels.ops, *kernels.without_reference})
    if op is not None and op not in known:
        raise unknown("kernel op", op, known)
    rows = [row for name in (known if op is None else [op]) for row in rows_of(registry, kernels, name, device, dtype)]
    if as_json:
        print_json(rows)
        return
    from userec.kernel.dispatch import CHOICE

    columns = ("op", "provider", "verdict", "reason", "distribution", "version")
    title = f"{device} {dtype}, {CHOICE}={os.environ.get(CHOICE, 'auto')}"
    print_table(columns, [[row[column] for column in columns] for row in rows], title)


def kernels_of(registry: Registry) -> Kernels:
    """All kernels that the plugins bring, under the environment's choice. Raises UserError as `Kernels`."""
    from userec.kernel.dispatch import Kernels

    return Kernels(kernel for provided in registry.plugins["kernels"].values() for kernel in provided)


def rows_of(registry: Registry, kernels: Kernels, op: str, device: str, dtype: str) -> Iterable[dict[str, Any]]:
    """One object for each kernel of the op: `op provider distribution version verdict reason priority device dtype`."""
    from userec.kernel.dispatch import Verdict

    raised = ""
    if op in kernels.without_reference:
        reason = f"kernel op {op!r} has no reference"
        verdicts = [Verdict(kernel, "no", reason) for kernel in kernels.without_reference[op]]
    else:
        request, raised = asked_of(kernels.reference(op), device, dtype)
        dtype, verdicts = request.dtype, kernels.explain(request)
    for one in verdicts:
        origin = registry.origins["kernels", f"{op}/{one.kernel.provider}"]
        reason = f"{one.reason}; {raised}" if raised and one.kernel.reference else one.reason
        who = {"op": op, "provider": one.kernel.provider, "distribution": origin.distribution, "version": origin.version}
        told = {"verdict": one.verdict, "reason": reason, "priority": one.kernel.priority}
        yield who | told | {"device": device, "dtype": dtype}


def asked_of(reference: Kernel, device: str, dtype: str) -> tuple[Request, str]:
    """(what is asked about the op, what its cases raise): where they do, device and dtype alone are asked about."""
    import torch

    from userec.kernel.contract import Request
    from userec.kernel.dispatch import capability

    try:
        return request_for(reference, device, dtype), ""
    except Exception as error:
        plain = Request(reference.op, device, dtype, cc=capability(torch.device(device)))
        return plain, f"its cases raise {in_words(error)}"


def request_for(reference: Kernel, device: str, dtype: str) -> Request:
    """The facts of the op's first case as if it were called there, training. Its arguments are made on the CPU alone.

    An op on whole numbers keeps their dtype; one that brings no case is asked for by device and dtype."""
    import torch

    from userec.kernel.contract import Request
    from userec.kernel.dispatch import capability, request_of

    cc = capability(torch.device(device))
    case = next(iter(reference.cases()), None)
    if case is None:
        return Request(reference.op, device, dtype, cc=cc)
    arguments = case.make(torch.Generator().manual_seed(0))
    floating = {name for name, x in arguments.items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
    request = request_of(reference.op, arguments, reference.lengths)
    trained = frozenset({"needs_grad"} if floating - set(case.fixed) else ())
    dtype = dtype if floating else request.dtype
    return replace(request, device=device, dtype=dtype, flags=request.flags | trained, cc=cc)
