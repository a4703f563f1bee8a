"""HSTU's attention in buckets of like length, block by block below the diagonal; scores and biases are made again in backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.library import custom_op
from torch.nn import functional as F

from userec.kernel.dtypes import wide, widest
from userec.kernel.jagged import Bucket, buckets
from userec.kernel.reference.hstu_attention import check_hstu

GROWTH: Final = 1.8
"""Few buckets of small blocks cost less here than what they pad."""
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
    check_hstu(q, k, v, position_table, time_table, time, asked, edges)
    q, k, v = widest(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return _forward(q, k, v, offsets, position_table, time_table, time, asked, edges, divisor, scale)


@dataclass(frozen=True)
class _Block:
    """Queries [start, stop) of a bucket against the keys before `stop`."""

    start: int
    stop: int
    scores: Tensor  # [b, H, r, stop], biases added
    gap_row: Tensor | None  # [b, r, stop] int32, row of the time table
    below: Tensor  # [r, r]: 1 on and below the diagonal, 0 above

    def causal(self, x: Tensor) -> Tensor:
        """`x` [b, H, r, stop] with zeros above the diagonal, in place: only its last r columns reach there."""
        x[..., self.start :].mul_(self.below)
        return x


class _Call:
    """The arguments that all buckets share, and the tensors [S, H, *] that each takes its rows of."""

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        offsets: Tensor,
        position_table: Tensor | None,
        time_table: Tensor | None,
        time: Tensor | None,
        asked: Tensor | None,
        edges: Tensor | None,
        scale: float,
    ) -> None:
        self.widths = [x.shape[2] for x in tensors]
        self.rows = torch.cat(tensors, 2)  # [S, H, sum of widths]: one gather a bucket
        self.scale = scale
        self.buckets = buckets(offsets, GROWTH, total=len(self.rows))
        self.longest = self.buckets[-1].length if self.buckets else 0
        self.below = wide(self.rows).new_ones(BLOCK, BLOCK).tril_()
        self.near: Tensor | None = None  # [H|1, 2 longest]: the bias of distances longest - 1 .. 0, then the future
        if position_table is not None:
            near = position_table[torch.arange(self.longest - 1, -1, -1).clamp(max=len(position_table) - 1)].T
            self.near = torch.cat([near, torch.zeros_like(near)], 1)
        self.timed: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        if time_table is not None and time is not None and asked is not None and edges is not None:
            self.timed = time_table, time, asked, edges.contiguous()

    def take(self, bucket: Bucket) -> list[Tensor]:
        """Each tensor's rows of a bucket: [b, H, L, *], at padding the user's last event again: no real query sees it there."""
        heads, width = self.rows.shape[1:]
        places = bucket.sources.view(-1, 1, bucket.length) * heads + torch.arange(heads)[:, None]  # [b, H, L]
        own = self.rows.view(-1, width).index_select(0, places.flatten())
        return list(own.view(*places.shape, width).split(self.widths, 3))

    def blocks(self, bucket: Bucket, q: Tensor, k: Tensor) -> Iterator[_Block]:
        """Scores of q, k [b, H, L, D], block by block."""
        timed = None
        if self.timed is not None:
            table, time, asked, edges = self.timed
            timed = table, bucket.pad(time), bucket.pad(asked), edges  # times [b, L]
        for start in range(0, bucket.length, BLOCK):
            stop = min(start + BLOCK, bucket.length)
            scores = wide(q[:, :, start:stop] @ k[:, :, :stop].transpose(2, 3)) * self.scale  # [b, H, r, stop]
            if self.near is not None:
                last = self.longest - 1
                scores += self.near.unfold(1, stop, 1).index_select(1, torch.arange(last - start, last - stop, -1))
            which = None
            if timed is not None:
                table, time, asked, edges = timed
                gap = asked[:, start:stop, None] - time[:, None, :stop]  # [b, r, stop]
                which = torch.bucketize(gap, edges, right=True, out_int32=True)
                for head, column in enumerate(table.unbind(1)):
                    own = scores if table.shape[1] == 1 else scores[:, head : head + 1]
                    own += column.index_select(0, which.flatten()).view(which.shape)[:, None]
            yield _Block(start, stop, scores, which, self.below[: stop - start, : stop - start])


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
    call = _Call((q, k, v), offsets, position_table, time_table, time, asked, edges, scale)
    out = v.new_empty(v.shape)
    for bucket in call.buckets:
        own_q, own_k, own_v = call.take(bucket)
        found = own_v.new_empty(own_v.shape)
        for block in call.blocks(bucket, own_q, own_k):
            weights = block.causal(F.silu(block.scores, inplace=True))
            found[:, :, block.start : block.stop] = weights.to(v.dtype) @ own_v[:, :, : block.stop]
        out.index_copy_(0, bucket.events, bucket.pack(found.transpose(1, 2)))
    return out.div_(divisor)


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
    call = _Call((q, k, v, upstream), offsets, position_table, time_table, time, asked, edges, scale)
    gradients = torch.empty_like(call.rows[..., : -v.shape[2]])  # of q, k and v, side by side
    d_position, d_time = (_sums(table, q) for table in (position_table, time_table))
    for bucket in call.buckets:
        own_q, own_k, own_v, own_up = call.take(bucket)
        own_up[bucket.gaps // bucket.length, :, bucket.gaps % bucket.length] = 0
        found = wide(own_q).new_zeros(*own_q.shape[:3], gradients.shape[2])
        to_q, to_k, to_v = found.split(call.widths[:3], 3)
        for block in call.blocks(bucket, own_q, own_k):
            rows, columns = slice(block.start, block.stop), slice(0, block.stop)
            weights = block.causal(F.silu(block.scores).div_(divisor))
            to_v[:, :, columns] += weights.transpose(2, 3).to(v.dtype) @ own_up[:, :, rows]
            slope = wide(own_up[:, :, rows] @ own_v[:, :, columns].transpose(2, 3))  # of the weights, then of the scores
            slope = block.causal(torch.ops.aten.silu_backward(slope, block.scores).div_(divisor))
            narrow = slope.to(q.dtype)
            to_q[:, :, rows] = narrow @ own_k[:, :, columns]
            to_k[:, :, columns] += narrow.transpose(2, 3) @ own_q[:, :, rows]
            if position_table is not None:
                apart = torch.arange(block.start, block.stop)[:, None] - torch.arange(block.stop)
                summed = slope.sum(0 if position_table.shape[1] > 1 else (0, 1)).view(-1, *apart.shape)  # [H|1, r, stop]
                _add(d_position, apart.clamp(0, len(position_table) - 1), summed)
            if time_table is not None and block.gap_row is not None:
                _add(d_time, block.gap_row, slope.transpose(0, 1) if time_table.shape[1] > 1 else slope.sum(1)[None])
        to_q.mul_(scale)
        to_k.mul_(scale)
        gradients[bucket.events] = bucket.pack(found.transpose(1, 2)).to(gradients.dtype)
    dq, dk, dv = (x.clone(memory_format=torch.contiguous_format) for x in gradients.split(call.widths[:3], 2))
    return dq, dk, dv, d_position, d_time


def _sums(table: Tensor | None, like: Tensor) -> Tensor:
    return like.new_zeros(0) if table is None else torch.zeros_like(wide(table))


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


@torch.autocast("cpu", enabled=False)
def _gradients(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    dq, dk, dv, *sums = _backward(upstream, *tensors, *ctx.numbers)
    tables = [None if table is None else found.to(table.dtype) for table, found in zip(tensors[4:6], sums, strict=True)]
    return dq, dk, dv, None, *tables, *[None] * 5


_forward.register_autograd(_gradients, setup_context=_keep)
