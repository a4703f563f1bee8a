"""Dropout whose mask is cheap on a CPU: sixteen random bits a number, where torch draws a uniform float each."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEVELS: Final = 1 << 16


class Dropout(nn.Module):
    """`nn.Dropout` to within 2^-17 of its `p` (2^-16 next to 1), which draws other masks from the same seed. Raises ValueError
    where `p` is not in [0, 1)."""

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout p={p}: expected a share from 0 to below 1")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]: in training each number is zero with probability `p`, the others grow by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        dropped: Tensor = _Drop.apply(x, min(round(self.p * LEVELS), LEVELS - 1))
        return dropped

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int) -> Tensor:
        """Zero with probability levels / 2^16."""
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)  # four numbers' bits each
        kept = bits.view(torch.int16)[: x.numel()].view(x.shape) >= levels - LEVELS // 2
        ctx.save_for_backward(kept)
        ctx.scale = LEVELS / (LEVELS - levels)
        return (x * kept).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """The same mask on the gradient."""
        (kept,) = ctx.saved_tensors
        return (grads[0] * kept).mul_(ctx.scale), None
