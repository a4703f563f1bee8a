"""AUGRU over users sorted by length, so that a step takes real events only; backward makes the gates again, block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.library import custom_op

from userec.kernel.dtypes import wide_dtype
from userec.kernel.jagged import host
from userec.kernel.reference.augru import check

EVENTS: Final = 2048
"""Most events a block of steps: their input products are one GEMM, and their gates stay in a core's cache."""


def augru(
    x: Tensor,
    attention: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    offsets: Tensor,
    state: Tensor | None = None,
    *,
    max_len: int,
    gate: str = "update",
) -> tuple[Tensor, Tensor]:
    """As the reference; for backward only the result is kept. bfloat16 is computed in float32, also under autocast: a step's
    products are too small to gain by it, and the state is a sum over all steps."""
    check(x, attention, weight_ih, weight_hh, bias_ih, bias_hh, offsets, state, gate)
    hidden = weight_hh.shape[1]
    b_ih, b_hh = (x.new_zeros(3 * hidden) if bias is None else bias for bias in (bias_ih, bias_hh))
    start = x.new_zeros(len(offsets) - 1, hidden) if state is None else state
    inputs = (each.to(wide_dtype(x.dtype)) for each in (x, attention, weight_ih, weight_hh, b_ih, b_hh, start))
    with torch.autocast("cpu", enabled=False):
        out, final = _forward(*inputs, offsets, gate == "update")
    return out.to(x.dtype), final.to(x.dtype)


@dataclass(frozen=True)
class _Steps:
    """A run of steps; step i takes the first `counts[i]` of the users sorted by length, the longest first."""

    counts: list[int]
    events: Tensor  # [n] places in the jagged values, step after step
    first: bool

    def __iter__(self) -> Iterator[slice]:
        """Of each step its rows among the n."""
        start = 0
        for count in self.counts:
            yield slice(start, start + count)
            start += count

    def before(self, out: Tensor, start: Tensor) -> Tensor:
        """[n, H]: the states that the steps began with; `out` [S, H], `start` [B, H] sorted."""
        if not self.first:
            return out.index_select(0, self.events - 1)
        count = self.counts[0]
        return torch.cat([start[:count], out.index_select(0, self.events[count:] - 1)])


def _plan(offsets: Tensor, total: int) -> tuple[Tensor, list[_Steps]]:
    """[B] users, the longest first; and all steps in blocks of `EVENTS` events or one step."""
    starts = host(offsets, total)
    lengths = np.diff(starts)
    order = np.argsort(-lengths, kind="stable")
    longest = int(lengths.max(initial=0))
    counts = np.searchsorted(-lengths[order], -np.arange(longest), side="left")  # [T] users longer than t
    ends = np.cumsum(counts)
    plan = []
    low = 0
    while low < longest:
        done = int(ends[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(ends, done + EVENTS, side="right")))
        own = counts[low:high]
        row = np.arange(int(own.sum())) - np.repeat(np.cumsum(own) - own, own)  # [n] which of the sorted users
        events = starts[order][row] + np.repeat(np.arange(low, high), own)
        plan.append(_Steps(own.tolist(), torch.from_numpy(events), low == 0))
        low = high
    return torch.from_numpy(order), plan


def _weights(attention: Tensor, update: bool) -> tuple[Tensor, Tensor]:
    """[n, 1] each, alpha and beta: the share of n in the new state is alpha + beta z with either gate."""
    a = attention[:, None]
    return (a, -a) if update else (torch.ones_like(a), a - 1)


@custom_op("userec::cpu_augru", mutates_args=())
def _forward(
    x: Tensor,
    attention: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    start: Tensor,
    offsets: Tensor,
    update: bool,
) -> tuple[Tensor, Tensor]:
    hidden = weight_hh.shape[1]
    order, plan = _plan(offsets, len(x))
    h = start.index_select(0, order)  # [B, H]
    final = h.clone()
    out = x.new_empty(len(x), hidden)
    for steps in plan:
        given = torch.addmm(bias_ih, x.index_select(0, steps.events), weight_ih.T)  # [n, 3 H]
        alpha, beta = _weights(attention.index_select(0, steps.events), update)
        states = given.new_empty(len(given), hidden)
        for rows in steps:
            h = h[: rows.stop - rows.start]
            own, carried = given[rows], torch.addmm(bias_hh, h, weight_hh.T)  # [b, 3 H]
            gates = own[:, : 2 * hidden].add_(carried[:, : 2 * hidden]).sigmoid_()
            r, z = gates[:, :hidden], gates[:, hidden:]
            n = torch.addcmul(own[:, 2 * hidden :], r, carried[:, 2 * hidden :]).tanh_()
            share = torch.addcmul(alpha[rows], beta[rows], z)
            h = torch.addcmul(h, share, n.sub_(h), out=states[rows])
            final[: len(h)] = h
        out.index_copy_(0, steps.events, states)
    return out, torch.empty_like(final).index_copy_(0, order, final)


@custom_op("userec::cpu_augru_backward", mutates_args=())
def _backward(
    upstream: Tensor,
    upstream_state: Tensor,
    out: Tensor,
    x: Tensor,
    attention: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    start: Tensor,
    offsets: Tensor,
    update: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    hidden = weight_hh.shape[1]
    order, plan = _plan(offsets, len(x))
    begun = start.index_select(0, order)
    dh = upstream_state.index_select(0, order)  # [B, H], of the state after the step at hand
    dx, d_attention = torch.empty_like(x), torch.empty_like(attention)
    d_ih, d_hh, db_ih, db_hh = (torch.zeros_like(each) for each in (weight_ih, weight_hh, bias_ih, bias_hh))
    for steps in reversed(plan):
        own_x, before = x.index_select(0, steps.events), steps.before(out, begun)  # [n, D], [n, H]
        given = torch.addmm(bias_ih, own_x, weight_ih.T)  # [n, 3 H]
        carried = torch.addmm(bias_hh, before, weight_hh.T)
        alpha, beta = _weights(attention.index_select(0, steps.events), update)
        gates = given[:, : 2 * hidden].add_(carried[:, : 2 * hidden]).sigmoid_()
        r, z, inner = gates[:, :hidden], gates[:, hidden:], carried[:, 2 * hidden :]
        n = torch.addcmul(given[:, 2 * hidden :], r, inner).tanh_()
        share = torch.addcmul(alpha, beta, z)
        far = n - before
        to_n = share * (1 - n * n)
        each = torch.stack([to_n * inner * r * (1 - r), far * beta * z * (1 - z), to_n * r], dim=1)  # [n, 3, H]
        keep = 1 - share
        arrived = upstream.index_select(0, steps.events)  # [n, H]
        for rows in reversed(list(steps)):
            users = dh[: rows.stop - rows.start]
            whole = arrived[rows].add_(users)
            own = each[rows].mul_(whole[:, None]).flatten(1)  # [b, 3 H], of the carried sums
            torch.mul(whole, keep[rows], out=users).addmm_(own, weight_hh)
        d_attention[steps.events] = (arrived * far * (1 - z if update else z)).sum(1)
        d_hh.addmm_(each.flatten(1).T, before)
        db_hh += each.sum(0).flatten()
        torch.mul(arrived, to_n, out=each[:, 2])  # of the given sums
        d_ih.addmm_(each.flatten(1).T, own_x)
        db_ih += each.sum(0).flatten()
        dx[steps.events] = each.flatten(1) @ weight_ih
    return dx, d_attention, d_ih, d_hh, db_ih, db_hh, torch.empty_like(dh).index_copy_(0, order, dh)


@_forward.register_fake
def _(x: Tensor, attention: Tensor, weight_ih: Tensor, weight_hh: Tensor, b: Tensor, c: Tensor, start: Tensor, *rest: Any) -> Any:
    return x.new_empty(len(x), weight_hh.shape[1]), torch.empty_like(start, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(upstream: Tensor, upstream_state: Tensor, out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(each) for each in rest[:7])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.update = inputs
    ctx.save_for_backward(output[0], *tensors)


def _gradients(ctx: Any, upstream: Tensor, upstream_state: Tensor) -> tuple[Any, ...]:
    out, *tensors = ctx.saved_tensors
    with torch.autocast("cpu", enabled=False):
        return *_backward(upstream, upstream_state, out, *tensors, ctx.update), None, None


_forward.register_autograd(_gradients, setup_context=_keep)
