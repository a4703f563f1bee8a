"""`userec doctor`: what is wrong with this installation, a line each with the way out."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from userec.cli.output import blocked, print_json, print_table
from userec.dataset.locate import cache_folder
from userec.errors import UserError, in_words
from userec.registry import CORE, Registry, core_version, load

if TYPE_CHECKING:
    from userec.kernel.contract import Kernel

LEAST_DISK_GB: Final = 2.0
"""Free space below which a run with checkpoints may not end."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it stands and, where it is not ok, the way out."""

    name: str
    status: Literal["ok", "warn", "FAIL"]
    detail: str
    way_out: str = ""


def doctor(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects on stdout.")] = False,
) -> None:
    """Look at python, torch, the plugins, the kernels, the folders and the dependencies; exits 1 where one of them fails."""
    findings = list(examine(os.environ, blocked(ctx)))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        rows = [[f.status, f.name, f.detail + (f"; {f.way_out}" if f.way_out else "")] for f in findings]
        print_table(("", "what", "finding"), rows)
    if any(finding.status == "FAIL" for finding in findings):
        raise typer.Exit(1)


def examine(environ: Mapping[str, str], block: tuple[str, ...] = ()) -> Iterator[Finding]:
    """Everything that is looked at, in order."""
    yield Finding(
        "python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}, userec {core_version()}"
    )
    yield from _dependencies()
    torch = _imports("torch", _torch)
    yield torch
    yield _imports("numpy", lambda: importlib.import_module("numpy").__version__)
    yield _imports("pandas", lambda: importlib.import_module("pandas").__version__)
    registry = load(block=block, environ=environ)
    yield from _plugins(registry)
    if torch.status == "ok":
        yield _matmul()
        yield from _kernels(registry)
    yield from _cache(cache_folder(environ))
    yield _data(environ)


def _imports(name: str, tell: Callable[[], str]) -> Finding:
    """Whether a package really imports: a wheel for another machine is installed well and fails here."""
    try:
        return Finding(name, "ok", tell())
    except Exception as error:
        return Finding(name, "FAIL", in_words(error), f"reinstall it: `pip install {name}`")


def _torch() -> str:
    torch = importlib.import_module("torch")
    device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
    return f"{torch.__version__}, {torch.get_num_threads()} threads of {os.cpu_count()} cores, device {device}"


def _matmul() -> Finding:
    """How fast and how exact the fp32 matrix product is on this CPU, and which setting large products take."""
    from userec.kernel.cpu.products import FP32_ERROR, exact_enough, product_errors, product_speeds

    errors, speeds = product_errors(), product_speeds()
    told = ", ".join(f"{setting} {speeds[setting]:.0f} GFLOP/s with relative error {errors[setting]:.1e}" for setting in errors)
    exact = exact_enough(errors) == "medium"
    why = (
        f"medium is chosen for large products: its error is at most {FP32_ERROR:.0e}, still fp32"
        if exact
        else "highest is chosen for all products: medium is no fp32"
    )
    return Finding("fp32 matmul", "ok", f"{told}; {why} (by error alone, so that a seed gives one result)")


def _kernels(registry: Registry) -> Iterator[Finding]:
    """How many ops and providers there are, what is wrong with them, and what USEREC_KERNELS asks for that cannot be had here."""
    import torch

    from userec.cli.kernels import asked_of, kernels_of
    from userec.kernel.dispatch import CHOICE

    try:
        kernels = kernels_of(registry)
    except UserError as error:
        yield Finding(
            "kernels",
            "FAIL",
            str(error),
            f"every run fails: `userec list kernels` shows what there is; change {CHOICE}, or -p no:NAME",
        )
        return
    forms = [kernel for provided in kernels.ops.values() for kernel in provided]
    providers = sorted({kernel.provider for kernel in forms})
    yield Finding(
        "kernels", "ok", f"{len(kernels.ops)} ops, {len(forms)} kernels of {len(providers)} providers ({', '.join(providers)})"
    )
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    for without in kernels.without_reference.values():
        for kernel in without:
            yield _fault(registry, kernel, "the op has no reference, so nothing can call it")
    refused: dict[tuple[str, str], list[str]] = {}  # {(provider, its reason): ops}
    nothing = []
    for op in kernels.ops:
        reference = kernels.reference(op)
        requests = [asked_of(reference, device, "float32") for device in devices]
        if raised := requests[0][1]:
            yield _fault(registry, reference, raised)
        asked = [kernels.explain(request) for request, _ in requests]
        for here in zip(*asked, strict=True):
            name = here[0].kernel.provider
            if broken := next((one for one in here if one.raised is not None), None):
                yield _fault(registry, broken.kernel, f"{broken.reason}: a run that calls the op fails")
                continue
            if name in kernels.asked(op) and all(one.verdict == "no" for one in here):
                refused.setdefault((name, here[0].reason), []).append(op)
        if all(one.verdict == "no" for verdicts in asked for one in verdicts):
            nothing.append(op)
    for (name, reason), ops in refused.items():
        yield Finding(CHOICE, "warn", f"{name} cannot serve {', '.join(ops)}: {reason}", "`userec kernels` tells what does")
    if nothing:
        told = f"nothing serves {', '.join(nothing)}: a run that calls one of them fails"
        yield Finding(CHOICE, "warn", told, "`userec kernels` tells why; change or unset it")


def _fault(registry: Registry, kernel: Kernel, told: str) -> Finding:
    """What is wrong with somebody's kernel, and whose it is."""
    full = f"{kernel.op}/{kernel.provider}"
    origin = registry.origins["kernels", full]
    way = f"`pip install --upgrade {origin.distribution}`, or leave it out: -p no:{origin.entry}"
    return Finding(f"kernel {full}", "warn", f"{origin.distribution} {origin.version}: {told}", way)


def _dependencies() -> Iterator[Finding]:
    """Whether what userec itself requires is installed in the range it asks for."""
    from packaging.requirements import Requirement

    try:
        lines = importlib.metadata.requires(CORE) or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("dependencies", "warn", "userec runs uninstalled, its requirements are unknown", "`pip install -e .`")
        return
    wrong = []
    for line in lines:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            has = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing (needs {wanted.name}{wanted.specifier})")
            continue
        if not wanted.specifier.contains(has, prereleases=True):
            wrong.append(f"{wanted.name} is {has} (needs {wanted.name}{wanted.specifier})")
    if wrong:
        yield Finding("dependencies", "FAIL", "; ".join(wrong), "`pip install --upgrade userec`")
    else:
        yield Finding("dependencies", "ok", f"{len(lines)} requirements, all that apply are met")


def _plugins(registry: Registry) -> Iterator[Finding]:
    standing = [entry for entry in registry.installed if entry.status == "ok"]
    yield Finding("plugins", "ok", f"{len(standing)} of {len(registry.installed)} entry points loaded")
    for entry in registry.installed:
        what = f"plugin {entry.entry}"
        who = f"{entry.distribution} {entry.version}"
        if entry.status == "broken":
            mend = (
                "`pip install --force-reinstall userec`"
                if entry.distribution == CORE
                else f"`pip uninstall {entry.distribution}`"
            )
            out = f"`userec plugins info {entry.entry}` shows where; `-p no:{entry.entry}` or {mend}"
            yield Finding(what, "FAIL", f"{who}: {entry.reason}", out)
        elif entry.status == "incompatible":
            yield Finding(what, "warn", f"{who}: {entry.reason}", f"`pip install --upgrade {entry.distribution}`")
        elif entry.status == "blocked":
            yield Finding(what, "warn", f"{who}: {entry.reason}")
    for kind, name in registry.clashes:
        claimed, _, way = registry.clash(kind, name).partition(";\n")
        yield Finding(f"name {name}", "FAIL", claimed, way)
    for note in registry.notes:
        yield Finding("plugins", "warn", note)


def _cache(folder: Path) -> Iterator[Finding]:
    """Whether the cache folder can be written, tried by writing, and how much its disk has left."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"userec")
    except OSError as error:
        way = "set USEREC_CACHE to a folder that you can write to"
        yield Finding("cache", "FAIL", f"{folder} cannot be written: {error.strerror or error}", way)
        return
    yield Finding("cache", "ok", str(folder))
    free = shutil.disk_usage(folder).free / 1e9
    if free < LEAST_DISK_GB:
        yield Finding("disk", "warn", f"{free:.1f} GB free at {folder}", "free some, or set USEREC_CACHE to a larger disk")
    else:
        yield Finding("disk", "ok", f"{free:.0f} GB free")


def _data(environ: Mapping[str, str]) -> Finding:
    named = environ.get("USEREC_DATA")
    if not named:
        return Finding("data", "ok", "USEREC_DATA is not set: data sets are looked for in the cache folder")
    if Path(named).expanduser().is_dir():
        return Finding("data", "ok", f"USEREC_DATA is {named}")
    return Finding("data", "FAIL", f"USEREC_DATA is {named}, which is no folder", "make it, correct it or unset it")
