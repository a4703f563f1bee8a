"""HSTU's attention, as one reads it: pointwise SiLU weights with position and time bias (Zhai et al. 2024, equation 2)."""

from __future__ import annotations

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
    """O_i = sum_{j <= i} silu(scale q_i k_j + position_table[i - j] + time_table[bucket(asked_i - time_j)]) / divisor v_j.

    q, k [S, H, D], v [S, H, Dv], offsets [B + 1] -> [S, H, Dv]. `position_table` [P, H|1]: distances from P - 1 on share its last
    row. `time_table` [T, H|1] with `edges` [T - 1] int64, ascending: the bucket is how many edges are at most the gap, so it is
    exact everywhere; `time` [S] int64 of the events, ascending for each user, `asked` [S] of the question put after each
    (seconds).
    No softmax, no 1/sqrt(D); `divisor` is a constant, the paper's code has the padded length. Of q, k and v in several dtypes the
    result has the widest. Raises UserError for shapes that do not fit, and for a time table without its times."""
    check_hstu(q, k, v, position_table, time_table, time, asked, edges)
    q, k, v = widest(q, k, v)
    padded_q, padded_k, padded_v = (pad(x, offsets, max_len).transpose(1, 2) for x in (q, k, v))  # [B, H, L, D]
    scores = scale * padded_q @ padded_k.transpose(2, 3)  # [B, H, L, L]
    place = torch.arange(max_len, device=q.device)
    apart = place[:, None] - place  # [L, L]
    if position_table is not None:
        scores = scores + F.embedding(apart.clamp(0, len(position_table) - 1), position_table).permute(2, 0, 1)
    if time_table is not None and time is not None and asked is not None and edges is not None:
        gap = pad(asked, offsets, max_len)[:, :, None] - pad(time, offsets, max_len)[:, None]  # [B, L, L]
        scores = scores + F.embedding(torch.bucketize(gap, edges.contiguous(), right=True), time_table).permute(0, 3, 1, 2)
    weights = F.silu(scores) * (apart >= 0) / divisor
    return unpad((weights @ padded_v).transpose(1, 2), offsets, len(q))


def check_hstu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position_table: Tensor | None,
    time_table: Tensor | None,
    time: Tensor | None,
    asked: Tensor | None,
    edges: Tensor | None,
) -> None:
    """Raises UserError where the arguments do not belong together."""
    if q.dim() != 3 or q.shape != k.shape or v.dim() != 3 or v.shape[:2] != q.shape[:2]:
        shapes = ", ".join(f"{name} {list(x.shape)}" for name, x in (("q", q), ("k", k), ("v", v)))
        raise UserError(f"hstu_attention: q and k must be [S, H, D] and v [S, H, Dv], not {shapes}")
    events, heads = q.shape[:2]
    for name, table in (("position_table", position_table), ("time_table", time_table)):
        if table is not None and (table.dim() != 2 or table.shape[1] not in (1, heads) or len(table) < 1):
            raise UserError(f"hstu_attention: {name} is {list(table.shape)}: give a row or more of 1 or {heads} heads")
    if time_table is None:
        return
    if time is None or asked is None or edges is None:
        raise UserError("hstu_attention: time_table needs time, asked and edges")
    for name, x, size in (("time", time, events), ("asked", asked, events), ("edges", edges, len(time_table) - 1)):
        if tuple(x.shape) != (size,):
            raise UserError(
                f"hstu_attention: {name} is {list(x.shape)}, but {events} events and {len(time_table)} rows of time_table "
                f"want [{size}]"
            )


def cost(arguments: Mapping[str, Any]) -> Cost:
    """Two products over each causal pair; q, k, v and the result once."""
    q, v = arguments["q"], arguments["v"]
    pairs = float((arguments["offsets"].diff().double() * (arguments["offsets"].diff() + 1) / 2).sum())
    return Cost(2 * pairs * q.shape[1] * (q.shape[2] + v.shape[2]), q.element_size() * 2.0 * (q.numel() + v.numel()))


def cases() -> Iterable[Case]:
    """Every layout of lengths with both biases; each bias alone, and none; equal times; long gaps; tables of all heads."""
    event = ("q", "k", "v", "time", "asked")
    for name, lengths in EDGES.items():
        yield Case(name, partial(_arguments, lengths), event)
    some = EDGES["edges"]
    yield Case("no bias", partial(_arguments, some, position=0, buckets=0), event)
    yield Case("position alone", partial(_arguments, some, buckets=0), event)
    yield Case("time alone", partial(_arguments, some, position=0), event)
    yield Case("equal times", partial(_arguments, some, span=0), event)
    yield Case("long gaps", partial(_arguments, some, span=2**31), event)
    yield Case("shared by heads", partial(_arguments, some, table_heads=1), event)


def _arguments(
    lengths: tuple[int, ...],
    generator: Generator,
    position: int = 40,
    buckets: int = 12,
    span: int = 10_000,
    table_heads: int = 2,
) -> dict[str, Any]:
    total = sum(lengths)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    offsets = offsets_of(lengths)
    steps = torch.randint(0, span + 1, (total,), generator=generator)
    time = torch.cat([torch.zeros(0, dtype=torch.int64), *(part.cumsum(0) for part in steps.split(list(lengths)))])
    wait = torch.randint(0, span + 1, (total,), generator=generator)
    return {
        "q": draw(total, 2, 16),
        "k": draw(total, 2, 16),
        "v": draw(total, 2, 8),
        "offsets": offsets,
        "position_table": draw(position, table_heads) if position else None,
        "time_table": draw(buckets, table_heads) if buckets else None,
        "time": time if buckets else None,
        "asked": time + wait if buckets else None,
        "edges": torch.tensor([round(1.8 ** (2 * i)) for i in range(buckets - 1)]) if buckets else None,
        "max_len": max(lengths, default=0),
        "divisor": 20.0,
        "scale": 0.5,
    }
