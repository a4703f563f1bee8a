"""HSTU's attention in buckets of like length, block by block below the diagonal; scores and biases are made again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from userec.kernel.jagged import Bucket, buckets

BLOCK: Final = 64
"""Queries a block: what lies above the diagonal is left out, and a block's scores stay in a core's cache."""


def hstu_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    position_table: Tensor | None = None,
    time_table: Tensor | None = None,
    time: Tensor | None = None,
    asked: Tensor | None = None,
    edges: Tensor | None = None,
    *,
    max_len: int,
    divisor: float,
    scale: float = 1.0,
) -> Tensor:
    """As the reference; no [L, L] block outlives a step, nor is one held for all users."""
    return _forward(q, k, v, offsets, position_table, time_table, time, asked, edges, divisor, scale)


@dataclass(frozen=True)
class _Block:
    """Queries [start, stop) of a bucket against the keys before `stop`."""

    start: int
    stop: int
    scores: Tensor  # [b, H, r, stop], biases added
    apart: Tensor  # [r, stop] int64, row of the position table
    bucket: Tensor | None  # [b, r, stop] int32, row of the time table

    def causal(self, x: Tensor) -> Tensor:
        """`x` [b, H, r, stop] with zeros above the diagonal, in place: only its last r columns reach there."""
        x[..., self.start :].tril_()
        return x


@dataclass(frozen=True)
class _Call:
    """The arguments that all buckets share."""

    offsets: Tensor
    position_table: Tensor | None
    time_table: Tensor | None
    time: Tensor | None
    asked: Tensor | None
    edges: Tensor | None
    scale: float

    def blocks(self, bucket: Bucket, q: Tensor, k: Tensor) -> Iterator[_Block]:
        """Scores of q, k [b, H, L, D], block by block."""
        timed = None
        if self.time_table is not None:
            assert self.time is not None
            assert self.asked is not None
            assert self.edges is not None
            timed = self.time_table, bucket.pad(self.time), bucket.pad(self.asked), self.edges.contiguous()  # times [b, L]
        for start in range(0, bucket.length, BLOCK):
            stop = min(start + BLOCK, bucket.length)
            scores = _wide(q[:, :, start:stop] @ k[:, :, :stop].transpose(2, 3)) * self.scale  # [b, H, r, stop]
            apart = torch.arange(start, stop)[:, None] - torch.arange(stop)
            if self.position_table is not None:
                apart = apart.clamp(0, len(self.position_table) - 1)
                scores += self.position_table[apart].permute(2, 0, 1)
            which = None
            if timed is not None:
                table, time, asked, edges = timed
                gap = asked[:, start:stop, None] - time[:, None, :stop]  # [b, r, stop]
                which = torch.bucketize(gap, edges, right=True, out_int32=True)
                for head, column in enumerate(table.unbind(1)):
                    own = scores if table.shape[1] == 1 else scores[:, head : head + 1]
                    own += column.index_select(0, which.flatten()).view(which.shape)[:, None]
            yield _Block(start, stop, scores, apart, which)


@custom_op("userec::cpu_hstu_attention", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    time: Tensor | None,
    asked: Tensor | None,
    edges: Tensor | None,
    divisor: float,
    scale: float,
) -> Tensor:
    call = _Call(offsets, position_table, time_table, time, asked, edges, scale)
    out = v.new_empty(v.shape)
    for bucket in buckets(offsets):
        own_q, own_k, own_v = (bucket.pad(x).transpose(1, 2).contiguous() for x in (q, k, v))  # [b, H, L, D]
        found = torch.empty_like(own_v)
        for block in call.blocks(bucket, own_q, own_k):
            weights = block.causal(F.silu(block.scores, inplace=True))
            found[:, :, block.start : block.stop] = weights.to(v.dtype) @ own_v[:, :, : block.stop]
        out[bucket.events] = bucket.pack(found.transpose(1, 2)) / divisor
    return out


@custom_op("userec::cpu_hstu_attention_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    time: Tensor | None,
    asked: Tensor | None,
    edges: Tensor | None,
    divisor: float,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    call = _Call(offsets, position_table, time_table, time, asked, edges, scale)
    upstream = upstream / divisor
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    d_position, d_time = (_sums(table, q) for table in (position_table, time_table))
    for bucket in buckets(offsets):
        own_q, own_k, own_v, own_up = (bucket.pad(x).transpose(1, 2).contiguous() for x in (q, k, v, upstream))
        to_q, to_k, to_v = torch.empty_like(own_q), *(torch.zeros_like(_wide(x)) for x in (own_k, own_v))
        for block in call.blocks(bucket, own_q, own_k):
            rows, columns = slice(block.start, block.stop), slice(0, block.stop)
            gate = torch.sigmoid(block.scores)
            weights = block.causal(block.scores.mul_(gate))
            to_v[:, :, columns] += weights.transpose(2, 3).to(v.dtype) @ own_up[:, :, rows]
            slope = block.causal(torch.addcmul(gate + weights, weights, gate, value=-1))  # silu' = sigma + silu (1 - sigma)
            slope.mul_(own_up[:, :, rows] @ own_v[:, :, columns].transpose(2, 3))
            narrow = slope.to(q.dtype)
            to_q[:, :, rows] = narrow @ own_k[:, :, columns]
            to_k[:, :, columns] += narrow.transpose(2, 3) @ own_q[:, :, rows]
            if position_table is not None:
                summed = slope.sum(0)  # [H, r, stop]
                _add(d_position, block.apart, summed if position_table.shape[1] > 1 else summed.sum(0, keepdim=True))
            if block.bucket is not None:
                assert time_table is not None
                each = slope if time_table.shape[1] > 1 else slope.sum(1, keepdim=True)  # [b, H|1, r, stop]
                _add(d_time, block.bucket, each.transpose(0, 1))
        for out, found, factor in ((dq, to_q, scale), (dk, to_k, scale), (dv, to_v, 1.0)):
            out[bucket.events] = (bucket.pack(found.transpose(1, 2)) * factor).to(out.dtype)
    return dq, dk, dv, d_position, d_time


def _sums(table: Tensor | None, like: Tensor) -> Tensor:
    return like.new_zeros(0) if table is None else torch.zeros_like(_wide(table))


def _wide(x: Tensor) -> Tensor:
    """Float32 for bfloat16: products are made of bfloat16, what is added up or goes through a function is not."""
    return x.float() if x.dtype == torch.bfloat16 else x


def _add(sums: Tensor, which: Tensor, slopes: Tensor) -> None:
    """Add slopes [H, ...] to the rows `which` [...] of sums [T, H]."""
    for head, own in enumerate(slopes):
        sums[:, head] += torch.bincount(which.flatten(), own.flatten(), minlength=len(sums)).to(sums.dtype)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
    return v.new_empty(v.shape)


@_backward.register_fake
def _(
    upstream: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    return *(torch.empty_like(x) for x in (q, k, v)), *(_sums(table, q) for table in (position_table, time_table))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:9])
    ctx.numbers = inputs[9:]


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    dq, dk, dv, *sums = _backward(upstream, *tensors, *ctx.numbers)
    tables = [None if table is None else found.to(table.dtype) for table, found in zip(tensors[4:6], sums, strict=True)]
    return dq, dk, dv, None, *tables, *[None] * 5


_forward.register_autograd(_gradients, setup_context=_keep)
