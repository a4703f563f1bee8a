"""The machine: which device, how many threads, and whether the faster fp32 matrix product is as exact here."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from statistics import median
from typing import Final

import torch

from userec.errors import UserError

CACHED_PRODUCTS = "16"
"""Compiled matrix products that oneDNN keeps; it reads this at its first one. Batches come in hundreds of shapes, few of them
twice: its own default of 1,024 would be most of a run's memory."""

SETTINGS: Final = ("highest", "medium")
"""Of torch's fp32 matrix precision; `high` does nothing on a CPU."""
FP32_ERROR: Final = 1e-6
"""The greatest relative error of a product that is still fp32 arithmetic; bf16 errs by 1e-3."""


def device_of(name: str) -> torch.device:
    """The device of that name. Raises UserError where the machine has none such."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown --device {name!r}: cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: this machine has no CUDA device that torch {torch.__version__} can use; leave it out for cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices, numbered from 0")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown --device {name!r}: cpu, cuda or cuda:N")
    return device


def choose_matmul() -> tuple[str, str]:
    """Set torch's fp32 matrix precision on CPU to "medium" where that is still fp32 arithmetic; (chosen, why).

    "medium" lets oneDNN take the product, up to 2.7 times faster on AMD; where a CPU would compute it in bf16 the error
    shows, and "highest" stays. Decided by error alone, never by a clock, so that the same machine always decides alike."""
    for variable in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(variable, CACHED_PRODUCTS)
    errors = matmul_errors()
    chosen = exact_enough(errors)
    torch.set_float32_matmul_precision(chosen)
    return chosen, f"relative error {errors['medium']:.1e} with medium, {errors['highest']:.1e} with highest"


def exact_enough(errors: Mapping[str, float]) -> str:
    """The faster setting where its error is still that of fp32 arithmetic, else "highest"."""
    return "medium" if errors["medium"] <= FP32_ERROR else "highest"


def matmul_errors() -> dict[str, float]:
    """{setting: relative error of an fp32 product on the CPU against float64}."""
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(512, 256, generator=generator), torch.randn(256, 512, generator=generator)
    exact = a.double() @ b.double()
    errors = {}
    for setting in SETTINGS:
        with _matmul(setting):
            errors[setting] = float(((a @ b).double() - exact).norm() / exact.norm())
    return errors


def matmul_speeds(size: int = 512, repeats: int = 9) -> dict[str, float]:
    """{setting: GFLOP/s of an fp32 product of two [size, size] on the CPU}, medians of interleaved repeats.

    It is told; nothing is decided by it."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    for _ in range(repeats + 1):
        for setting in SETTINGS:
            with _matmul(setting):
                began = time.perf_counter()
                a @ a
                seconds[setting].append(time.perf_counter() - began)
    return {setting: 2e-9 * size**3 / median(taken[1:]) for setting, taken in seconds.items()}  # the first one warms up


@contextmanager
def _matmul(setting: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peak_rss_mb() -> float:
    """The most memory this process held, in MB (2^20 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
