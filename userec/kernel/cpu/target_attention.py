"""Target attention, some rows or targets at a time: their scores stay in a core's cache, and are made again in backward."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from userec.kernel.dtypes import wide, wide_dtype
from userec.kernel.reference import target_attention as reference

CELLS: Final = 2**18
"""Scores (heads x questions x targets x events) held at once: 1 MiB."""

HIGH: Final = 1 if sys.byteorder == "little" else 0
"""Which half of an int64 counts more."""


def target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    allowed: Tensor,
    context: Tensor | None = None,
    *,
    keep: int | None = None,
) -> Tensor:
    """As the reference; of all scores nothing is kept for backward but which events were. The few scores of a short history, all
    of whose events are kept, are not worth that: there it is the reference itself."""
    reference.check_target(q, k, v, bias, allowed, context, keep)
    if keep is not None and keep >= k.shape[2]:
        keep = None
    if keep is None and bias.numel() * q.shape[3] <= CELLS:
        return reference.target_attention(q, k, v, bias, allowed, context)
    with torch.autocast("cpu", enabled=False):
        return _forward(q, k, v, bias, allowed, context, keep or 0)[0]


@custom_op("userec::cpu_target_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, allowed: Tensor, context: Tensor | None, keep: int
) -> tuple[Tensor, Tensor]:
    """(out [B, Q, C, H, dv + W], kept [B, Q, C, L], or [0] where `keep` is 0, all)."""
    out, kept = _results(q, k, v, allowed, context, keep)
    dim, heads = v.shape[-1], k.shape[1]
    for rows, targets in _chunks(q, k, allowed):
        alpha = _relevance(_of(q, rows, targets), _own(k, rows), bias[rows])
        seen = allowed[rows].unsqueeze(2)  # [b, Q, 1, L]
        if keep:
            seen = kept[rows, :, targets] = _select(alpha, seen, keep)
        weights = _softmax(alpha, seen, allowed[rows])  # [b, H, Q, c, L]
        own = (weights.flatten(2, 3) @ _own(v, rows)).unflatten(2, weights.shape[2:4])  # [b, H, Q, c, dv]
        out[rows, :, targets, :, :dim] = own.permute(0, 2, 3, 1, 4)
        if context is not None:
            shared = weights.transpose(1, 2).flatten(2, 3) @ _own(context, rows)  # [b, Q, H * c, W]
            out[rows, :, targets, :, dim:] = shared.unflatten(2, (heads, weights.shape[3])).transpose(2, 3)
    return out, kept


@custom_op("userec::cpu_target_attention_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    allowed: Tensor,
    context: Tensor | None,
    kept: Tensor,
    keep: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, bias, context ([0] where there is none), bfloat16's in float32."""
    dq, dk, dv, dbias, dcontext = _sums(q, k, v, bias, context)
    dim, scale = v.shape[-1], k.shape[-1] ** -0.5
    for rows, targets in _chunks(q, k, allowed):
        own_q, own_k, up = _of(q, rows, targets), _own(k, rows), wide(upstream[rows, :, targets])
        alpha = _relevance(own_q, own_k, bias[rows])
        seen = kept[rows, :, targets] if keep else allowed[rows].unsqueeze(2)
        weights = _softmax(alpha, seen, allowed[rows])  # [b, H, Q, c, L]
        up_v = up[..., :dim].permute(0, 3, 1, 2, 4).flatten(2, 3)  # [b, H, Q * c, dv]
        slope = (up_v @ _own(v, rows).transpose(2, 3)).view(weights.shape)  # of weights
        _add(dv[rows], weights.flatten(2, 3), up_v)
        if context is not None:
            up_c = up[..., dim:].transpose(2, 3).flatten(2, 3)  # [b, Q, H * c, W]
            shared = weights.transpose(1, 2)  # [b, Q, H, c, L]
            slope += (up_c @ _own(context, rows).transpose(2, 3)).view(shared.shape).transpose(1, 2)
            _add(dcontext[rows], shared.flatten(2, 3), up_c)
        slope.mul_(weights)
        slope.addcmul_(weights, slope.sum(-1, keepdim=True), value=-1)  # of alpha
        dbias[rows] += slope.sum(3)
        if q.shape[1] == 1:
            slope = slope.sum(2, keepdim=True)
        flat = slope.flatten(2, 3)  # [b, H, Q|1 * c, L]
        _add(dk[rows], flat, (_by_head(own_q) * scale).expand(len(flat), -1, -1, -1))
        to_q = (flat @ own_k).mul_(scale).unflatten(2, slope.shape[2:4]).transpose(1, 2)  # [b, Q|1, H, c, d]
        if len(q) == 1:
            dq[:, :, :, targets] += to_q.sum(0, keepdim=True)
        else:
            dq[rows, :, :, targets] += to_q
    return dq, dk, dv, dbias, dcontext


def _chunks(q: Tensor, k: Tensor, allowed: Tensor) -> Iterator[tuple[slice, slice]]:
    """(rows, targets): as many rows as `CELLS` allow, else one and some of its targets."""
    rows, questions, length = allowed.shape
    count = q.shape[3]
    each = max(k.shape[1] * questions * length, 1)  # cells of a target
    together = max(CELLS // max(each * count, 1), 1)
    step = max(min(CELLS // each, count), 1)
    for row in range(0, rows, together):
        for target in range(0, count, step):
            yield slice(row, row + together), slice(target, target + step)


def _of(q: Tensor, rows: slice, targets: slice) -> Tensor:
    """The targets' q [b|1, Q|1, H, c, d]."""
    return wide((q if len(q) == 1 else q[rows])[:, :, :, targets])


def _own(x: Tensor, rows: slice) -> Tensor:
    """Of events: [b, ...], contiguous, so that no product copies it."""
    return wide(x[rows]).contiguous()


def _add(sums: Tensor, weights: Tensor, values: Tensor) -> None:
    """To sums [b, n, L, w] the products of weights [b, n, t, L], transposed, and values [b, n, t, w]."""
    sums.flatten(0, 1).baddbmm_(weights.flatten(0, 1).transpose(1, 2), values.flatten(0, 1))


def _by_head(q: Tensor) -> Tensor:
    """[b|1, Q|1, H, c, d] -> [b|1, H, Q|1 * c, d]."""
    return q.transpose(1, 2).flatten(2, 3)


def _relevance(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """alpha [b, H, Q, c, L], fresh."""
    alpha = _by_head(q * k.shape[-1] ** -0.5) @ k.transpose(2, 3)  # [b, H, Q|1 * c, L]
    alpha = alpha.view(*bias.shape[:2], q.shape[1], q.shape[3], -1)
    bias = wide(bias).unsqueeze(3)
    return alpha.add_(bias) if alpha.shape[2] == bias.shape[2] else alpha + bias


def _softmax(alpha: Tensor, seen: Tensor, allowed: Tensor) -> Tensor:
    """Of alpha [b, H, Q, c, L] over the events `seen` [b, Q, c|1, L], zeros where none is `allowed`; alpha is overwritten."""
    never = torch.zeros(seen.shape, dtype=alpha.dtype).masked_fill_(~seen, torch.finfo(alpha.dtype).min / 2)
    weights = alpha.add_(never.unsqueeze(1)).softmax(-1)  # to add is seven times as fast as to fill, but NaN and inf outlive it
    if not bool(weights.sum().isfinite()):
        weights = alpha.masked_fill_(~seen.unsqueeze(1), torch.finfo(alpha.dtype).min).softmax(-1)
    some = allowed.any(-1)[:, None, :, None, None]
    return weights if bool(some.all()) else weights.mul_(some)


def _select(alpha: Tensor, allowed: Tensor, keep: int) -> Tensor:
    """Stage one: alpha [b, H, Q, c, L], allowed [b, Q, 1, L] -> kept [b, Q, c, L] bool. The heads' lists are read in turn."""
    places = _best(torch.where(allowed.unsqueeze(1), alpha, -torch.inf), keep)  # [b, H, Q, c, keep]
    heads, length = alpha.shape[1], alpha.shape[-1]
    order = places.transpose(0, 2, 3, 4, 1).reshape(-1, keep * heads)  # [n, keep * H]: as they are met
    cells = order + length * np.arange(len(order))[:, None]
    turns = np.arange(keep * heads, dtype=np.int32)
    taken = np.full(len(order) * length, len(turns), np.int32)  # [n * L]: the turn at which an event is first met
    np.minimum.at(taken, cells.ravel(), np.broadcast_to(turns, order.shape).ravel())
    new = taken[cells] == turns
    enough = (new.cumsum(-1, dtype=np.int32) < keep).sum(-1, keepdims=True, dtype=np.int32)  # the turn of the last event kept
    kept = taken.reshape(-1, length) <= np.minimum(enough, len(turns) - 1)
    return torch.from_numpy(kept).view(*alpha.shape[:1], *alpha.shape[2:]) & allowed


def _best(scores: Tensor, keep: int) -> np.ndarray[Any, Any]:
    """As the reference's `ranked` [..., keep]. A float32 and its place make one whole number, ordered as they are, ties included;
    numpy sorts such numbers four times as fast as torch finds the highest with their places."""
    if scores.dtype != torch.float32:
        return reference.ranked(scores, keep).numpy()
    bits = scores.numpy().view(np.int32)
    keys = np.empty((*bits.shape, 2), np.int32)
    np.bitwise_xor(bits, (bits >> 31) & 0x7FFFFFFF, out=keys[..., HIGH])  # ascending as the float
    keys[..., 1 - HIGH] = np.arange(bits.shape[-1], dtype=np.int32)
    whole = keys.view(np.int64)[..., 0]
    whole.partition(bits.shape[-1] - keep, axis=-1)
    best = np.sort(whole[..., -keep:], axis=-1)[..., ::-1]
    return best & 0xFFFFFFFF


def _results(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, context: Tensor | None, keep: int) -> tuple[Tensor, Tensor]:
    shape = (*allowed.shape[:2], q.shape[3])  # [B, Q, C]
    width = v.shape[-1] + (0 if context is None else context.shape[-1])
    kept = allowed.new_empty((*shape, allowed.shape[2]) if keep else (0,))
    return v.new_empty(*shape, k.shape[1], width), kept


def _sums(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
    sums = (x.new_zeros(x.shape, dtype=wide_dtype(x.dtype)) for x in (q, k, v, bias))
    return *sums, q.new_zeros(0) if context is None else wide(context).new_zeros(context.shape)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, allowed: Tensor, context: Tensor | None, keep: int) -> tuple[Tensor, Tensor]:
    return _results(q, k, v, allowed, context, keep)


@_backward.register_fake
def _(
    upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, allowed: Tensor, context: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    return _sums(q, k, v, bias, context)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6], output[1])
    ctx.keep = inputs[6]


@torch.autocast("cpu", enabled=False)
def _gradients(ctx: Any, upstream: Tensor, of_kept: Tensor | None) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    *found, of_context = _backward(upstream, *tensors, ctx.keep)
    q, k, v, bias = (gradient.to(x.dtype) for gradient, x in zip(found, tensors, strict=False))
    context = tensors[5]
    return q, k, v, bias, None, None if context is None else of_context.to(context.dtype), None


_forward.register_autograd(_gradients, setup_context=_keep)
