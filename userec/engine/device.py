"""The machine: which device, how many threads, and whether the faster fp32 matrix product is as exact here."""

from __future__ import annotations

import os
import resource
import sys

import torch

from userec.errors import UserError

CACHED_PRODUCTS = "16"
"""Compiled matrix products that oneDNN keeps; it reads this at its first one. Batches come in hundreds of shapes, few of them
twice: its own default of 1,024 would be most of a run's memory."""


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
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(512, 256, generator=generator), torch.randn(256, 512, generator=generator)
    exact = a.double() @ b.double()
    errors = {}
    for precision in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision)
        errors[precision] = float(((a @ b).double() - exact).norm() / exact.norm())
    chosen = "medium" if errors["medium"] <= 1e-6 else "highest"
    torch.set_float32_matmul_precision(chosen)
    return chosen, f"relative error {errors['medium']:.1e} with medium, {errors['highest']:.1e} with highest"


def peak_rss_mb() -> float:
    """The most memory this process held, in MB (2^20 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
