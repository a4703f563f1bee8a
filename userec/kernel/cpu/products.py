"""Float32 products of many small blocks: not for oneDNN, to which `set_float32_matmul_precision("medium")` hands them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def small_products() -> Iterator[None]:
    """Inside the block torch makes float32 products itself.

    oneDNN prepares each shape that it meets. A layer meets one a batch; buckets and blocks meet dozens a call, and preparing them
    costs more than the products. The setting is the process's, and is put back."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
