"""What an op is computed in: float32 for bfloat16 where numbers are added up, and one dtype for all where they meet."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32 for bfloat16, every other dtype itself."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def wide(x: Tensor) -> Tensor:
    """`x`, of bfloat16 in float32: products are made of bfloat16, what is added up or goes through a function is not."""
    return x.to(wide_dtype(x.dtype))


def widest_dtype(*tensors: Tensor) -> torch.dtype:
    """The one that holds all of theirs."""
    return reduce(torch.promote_types, (x.dtype for x in tensors))


def widest(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All of them in the widest of their dtypes: an autocast region gives an op mixed ones."""
    dtype = widest_dtype(*tensors)
    return tuple(x.to(dtype) for x in tensors)
