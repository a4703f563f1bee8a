"""Retention in its parallel form, as one reads it: attention whose weights decay with distance (Sun et al. 2023, equation 5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from userec.errors import UserError
from userec.kernel.contract import Case, Cost
from userec.kernel.dtypes import widest_dtype
from userec.kernel.jagged import EDGES, offsets_of, pad, unpad


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
    """o_n = q_n S_n with S_n = decay S_{n-1} + k_n^T v_n; S_{-1} is what a user brings (None: nothing).

    q, k [S, H, D], v [S, H, Dv], decay [H] in (0, 1), offsets [B + 1], state [B, H, D, Dv] -> out [S, H, Dv] and the state after
    each user's last event, float32 at least; a user without events keeps his. No rotation, no 1/sqrt(D), no norm: the model's.
    Raises UserError for shapes that do not fit and for a decay that wants a gradient (it is a buffer: the paper fixes it)."""
    fit_retention(q, k, v, decay, state, len(offsets) - 1)
    dtype, sums = dtypes(q, k, v)
    padded_q, padded_k, padded_v = (pad(x.to(sums), offsets, max_len).transpose(1, 2) for x in (q, k, v))  # [B, H, L, D]
    lengths, place = offsets.long().diff(), torch.arange(max_len, device=q.device)
    apart = place[:, None] - place  # [L, L]
    within = powers(decay, place, sums)[:, apart.clamp(min=0)] * (apart >= 0)  # [H, L, L]
    left = powers(decay, lengths[:, None] - 1 - place, sums)  # [H, B, L]: from the event to the user's last
    out = (padded_q @ padded_k.transpose(2, 3) * within) @ padded_v  # [B, H, L, Dv]
    after = (padded_k * left.transpose(0, 1)[..., None]).transpose(2, 3) @ padded_v  # [B, H, D, Dv]
    if state is not None:
        out = out + powers(decay, place + 1, sums)[..., None] * (padded_q @ state.to(sums))
        after = after + powers(decay, lengths, sums).T[..., None, None] * state
    return unpad(out.transpose(1, 2), offsets, len(q)).to(dtype), after.to(sums)


def powers(decay: Tensor, exponents: Tensor, dtype: torch.dtype) -> Tensor:
    """[H, ...]: decay [H] to each of the whole `exponents` [...], made in float64; what is below 0 counts as 0."""
    return (decay.double().view(-1, *[1] * exponents.dim()) ** exponents.clamp(min=0)).to(dtype)


def dtypes(*tensors: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """(of the result: the widest of the tensors', of sums and states: float32 at least)."""
    found = widest_dtype(*tensors)
    return found, torch.promote_types(found, torch.float32)


def fit_retention(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor | None, users: int) -> None:
    """Raises UserError unless the arguments of `retention` or `retention_step` belong together."""
    heads, width = q.shape[1:]
    want = {
        "k": (k, tuple(q.shape)),
        "v": (v, (len(q), heads, v.shape[-1])),
        "decay": (decay, (heads,)),
        "state": (state, (users, heads, width, v.shape[-1])),
    }
    for name, (x, shape) in want.items():
        if x is not None and tuple(x.shape) != shape:
            raise UserError(f"retention: {name} is {tuple(x.shape)}, but q {tuple(q.shape)} and {users} users want {shape}")
    if decay.requires_grad and torch.is_grad_enabled():
        raise UserError("retention: decay gets no gradient: pass a buffer, or decay.detach()")


def cost(arguments: Mapping[str, Any]) -> Cost:
    """The recurrence: a state updated and read by each event; q, k, v, the result and both states once."""
    q, v, offsets = arguments["q"], arguments["v"], arguments["offsets"]
    size = q.shape[1] * q.shape[2] * v.shape[2]
    return Cost(4.0 * len(q) * size, q.element_size() * (2.0 * (q.numel() + v.numel()) + 2.0 * (len(offsets) - 1) * size))


def cases() -> Iterable[Case]:
    """Every layout of lengths, with a state and without; decays near 0 and near 1; one head; a value as wide as its key."""
    case = partial(Case, event=("q", "k", "v"), user=("state",), out=("event", "user"), fixed=("decay",))
    for name, lengths in EDGES.items():
        yield case(name, partial(_arguments, lengths))
        yield case(f"{name}, no state", partial(_arguments, lengths, brought=False))
    some = EDGES["blocks"]
    yield case("forgets at once", partial(_arguments, some, decay=(1e-3, 1e-30)))
    yield case("hardly forgets", partial(_arguments, some, decay=(1 - 1 / 512, 1 - 1e-6)))
    yield case("one head", partial(_arguments, some, decay=(0.9,)))
    yield case("square state", partial(_arguments, some, values=16))


def _arguments(
    lengths: tuple[int, ...],
    generator: Generator,
    brought: bool = True,
    decay: tuple[float, ...] = (1 - 1 / 32, 1 - 1 / 512),
    values: int = 8,
) -> dict[str, Any]:
    total, heads = sum(lengths), len(decay)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    return {
        "q": draw(total, heads, 16),
        "k": draw(total, heads, 16),
        "v": draw(total, heads, values),
        "decay": torch.tensor(decay, dtype=torch.float64),
        "offsets": offsets_of(lengths),
        "state": draw(len(lengths), heads, 16, values) if brought else None,
        "max_len": max(lengths, default=0),
    }
