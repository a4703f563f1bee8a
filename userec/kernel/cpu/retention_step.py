"""Retention's recurrence over some users at a time, so that their states are read from memory once and written once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.library import custom_op

from userec.kernel.reference.retention import dtypes, fit_retention

CHUNK: Final = 1 << 18
"""Numbers of state a chunk, one user at least: 1 MiB of float32 stays in a core's cache between the passes."""


def retention_step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """As the reference."""
    fit_retention(q, k, v, decay, state, len(q))
    dtype, sums = dtypes(q, k, v)
    with torch.autocast("cpu", enabled=False):
        out, after = _forward(*(x.to(sums) for x in (q, k, v, decay, state)))
    return out.to(dtype), after


def _chunks(state: Tensor) -> Iterator[slice]:
    """Of users."""
    step = max(1, CHUNK // max(1, state[:1].numel()))
    return (slice(start, start + step) for start in range(0, len(state), step))


@custom_op("userec::cpu_retention_step", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    out, after = v.new_empty(v.shape), state.new_empty(state.shape)
    for users in _chunks(state):
        new = torch.mul(state[users], decay[:, None, None], out=after[users])
        new.addcmul_(k[users, :, :, None], v[users, :, None, :])
        out[users] = (q[users, :, None, :] @ new).squeeze(2)
    return out, after


@custom_op("userec::cpu_retention_step_backward", mutates_args=())
def _backward(
    upstream: Tensor, to_after: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, after: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, to_state = (x.new_empty(x.shape) for x in (q, k, v, after))
    for users in _chunks(after):
        slope = torch.addcmul(to_after[users], q[users, :, :, None], upstream[users, :, None, :], out=to_state[users])
        dq[users] = (after[users] @ upstream[users, :, :, None]).squeeze(3)
        dk[users] = (slope @ v[users, :, :, None]).squeeze(3)
        dv[users] = (k[users, :, None, :] @ slope).squeeze(2)
        slope.mul_(decay[:, None, None])
    return dq, dk, dv, to_state


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), state.new_empty(state.shape)


@_backward.register_fake
def _(upstream: Tensor, to_after: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    q, k, v, _, after = tensors
    return tuple(x.new_empty(x.shape) for x in (q, k, v, after))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], output[1])


@torch.autocast("cpu", enabled=False)
def _gradients(ctx: Any, upstream: Tensor, to_after: Tensor) -> tuple[Any, ...]:
    dq, dk, dv, to_state = _backward(upstream, to_after, *ctx.saved_tensors)
    return dq, dk, dv, None, to_state


_forward.register_autograd(_gradients, setup_context=_keep)
