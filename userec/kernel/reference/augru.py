"""A GRU whose update is scaled by attention, as one reads it (Zhou et al. 2019, DIEN, equations 2 to 5 and section 4.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Generator, Tensor

from userec.errors import UserError, unknown
from userec.kernel.contract import Case, Cost
from userec.kernel.jagged import EDGES, offsets_of, pad, unpad

GATES: Final = ("update", "keep")


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
    """x [S, D], attention [S] in [0, 1], offsets [B + 1], start state [B, H] (None: zeros) -> (out [S, H], state [B, H]).

    Weights and biases lie as `torch.nn.GRU`'s: weight_ih [3 H, D], weight_hh [3 H, H], biases [3 H] or None, stacked r, z, n:
    r, z = sigmoid(.), n = tanh(W_n x + b_n + r (U_n h + c_n)). torch's z KEEPS: h' = z h + (1 - z) n; the paper's gate u = 1 - z
    UPDATES: h' = (1 - u) h + u n. Attention a changes one of them, and the paper and its authors' code differ in which:
    `gate="update"` (the paper): a u for u, so a = 1 is `nn.GRU`, a = 0 leaves the state as it was.
    `gate="keep"` (the code): (1 - a) z for z, so a = 0 is `nn.GRU`, a = 1 replaces the state by n.
    A user without events keeps his state. Raises UserError for an unknown gate, and for shapes that do not fit."""
    check(x, attention, weight_ih, weight_hh, bias_ih, bias_hh, offsets, state, gate)
    users, hidden = len(offsets) - 1, weight_hh.shape[1]
    weight_ih, weight_hh = weight_ih.to(x.dtype), weight_hh.to(x.dtype)
    b_ih, b_hh = (x.new_zeros(3 * hidden) if bias is None else bias.to(x.dtype) for bias in (bias_ih, bias_hh))
    h = x.new_zeros(users, hidden) if state is None else state.to(x.dtype)  # [B, H]
    padded = pad(x, offsets, max_len)  # [B, L, D]
    weighted = pad(attention.to(x.dtype), offsets, max_len)  # [B, L]
    real = torch.arange(max_len, device=x.device) < offsets.diff()[:, None]  # [B, L]
    outs = [x.new_zeros(users, 0, hidden)]
    for t in range(max_len):
        r_x, z_x, n_x = (padded[:, t] @ weight_ih.T + b_ih).chunk(3, dim=1)  # [B, H] each
        r_h, z_h, n_h = (h @ weight_hh.T + b_hh).chunk(3, dim=1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * n_h)
        a = weighted[:, t, None]  # [B, 1]
        if gate == "update":
            u = a * (1 - z)
            new = (1 - u) * h + u * n
        else:
            g = (1 - a) * z
            new = g * h + (1 - g) * n
        h = torch.where(real[:, t, None], new, h)
        outs.append(h[:, None])
    return unpad(torch.cat(outs, dim=1), offsets, len(x)), h.clone()


def check(
    x: Tensor,
    attention: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    offsets: Tensor,
    state: Tensor | None,
    gate: str,
) -> None:
    """Raises UserError for an unknown gate, or where a shape is not what x [S, D] and weight_hh [3 H, H] ask for."""
    if gate not in GATES:
        raise unknown("gate", gate, GATES, "augru")
    events, width, hidden = len(x), x.shape[-1], weight_hh.shape[-1]
    wanted = {
        "attention": (attention, (events,)),
        "weight_ih": (weight_ih, (3 * hidden, width)),
        "weight_hh": (weight_hh, (3 * hidden, hidden)),
        "bias_ih": (bias_ih, (3 * hidden,)),
        "bias_hh": (bias_hh, (3 * hidden,)),
        "state": (state, (len(offsets) - 1, hidden)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise UserError(
                f"augru: {name} has shape {tuple(tensor.shape)}; x {tuple(x.shape)}, weight_hh {tuple(weight_hh.shape)} and "
                f"{len(offsets) - 1} users ask for {shape}"
            )


def cost(arguments: Mapping[str, Any]) -> Cost:
    """Two products an event; x, the result and the weights once."""
    x, w_ih, w_hh = arguments["x"], arguments["weight_ih"], arguments["weight_hh"]
    touched = x.numel() + len(x) * w_hh.shape[1] + w_ih.numel() + w_hh.numel()
    return Cost(2.0 * len(x) * (w_ih.numel() + w_hh.numel()), x.element_size() * float(touched))


def cases() -> Iterable[Case]:
    """Every layout of lengths from a state given; both gates; no state, no biases; all ones and all zeros of attention."""
    shape = {"event": ("x", "attention"), "user": ("state",), "out": ("event", "user")}
    for name, lengths in EDGES.items():
        yield Case(name, partial(_arguments, lengths), **shape)  # type: ignore[arg-type]
    some = EDGES["edges"]
    yield Case("keep", partial(_arguments, some, gate="keep"), **shape)  # type: ignore[arg-type]
    yield Case("no state", partial(_arguments, some, start=False), **shape)  # type: ignore[arg-type]
    yield Case("no biases", partial(_arguments, some, biased=False, gate="keep"), **shape)  # type: ignore[arg-type]
    yield Case("plain", partial(_arguments, some, level=1.0), **shape)  # type: ignore[arg-type]
    yield Case("frozen", partial(_arguments, some, level=0.0), **shape)  # type: ignore[arg-type]


def _arguments(
    lengths: tuple[int, ...],
    generator: Generator,
    gate: str = "update",
    start: bool = True,
    biased: bool = True,
    level: float | None = None,
    width: int = 12,
    hidden: int = 16,
) -> dict[str, Any]:
    total = sum(lengths)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    drawn = torch.rand(total, generator=generator, dtype=torch.float64)
    return {
        "x": draw(total, width),
        "attention": drawn if level is None else torch.full_like(drawn, level),
        "weight_ih": draw(3 * hidden, width) / width**0.5,
        "weight_hh": draw(3 * hidden, hidden) / hidden**0.5,
        "bias_ih": draw(3 * hidden) if biased else None,
        "bias_hh": draw(3 * hidden) if biased else None,
        "offsets": offsets_of(lengths),
        "state": draw(len(lengths), hidden) if start else None,
        "max_len": max(lengths, default=0),
        "gate": gate,
    }
