"""What the cross-entropies of logits made chunk by chunk share: chunks, sums of gradients, and a gradient ready with the mean."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.library import custom_op

from userec.kernel.cpu.products import large_products
from userec.kernel.dtypes import wide, widest

CHUNK_ROWS: Final = (256, 512)
"""Fewest and most rows a chunk."""
CHUNK_LOGITS: Final = 2**21
"""Logits that stay in a core's cache: beyond it a large GEMM pays three times over for page faults."""


def one_dtype(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """They in the widest of their dtypes, under autocast float32 at least."""
    given = (x, weight) if bias is None else (x, weight, bias)
    found = widest(*(wide(each) for each in given) if torch.is_autocast_enabled("cpu") else given)
    return found[0], found[1], None if bias is None else found[2]


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


def empty(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """What `Gradients.of` gives, unfilled."""
    return x.new_empty(x.shape), x.new_empty(weight.shape), x.new_empty(0 if bias is None else len(bias))


def keep_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Of an op of x, weight, bias, ... that gives (the mean, its gradients of the three)."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])
    ctx.has_bias, ctx.others = inputs[2] is not None, len(inputs) - 3


def scaled(ctx: Any, upstream: Tensor | None, *of_gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    """Its backward."""
    if upstream is None:
        return (None,) * (3 + ctx.others)
    dx, weight, bias = _times(upstream, *ctx.saved_tensors)
    return dx, weight, bias if ctx.has_bias else None, *[None] * ctx.others


@custom_op("userec::cpu_scaled_gradients", mutates_args=())
def _times(upstream: Tensor, dx: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An op without a backward, so that a second derivative raises: the gradients are numbers, nothing leads back from them."""
    return upstream * dx, upstream * weight, upstream * bias


@_times.register_fake
def _(upstream: Tensor, *gradients: Tensor) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(each) for each in gradients)
