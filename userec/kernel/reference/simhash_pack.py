"""SimHash: which side of each of m planes a vector lies on, as bits (Charikar 2002; ETA, Chen et al. 2021, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from userec.errors import UserError
from userec.kernel.contract import Case, Cost
from userec.kernel.dtypes import widest

BITS = 64
"""Of a word."""


def simhash_pack(x: Tensor, planes: Tensor) -> Tensor:
    """x [N, D], planes [D, m] -> [N, W] int64 with W = ceil(m / 64): bit i of word w is set where x planes[:, 64 w + i] > 0.

    Bits past m are 0, and so is a tie. No gradient passes. A projection within rounding of 0 may fall on the other side in
    another form, dtype or thread count (autocast changes nothing): the cases are whole numbers, whose products and sums are
    exact in each of them."""
    check_planes(x, planes)
    own, given = widest(x.detach(), planes.detach())
    with torch.autocast(x.device.type, enabled=False):
        bits = own @ given > 0  # [N, m]
    words = -(-planes.shape[1] // BITS)
    bits = F.pad(bits, (0, words * BITS - planes.shape[1])).reshape(len(x), words, BITS)
    return (bits * (1 << torch.arange(BITS, device=x.device))).sum(-1)  # 1 << 63 is the sign bit: the sum wraps, as it must


def check_planes(x: Tensor, planes: Tensor) -> None:
    """Raises UserError unless x is [N, D] and planes [D, m]."""
    if x.dim() != 2 or planes.dim() != 2 or x.shape[1] != planes.shape[0]:
        raise UserError(f"simhash_pack: x is {tuple(x.shape)}, planes {tuple(planes.shape)}: give [N, D] and [D, m]")


def cost(arguments: Mapping[str, Any]) -> Cost:
    """One product; x and planes read, the words written."""
    x, planes = arguments["x"], arguments["planes"]
    read = x.element_size() * (x.numel() + planes.numel())
    return Cost(2.0 * x.numel() * planes.shape[1], read + 8.0 * len(x) * -(-planes.shape[1] // BITS))


def cases() -> Iterable[Case]:
    """A part of a word, a word, more, and blocks of rows: small whole numbers, many of whose products are ties."""
    for name, rows, bits in (
        ("word", 7, 64),
        ("half a word", 5, 32),
        ("one bit", 5, 1),
        ("words", 6, 130),
        ("bit more", 3, 65),
        ("no row", 0, 64),
        ("one row", 1, 48),
        ("block less", 1023, 64),
        ("block", 1024, 64),
        ("block more", 1025, 64),
    ):
        yield Case(name, partial(_arguments, rows, bits), user=("x",), out=("user",), fixed=("x", "planes"))


def _arguments(rows: int, bits: int, generator: Generator) -> dict[str, Any]:
    draw = partial(torch.randint, -4, 5, generator=generator, dtype=torch.float64)
    return {"x": draw((rows, 6)), "planes": draw((6, bits))}
