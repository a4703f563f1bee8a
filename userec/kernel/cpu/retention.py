"""Retention chunk by chunk in buckets of like length: within a chunk the parallel form, between chunks the state; backward makes
weights and states again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.library import custom_op

from userec.kernel.jagged import buckets
from userec.kernel.reference.retention import dtypes, fit_retention, powers

CHUNK: Final = 64
"""Events a chunk at most: its weights grow with the square, what the states cost falls with its inverse."""
GROWTH: Final = 2.0
"""Of a bucket: users leave it when their events end, so that only a chunk's end is padding."""


def retention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    offsets: Tensor,
    state: Tensor | None = None,
    *,
    max_len: int,
) -> tuple[Tensor, Tensor]:
    """As the reference; work and memory grow with the length, not with its square (Sun et al. 2023, equation 7)."""
    fit_retention(q, k, v, decay, state, len(offsets) - 1)
    dtype, sums = dtypes(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return _forward(q.to(dtype), k.to(dtype), v.to(dtype), decay, offsets, None if state is None else state.to(sums))


@dataclass(frozen=True)
class _Chunk:
    """At most c successive events of b users, n = b H rows; decays are float32 at least."""

    rows: slice  # of the bucket's rows: those that still have events
    places: Tensor  # [m] of [S H, .], the events of each row
    slot: Tensor | None  # [m] of [n c, .], where they stand; None = all rows are full
    within: Tensor  # [H, c, c], zeros above the diagonal
    since: Tensor  # [n, c, 1], from the state before the chunk to the event
    left: Tensor  # [n, c, 1], from the event to the last of the row's
    kept: Tensor  # [n, 1, 1], from the state before to the state after

    def take(self, x: Tensor) -> Tensor:
        """[S, H, D], contiguous -> [n, c, D], zeros at padding."""
        own = x.view(-1, x.shape[-1]).index_select(0, self.places).to(self.since.dtype)
        if self.slot is not None:
            own = own.new_zeros(self.since.numel(), x.shape[-1]).index_copy_(0, self.slot, own)
        return own.view(*self.since.shape[:2], x.shape[-1])

    def put(self, found: Tensor, out: Tensor) -> None:
        """[n, c, D] -> its places in [S, H, D]."""
        own = found.flatten(0, 1)
        own = own if self.slot is None else own.index_select(0, self.slot)
        out.view(-1, out.shape[-1]).index_copy_(0, self.places, own.to(out.dtype))

    def weights(self, x: Tensor, y: Tensor) -> Tensor:
        """x y^T of x, y [n, c, D], decayed: [n, c, c]."""
        found = torch.bmm(x, y.transpose(1, 2))
        found.view(-1, *self.within.shape).mul_(self.within)
        return found

    def update(self, state: Tensor, k: Tensor, v: Tensor) -> None:
        """State [n, D, Dv] -> the state after the chunk's k, v [n, c, .], in place."""
        state.mul_(self.kept).baddbmm_((k * self.left).transpose(1, 2), v)


def _buckets(decay: Tensor, offsets: Tensor, total: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, list[_Chunk]]]:
    """Of each bucket its users [b], shortest first, and their chunks."""
    offsets = offsets.long()
    lengths = offsets.diff()
    for bucket in buckets(offsets, GROWTH, total=total):
        users = bucket.rows[lengths[bucket.rows].argsort(stable=True)]
        yield users, _chunks(decay, offsets[users], lengths[users], dtype)


def _chunks(decay: Tensor, starts: Tensor, lengths: Tensor, dtype: torch.dtype) -> list[_Chunk]:
    """Chunks of equal size; the users begin at `starts` [b] and have `lengths` [b], ascending."""
    longest = int(lengths[-1])
    count = -(-longest // CHUNK)
    size = -(-longest // count)
    heads, place, begin = len(decay), torch.arange(size), torch.arange(count) * size
    table = torch.cat([decay.new_zeros(heads, 1, dtype=dtype), powers(decay, torch.arange(size + 1), dtype)], 1)
    within = table[:, (place[:, None] - place + 1).clamp(min=0)]  # column i + 1 has the decay over i events, column 0 nothing
    since = table[:, 2:].repeat(len(starts), 1)[..., None]  # [b H, c, 1]
    own = (lengths - begin[:, None]).clamp(0, size)  # [chunks, b] events
    left = table[:, (own[..., None] - place).clamp(min=0)].permute(1, 2, 0, 3).contiguous()  # [chunks, b, H, c]
    kept = table[:, own + 1].permute(1, 2, 0).contiguous()  # [chunks, b, H]
    events = (starts + begin[:, None])[..., None, None] + place  # [chunks, b, 1, c]
    places = events * heads + torch.arange(heads)[:, None]  # [chunks, b, H, c]
    first = (own == 0).sum(1).tolist()
    full = (own == size).all(1).tolist()
    chunks = []
    for at in range(count):
        users = slice(first[at], None)
        slot, found = None, places[at, users].flatten()
        if not full[at]:
            slot = (place < own[at, users, None, None]).expand(-1, heads, -1).flatten().nonzero().flatten()
            found = found[slot]
        rows = slice(first[at] * heads, None)
        chunks.append(
            _Chunk(rows, found, slot, within, since[rows], left[at, users].view(-1, size, 1), kept[at, users].view(-1, 1, 1))
        )
    return chunks


@custom_op("userec::cpu_retention", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, offsets: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    out, after = v.new_empty(v.shape), _brought(q, v, offsets, state)
    q, k, v = (x.contiguous() for x in (q, k, v))
    for users, chunks in _buckets(decay, offsets, len(q), after.dtype):
        carried = after[users].flatten(0, 1)  # [b H, D, Dv]
        for chunk in chunks:
            own_q, own_k, own_v = (chunk.take(x) for x in (q, k, v))
            found = torch.bmm(chunk.weights(own_q, own_k), own_v)
            chunk.put(found.baddbmm_(own_q.mul_(chunk.since), carried[chunk.rows]), out)
            chunk.update(carried[chunk.rows], own_k, own_v)
        after[users] = carried.unflatten(0, (len(users), -1))
    return out, after


@custom_op("userec::cpu_retention_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    to_after: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    offsets: Tensor,
    state: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    brought, to_state = _brought(q, v, offsets, state), _brought(q, v, offsets, to_after)
    q, k, v, upstream = (x.contiguous() for x in (q, k, v, upstream))
    for users, chunks in _buckets(decay, offsets, len(q), brought.dtype):
        carried = brought[users].flatten(0, 1)  # [b H, D, Dv]
        before = []  # the state before each chunk
        for chunk in chunks:
            before.append(carried[chunk.rows].clone())
            if chunk is not chunks[-1]:
                chunk.update(carried[chunk.rows], chunk.take(k), chunk.take(v))
        carried = to_state[users].flatten(0, 1)
        for chunk in reversed(chunks):
            own_q, own_k, own_v, own_up = (chunk.take(x) for x in (q, k, v, upstream))
            weights, slopes = chunk.weights(own_q, own_k), chunk.weights(own_up, own_v)
            decayed, to_own = own_up * chunk.since, carried[chunk.rows]
            to_k = torch.bmm(slopes.transpose(1, 2), own_q).baddbmm_(own_v.mul_(chunk.left), to_own.transpose(1, 2))
            chunk.put(to_k, dk)
            chunk.put(torch.bmm(slopes, own_k).baddbmm_(decayed, before.pop().transpose(1, 2)), dq)
            chunk.put(torch.bmm(weights.transpose(1, 2), own_up).baddbmm_(own_k.mul_(chunk.left), to_own), dv)
            to_own.mul_(chunk.kept).baddbmm_(own_q.transpose(1, 2), decayed)
        to_state[users] = carried.unflatten(0, (len(users), -1))
    return dq, dk, dv, to_state


def _brought(q: Tensor, v: Tensor, offsets: Tensor, state: Tensor | None) -> Tensor:
    """[B, H, D, Dv] of our own, float32 at least: what each user brings."""
    if state is not None:
        return state.clone(memory_format=torch.contiguous_format)
    return q.new_zeros(len(offsets) - 1, *q.shape[1:], v.shape[2], dtype=dtypes(q)[1])


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, offsets: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), _brought(q, v, offsets, state)


@_backward.register_fake
def _(upstream: Tensor, to_after: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return *(x.new_empty(x.shape) for x in (q, k, v)), to_after.new_empty(to_after.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


@torch.autocast("cpu", enabled=False)
def _gradients(ctx: Any, upstream: Tensor, to_after: Tensor) -> tuple[Any, ...]:
    dq, dk, dv, to_state = _backward(upstream, to_after, *ctx.saved_tensors)
    return dq, dk, dv, None, None, to_state if ctx.needs_input_grad[5] else None


_forward.register_autograd(_gradients, setup_context=_keep)
