"""Cross-entropy over a whole catalogue in chunks of rows: all logits are never held, the gradient is ready with the mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from userec.kernel.cpu.chunked_logits import Chunks, Gradients, empty, keep_gradients, losses_of, one_dtype, scaled, slopes
from userec.kernel.dtypes import wide
from userec.kernel.reference.linear_cross_entropy import check


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, reduction: str = "none") -> Tensor:
    """As the reference. `mean` computes the gradient in forward (the Liger scheme): one GEMM pass fewer than `none`.

    Bfloat16 is computed in float32, and under autocast so is the result: a loss keeps its digits."""
    check("linear_cross_entropy", x, weight, bias, target, reduction)
    x, weight, bias = one_dtype(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        if reduction == "mean":
            needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
            return _mean(x, weight, bias, target, needs_grad)[0]
        return _each(x, weight, bias, target)


@custom_op("userec::cpu_linear_cross_entropy", mutates_args=())
def _each(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    chunks = Chunks(wide(x), wide(weight), None if bias is None else wide(bias))
    out = x.new_empty(len(x))
    for start in chunks.starts():
        logits = chunks.logits(start)
        out[start : start + len(logits)] = losses_of(logits, target[start : start + len(logits)])[0]
    return out


@custom_op("userec::cpu_linear_cross_entropy_backward", mutates_args=())
def _each_backward(
    upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    chunks = Chunks(wide(x), wide(weight), None if bias is None else wide(bias))
    gradients = Gradients(chunks.x, chunks.weight, chunks.bias)
    for start in chunks.starts():
        logits = chunks.logits(start)
        rows = slice(start, start + len(logits))
        _, sums = losses_of(logits, target[rows])
        gradients.add(start, slopes(logits, sums, target[rows], wide(upstream[rows, None])))
    return gradients.of(x)


@custom_op("userec::cpu_mean_linear_cross_entropy", mutates_args=())
def _mean(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, needs_grad: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(the mean, its gradients of x, weight and bias: empty where none is needed)."""
    chunks = Chunks(wide(x), wide(weight), None if bias is None else wide(bias))
    gradients = Gradients(chunks.x, chunks.weight, chunks.bias) if needs_grad else None
    upstream = chunks.x.new_full((1, 1), 1.0 / max(len(x), 1))
    total = chunks.x.new_zeros(())
    for start in chunks.starts():
        logits = chunks.logits(start)
        rows = slice(start, start + len(logits))
        losses, sums = losses_of(logits, target[rows])
        total += losses.sum()
        if gradients is not None:
            gradients.add(start, slopes(logits, sums, target[rows], upstream.expand(len(logits), 1)))
    mean = (total * upstream.squeeze()).to(x.dtype)
    return mean, *(gradients.of(x) if gradients is not None else (x.new_empty(0) for _ in range(3)))


@_each.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    return x.new_empty(len(x))


@_each_backward.register_fake
def _(upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, ...]:
    return empty(x, weight, bias)


@_mean.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, needs_grad: bool) -> tuple[Tensor, ...]:
    return x.new_empty(()), *(empty(x, weight, bias) if needs_grad else (x.new_empty(0) for _ in range(3)))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


@torch.autocast("cpu", enabled=False)
def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    dx, weight, bias = _each_backward(upstream, *ctx.saved_tensors)
    return dx, weight, None if ctx.saved_tensors[2] is None else bias, None


_each.register_autograd(_gradients, setup_context=_keep)
_mean.register_autograd(scaled, setup_context=keep_gradients)
