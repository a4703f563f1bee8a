"""Softmax attention within each user, as one reads it: O = softmax(Q K^T / sqrt(D)) V (Vaswani et al. 2017, equation 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from userec.errors import UserError
from userec.kernel.contract import Case, Cost
from userec.kernel.dtypes import widest
from userec.kernel.jagged import EDGES, offsets_of, pad, unpad


def jagged_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, max_len: int, causal: bool, dropout_p: float = 0.0
) -> Tensor:
    """q, k [S, H, D], v [S, H, Dv], offsets [B + 1] -> [S, H, Dv]: an event attends to its user's events, if `causal` to those
    up to itself; `dropout_p` is the share of weights dropped. Raises UserError for shapes that do not fit."""
    q, k, v = fitting(q, k, v)
    padded_q, padded_k, padded_v = (pad(x, offsets, max_len).transpose(1, 2) for x in (q, k, v))  # [B, H, L, D]
    place = torch.arange(max_len, device=q.device)
    allowed = (place < offsets.diff()[:, None])[:, None, None]  # [B, 1, 1, L] keys
    if causal:
        allowed = allowed & (place <= place[:, None])  # [B, 1, L, L]
    scores = padded_q @ padded_k.transpose(2, 3) / math.sqrt(q.shape[2])  # [B, H, L, L]
    weights = torch.softmax(scores.masked_fill(~allowed, torch.finfo(scores.dtype).min), dim=3)  # finite where nothing is allowed
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p)
    return unpad((weights @ padded_v).transpose(1, 2), offsets, len(q))


def fitting(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """They in the widest of their dtypes. Raises UserError unless q and k have one shape [S, H, D] and v is [S, H, Dv]."""
    if q.dim() != 3 or q.shape != k.shape or v.shape[:-1] != q.shape[:-1]:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in (("q", q), ("k", k), ("v", v)))
        raise UserError(f"jagged_attention: q and k must be [S, H, D] and v [S, H, Dv], not {shapes}")
    q, k, v = widest(q, k, v)
    return q, k, v


def cost(arguments: Mapping[str, Any]) -> Cost:
    """Two products over each pair that attends; q, k, v and the result once."""
    q, v = arguments["q"], arguments["v"]
    lengths = arguments["offsets"].diff().double()
    pairs = float((lengths * (lengths + 1) / 2 if arguments["causal"] else lengths**2).sum())
    return Cost(2 * pairs * q.shape[1] * (q.shape[2] + v.shape[2]), q.element_size() * 2.0 * (q.numel() + v.numel()))


def cases() -> Iterable[Case]:
    """Every layout of lengths, causal or not; values narrower and wider than keys; `max_len` above the longest."""
    event = ("q", "k", "v")
    for name, lengths in EDGES.items():
        yield Case(name, partial(_arguments, lengths), event)
        yield Case(f"{name}, both ways", partial(_arguments, lengths, causal=False), event)
    some = EDGES["edges"]
    yield Case("narrow values", partial(_arguments, some, wide=8), event)
    yield Case("wide values", partial(_arguments, some, wide=24, causal=False), event)
    yield Case("room to spare", partial(_arguments, some, room=3), event)


def _arguments(
    lengths: tuple[int, ...], generator: Generator, wide: int = 16, causal: bool = True, room: int = 0
) -> dict[str, Any]:
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    total = sum(lengths)
    return {
        "q": draw(total, 2, 16),
        "k": draw(total, 2, 16),
        "v": draw(total, 2, wide) / 4,  # where all events are one, the gradients of q and k are v's rounding and nothing else
        "offsets": offsets_of(lengths),
        "max_len": max(lengths, default=0) + room,
        "causal": causal,
    }
