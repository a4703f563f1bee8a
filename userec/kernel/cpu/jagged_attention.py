"""Softmax attention within each user, in buckets of like length, on torch's flash path for CPU: no [L, L] weights are held.

The flash kernels are called by their own names, for two reasons: where float32 products are set to `medium`, they hand each of
their many small products to oneDNN and become several times slower, so the setting is put aside while they run, in backward too;
and what they keep for backward stays jagged."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from userec.errors import UserError
from userec.kernel.cpu.products import small_products
from userec.kernel.jagged import Bucket, buckets, gathered
from userec.kernel.reference.jagged_attention import fitting

aten: Final = torch.ops.aten


def jagged_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, max_len: int, causal: bool, dropout_p: float = 0.0
) -> Tensor:
    """As the reference, but without dropout, which flash attention has none of on a CPU: UserError."""
    if dropout_p:
        raise UserError("jagged_attention: flash attention on a CPU has no dropout; the provider torch has")
    q, k, v = fitting(q, k, v)
    width = max(q.shape[2], v.shape[2])  # the flash kernels want one width, and its axis dense
    out, _ = _forward(*(_widened(x, width) for x in (q, k, v)), offsets, causal, 1 / math.sqrt(q.shape[2]))
    return out[..., : v.shape[2]]


def _widened(x: Tensor, width: int) -> Tensor:
    if x.shape[-1] < width:
        return F.pad(x, (0, width - x.shape[-1]))
    return x if x.stride(-1) == 1 else x.contiguous()


def _key_mask(bucket: Bucket, like: Tensor, causal: bool) -> Tensor | None:
    """[b, 1, 1, L], -inf at padding. Padding is on the right: a causal query never sees it, and full rows have none."""
    if causal or bucket.slot is None:
        return None
    mask = like.new_full((len(bucket.rows) * bucket.length,), -torch.inf)
    return mask.index_fill_(0, bucket.slot, 0).view(-1, 1, 1, bucket.length)


@custom_op("userec::cpu_jagged_attention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """out [S, H, D], and each query's logarithm of its sum of exponentials, [S, H]."""
    found, outs, sums = buckets(offsets), [], []
    for bucket in found:
        own = [bucket.pad(x).transpose(1, 2) for x in (q, k, v)]  # [b, H, L, D]
        with small_products():
            out, summed = aten._scaled_dot_product_flash_attention_for_cpu(
                *own, 0.0, causal, attn_mask=_key_mask(bucket, q, causal), scale=scale
            )
        outs.append(bucket.pack(out.transpose(1, 2)))
        sums.append(bucket.pack(summed.transpose(1, 2)))
    return gathered(outs, found, q), gathered(sums, found, _sums(q)).contiguous()


@custom_op("userec::cpu_jagged_attention_backward", mutates_args=())
def _backward(
    upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, offsets: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    found = buckets(offsets)
    gradients: tuple[list[Tensor], ...] = ([], [], [])
    for bucket in found:
        own = [bucket.pad(x).transpose(1, 2) for x in (upstream, q, k, v, out, sums)]  # [b, H, L, D], sums [b, H, L]
        with small_products():
            slopes = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *own, 0.0, causal, attn_mask=_key_mask(bucket, q, causal), scale=scale
            )
        for parts, slope in zip(gradients, slopes, strict=True):
            parts.append(bucket.pack(slope.transpose(1, 2)))
    dq, dk, dv = (gathered(parts, found, q) for parts in gradients)
    return dq, dk, dv


def _sums(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), _sums(q)


@_backward.register_fake
def _(upstream: Tensor, q: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, offsets, causal, scale = inputs
    ctx.save_for_backward(*tensors, *output, offsets)
    ctx.mark_non_differentiable(output[1])
    ctx.options = causal, scale


def _gradients(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Any, ...]:
    return *_backward(_widened(upstream, upstream.shape[-1]), *ctx.saved_tensors, *ctx.options), None, None, None


_forward.register_autograd(_gradients, setup_context=_keep)
