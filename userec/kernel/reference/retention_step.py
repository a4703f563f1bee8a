"""Retention's recurrence, one event a user: what serving does (Sun et al. 2023, equation 6)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from userec.kernel.contract import Case, Cost
from userec.kernel.reference.retention import dtypes, fit_retention


def retention_step(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The state after the event is decay state + k^T v, the result q times that.

    q, k [B, H, D], v [B, H, Dv], decay [H] in (0, 1), state [B, H, D, Dv] -> out [B, H, Dv] and the new state, float32 at least.
    Raises UserError as `retention`."""
    fit_retention(q, k, v, decay, state, len(q))
    dtype, sums = dtypes(q, k, v)
    after = decay.to(sums)[:, None, None] * state.to(sums) + k.to(sums)[..., :, None] * v.to(sums)[..., None, :]
    out = (q.to(sums)[..., None, :] @ after)[..., 0, :]
    return out.to(dtype), after


def cost(arguments: Mapping[str, Any]) -> Cost:
    """A product and a sum to update and two to read each number of the state, which is read and written once."""
    q, v, state = arguments["q"], arguments["v"], arguments["state"]
    return Cost(5.0 * state.numel(), 2.0 * (state.element_size() * state.numel() + q.element_size() * (q.numel() + v.numel())))


def cases() -> Iterable[Case]:
    """No user, one, more than a chunk holds; a state of one number, one of USE's size, a value wider than its key."""
    case = partial(Case, user=("q", "k", "v", "state"), out=("user", "user"), fixed=("decay",))
    for users in (5, 1, 0):
        yield case(f"{users} users", partial(_arguments, users))
    yield case("two chunks", partial(_arguments, 33, keys=64, values=64))
    yield case("one number", partial(_arguments, 3, keys=1, values=1))
    yield case("wide value", partial(_arguments, 3, keys=8, values=24))
    yield case("hardly forgets", partial(_arguments, 3, decay=(1 - 1 / 512, 1 - 1e-6)))


def _arguments(
    users: int,
    generator: Generator,
    keys: int = 16,
    values: int = 8,
    decay: tuple[float, ...] = (1 - 1 / 32, 1 - 1 / 512),
) -> dict[str, Any]:
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    heads = len(decay)
    return {
        "q": draw(users, heads, keys),
        "k": draw(users, heads, keys),
        "v": draw(users, heads, values),
        "decay": torch.tensor(decay, dtype=torch.float64),
        "state": draw(users, heads, keys, values),
    }
