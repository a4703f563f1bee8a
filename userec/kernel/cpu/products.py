"""Which library makes float32 products on a CPU: torch's own way, or oneDNN (`set_float32_matmul_precision("medium")`).

oneDNN is faster at large products, but prepares each shape that it meets: a catalogue has one, batches, buckets and blocks have
hundreds. So it is asked for by those ops alone whose products are large and of one shape, and only where its error is that of
float32 arithmetic: on some CPUs it would compute in bfloat16. That is decided by error, never by a clock, so that one machine
always decides alike."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from statistics import median
from typing import Final

import torch

SETTINGS: Final = ("highest", "medium")
"""Of torch's float32 matrix precision: torch's own way, oneDNN; `high` does nothing on a CPU."""
FP32_ERROR: Final = 1e-6
"""The greatest relative error of a product that is still float32 arithmetic; bfloat16 errs by 1e-3."""
CACHED: Final = "16"
"""Prepared products that oneDNN keeps; it reads this at its first one. Its own 1,024 could be most of a run's memory."""


@contextmanager
def large_products() -> Iterator[None]:
    """Inside the block float32 products are oneDNN's, where `choice` finds it exact.

    The setting is the whole process's, and is put back."""
    with _setting(choice()[0]):
        yield


@cache
def choice() -> tuple[str, str]:
    """(the setting of large products on this machine, why)."""
    errors = product_errors()
    return exact_enough(errors), f"relative error {errors['medium']:.1e} with medium, {errors['highest']:.1e} with highest"


def exact_enough(errors: Mapping[str, float]) -> str:
    """The faster setting where its error is still that of float32 arithmetic, else "highest"."""
    return "medium" if errors["medium"] <= FP32_ERROR else "highest"


def product_errors() -> dict[str, float]:
    """{setting: relative error of a float32 product on the CPU against float64}."""
    for variable in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(variable, CACHED)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(512, 256, generator=generator), torch.randn(256, 512, generator=generator)
    exact = a.double() @ b.double()
    errors = {}
    for setting in SETTINGS:
        with _setting(setting):
            errors[setting] = float(((a @ b).double() - exact).norm() / exact.norm())
    return errors


def product_speeds(size: int = 512, repeats: int = 9) -> dict[str, float]:
    """{setting: GFLOP/s of a float32 product of two [size, size] on the CPU}, medians of interleaved repeats.

    It is told; nothing is decided by it."""
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
    for _ in range(repeats + 1):
        for setting in SETTINGS:
            with _setting(setting):
                began = time.perf_counter()
                a @ a
                seconds[setting].append(time.perf_counter() - began)
    return {setting: 2e-9 * size**3 / median(taken[1:]) for setting, taken in seconds.items()}  # the first one warms up


@contextmanager
def _setting(setting: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
