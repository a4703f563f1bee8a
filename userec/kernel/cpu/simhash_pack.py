"""SimHash in blocks of rows whose projections stay in a core's cache, packed eight signs at a time."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from userec.kernel.dtypes import widest
from userec.kernel.reference.simhash_pack import BITS, check_planes

BLOCK: Final = 2**16
"""Projections a block."""


def simhash_pack(x: Tensor, planes: Tensor) -> Tensor:
    """As the reference: the projections of all rows are never held."""
    check_planes(x, planes)
    own, given = widest(x.detach(), planes.detach())
    with torch.autocast("cpu", enabled=False):
        return _pack(own, given)


@custom_op("userec::cpu_simhash_pack", mutates_args=())
def _pack(x: Tensor, planes: Tensor) -> Tensor:
    words = -(-planes.shape[1] // BITS)
    rows = max(1, BLOCK // (BITS * max(words, 1)))
    bits = torch.zeros(rows, words * BITS, dtype=torch.bool)  # past m they stay 0
    out = np.empty((len(x), words), np.int64)
    for start in range(0, len(x), rows):
        own = x[start : start + rows]
        torch.gt(own @ planes, 0, out=bits[: len(own), : planes.shape[1]])
        packed = np.packbits(bits[: len(own)].numpy(), axis=1, bitorder="little")  # [r, 8 W], the low byte first
        out[start : start + rows] = packed.view("<i8")
    return torch.from_numpy(out)


@_pack.register_fake
def _(x: Tensor, planes: Tensor) -> Tensor:
    return x.new_empty((len(x), -(-planes.shape[1] // BITS)), dtype=torch.int64)
