"""Cross-entropy over a whole catalogue in chunks of rows: all logits are never held, the gradient is ready with the mean."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.library import custom_op, register_autocast

from userec.kernel.cpu.products import large_products
from userec.kernel.reference.linear_cross_entropy import check

CHUNK_ROWS: Final = (256, 512)
"""Fewest and most rows a chunk."""
CHUNK_LOGITS: Final = 2**21
"""Logits that stay in a core's cache: beyond it a large GEMM pays three times over for page faults."""


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, reduction: str = "none") -> Tensor:
    """As the reference. `mean` computes the gradient in forward (the Liger scheme): one GEMM pass fewer than `none`.

    Bfloat16 is computed in float32, and under autocast so is the result: a loss keeps its digits."""
    check("linear_cross_entropy", x, weight, bias, target, reduction)
    if reduction == "mean":
        needs_grad = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
        return _mean(x, weight, bias, target, needs_grad)[0]
    return _each(x, weight, bias, target)


class Chunks:
    """Chunks of rows and one buffer that all of them fill: [rows, V]."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.x, self.weight, self.bias = x, weight, bias
        fewest, most = CHUNK_ROWS
        self.rows = max(fewest, min(most, CHUNK_LOGITS // max(len(weight), 1)))
        self.buffer = x.new_empty(min(self.rows, len(x)), len(weight))

    def starts(self) -> range:
        """Where each chunk begins."""
        return range(0, len(self.x), self.rows)

    def logits(self, start: int) -> Tensor:
        """[rows, V], valid until the next call."""
        x = self.x[start : start + self.rows]
        out = self.buffer[: len(x)]
        with large_products():
            if self.bias is None:
                return torch.mm(x, self.weight.T, out=out)
            return torch.addmm(self.bias, x, self.weight.T, out=out)


class Gradients:
    """Sums of the gradients over chunks; `add` takes d loss / d logits of one."""

    def __init__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        self.x, self.weight_of = x, weight
        self.dx = torch.empty_like(x)
        self.weight = torch.zeros_like(weight)
        self.bias = None if bias is None else torch.zeros_like(bias)

    def add(self, start: int, dlogits: Tensor) -> None:
        """Those of the rows from `start` on."""
        stop = start + len(dlogits)
        with large_products():
            torch.mm(dlogits, self.weight_of, out=self.dx[start:stop])
            self.weight.addmm_(dlogits.T, self.x[start:stop])
        if self.bias is not None:
            self.bias += dlogits.sum(0)

    def of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, weight and bias (empty without one), in the dtype of `x`."""
        bias = x.new_empty(0) if self.bias is None else self.bias
        return self.dx.to(x.dtype), self.weight.to(x.dtype), bias.to(x.dtype)


def losses_of(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Losses [n]; and sums [n, 1] of what `logits` now holds, its exponentials."""
    logits -= logits.amax(1, keepdim=True)
    picked = logits.gather(1, target[:, None])  # [n, 1]
    sums = logits.exp_().sum(1, keepdim=True)  # [n, 1]
    return (sums.log() - picked).squeeze(1), sums


def slopes(exponentials: Tensor, sums: Tensor, target: Tensor, upstream: Tensor) -> Tensor:
    """upstream [n, 1] * (softmax - one hot), in place of `exponentials`."""
    return exponentials.mul_(upstream / sums).scatter_add_(1, target[:, None], -upstream)


def wide(x: Tensor | None) -> Any:
    """Float32 for bfloat16: so few digits are no sum of 50,000 exponentials."""
    return x.float() if x is not None and x.dtype == torch.bfloat16 else x


@custom_op("userec::cpu_linear_cross_entropy", mutates_args=())
def _each(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    chunks = Chunks(wide(x), wide(weight), wide(bias))
    out = x.new_empty(len(x))
    for start in chunks.starts():
        logits = chunks.logits(start)
        out[start : start + len(logits)] = losses_of(logits, target[start : start + len(logits)])[0]
    return out


@custom_op("userec::cpu_linear_cross_entropy_backward", mutates_args=())
def _each_backward(
    upstream: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    chunks = Chunks(wide(x), wide(weight), wide(bias))
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
    chunks = Chunks(wide(x), wide(weight), wide(bias))
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


def empty(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What `Gradients.of` gives, unfilled."""
    return x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(0 if bias is None else len(bias))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    dx, weight, bias = _each_backward(upstream, *ctx.saved_tensors)
    return dx, weight, None if ctx.saved_tensors[2] is None else bias, None


def _keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.has_bias = inputs[2] is not None


def _scaled(ctx: Any, upstream: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    if upstream is None:
        return (None,) * 5
    dx, weight, bias = ctx.saved_tensors
    return upstream * dx, upstream * weight, upstream * bias if ctx.has_bias else None, None, None


_each.register_autograd(_gradients, setup_context=_keep)
_mean.register_autograd(_scaled, setup_context=_keep_gradients)
for op in (_each, _each_backward, _mean):
    register_autocast(op, "cpu", torch.float32)
