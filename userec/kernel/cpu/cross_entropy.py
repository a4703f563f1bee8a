"""Cross-entropy over a whole catalogue in chunks of rows: all logits are never held, the gradient is ready with the mean."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from userec.kernel.contract import No, Request, Yes

CHUNK_ROWS: Final = (256, 512)
"""Fewest and most rows a chunk."""
CHUNK_LOGITS: Final = 2**21
"""Logits that stay in a core's cache: beyond it a large GEMM pays three times over for page faults."""


def supports(request: Request) -> Yes | No:
    """On a CPU, in a dtype that keeps its digits (autocast hands float32 in)."""
    if request.device != "cpu":
        return No(f"device is {request.device}")
    if request.dtype == "float16":
        return No("float16 is slow on a CPU")
    return Yes()


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, reduction: str = "none") -> Tensor:
    """As the reference. `mean` computes the gradient in forward (the Liger scheme): one GEMM pass fewer than `none`."""
    if reduction == "mean":
        needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
        return _Mean.apply(x, weight, bias, target, needs_grad)
    return _PerRow.apply(x, weight, bias, target)


class _Chunks:
    """Chunks of rows and one buffer that all of them fill: [rows, V]."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        fewest, most = CHUNK_ROWS
        self.rows = max(fewest, min(most, CHUNK_LOGITS // len(weight)))
        self.buffer = x.new_empty(min(self.rows, len(x)), len(weight))

    def starts(self) -> range:
        return range(0, len(self.x), self.rows)

    def logits(self, start: int) -> Tensor:
        """[rows, V], valid until the next call."""
        x = self.x[start : start + self.rows]
        out = self.buffer[: len(x)]
        if self.bias is None:
            return torch.mm(x, self.weight.T, out=out)
        return torch.addmm(self.bias, x, self.weight.T, out=out)


class _Gradients:
    """Sums of the gradients over chunks; `add` takes d loss / d logits of one."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.x, self.weight_of = x, weight
        self.dx = torch.empty_like(x)
        self.weight = torch.zeros_like(weight)
        self.bias = None if bias is None else torch.zeros_like(bias)

    def add(self, start: int, dlogits: Tensor) -> None:
        stop = start + len(dlogits)
        torch.mm(dlogits, self.weight_of, out=self.dx[start:stop])
        self.weight.addmm_(dlogits.T, self.x[start:stop])
        if self.bias is not None:
            self.bias += dlogits.sum(0)


def _losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [n]; and sums [n, 1] of what `logits` now holds, its exponentials."""
    logits -= logits.amax(1, keepdim=True)
    picked = logits.gather(1, target[:, None])  # [n, 1]
    sums = logits.exp_().sum(1, keepdim=True)  # [n, 1]
    return (sums.log() - picked).squeeze(1), sums


def _dlogits(exponentials: Tensor, sums: Tensor, target: Tensor, upstream: Tensor) -> Tensor:
    """upstream [n, 1] * (softmax - one hot), in place of `exponentials`."""
    return exponentials.mul_(upstream / sums).scatter_add_(1, target[:, None], -upstream)


class _PerRow(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, bias, target)
        chunks = _Chunks(x, weight, bias)
        out = x.new_empty(len(x))
        for start in chunks.starts():
            logits = chunks.logits(start)
            out[start : start + len(logits)] = _losses(logits, target[start : start + len(logits)])[0]
        return out

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, bias, target = ctx.saved_tensors
        chunks, gradients = _Chunks(x, weight, bias), _Gradients(x, weight, bias)
        for start in chunks.starts():
            logits = chunks.logits(start)
            rows = slice(start, start + len(logits))
            _, sums = _losses(logits, target[rows])
            gradients.add(start, _dlogits(logits, sums, target[rows], upstream[rows, None]))
        return gradients.dx, gradients.weight, gradients.bias, None


class _Mean(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.float32)
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, needs_grad: bool) -> Tensor:
        chunks = _Chunks(x, weight, bias)
        gradients = _Gradients(x, weight, bias) if needs_grad else None
        upstream = x.new_full((1, 1), 1.0 / max(len(x), 1))
        total = x.new_zeros(())
        for start in chunks.starts():
            logits = chunks.logits(start)
            rows = slice(start, start + len(logits))
            losses, sums = _losses(logits, target[rows])
            total += losses.sum()
            if gradients is not None:
                gradients.add(start, _dlogits(logits, sums, target[rows], upstream.expand(len(logits), 1)))
        if gradients is not None:
            ctx.save_for_backward(gradients.dx, gradients.weight, gradients.bias)
        return total * upstream.squeeze()

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dx, weight, bias = ctx.saved_tensors
        return upstream * dx, upstream * weight, None if bias is None else upstream * bias, None, None
