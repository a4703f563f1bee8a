"""Target attention in two stages, as one reads it: one relevance finds a target's events, and weighs them (TWIN: Chang et al.,
KDD 2023, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Generator, Tensor

from userec.errors import UserError
from userec.kernel.contract import Case, Cost
from userec.kernel.dtypes import wide

CELLS: Final = 2**22
"""Scores (heads x questions x targets x events) held at once where no gradient is asked for: 16 MiB."""


def target_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    allowed: Tensor,
    context: Tensor | None = None,
    *,
    keep: int | None = None,
) -> Tensor:
    """Stage one: alpha = q k / sqrt(d) + bias, of which the `keep` best events are kept (`union_of_heads`; None: all allowed).
    Stage two: softmax of the same alpha over the events kept, and the weighted sum of their values.

    Targets q [B|1, Q|1, H, C, d], events k [B, H, L, d], bias [B, H, Q, L]; question i of a row sees the events `allowed`
    [B, Q, L] bool, and no other is ever kept. Values v [B, H, L, dv], beside them `context` [B, Q, L, W], what a question knows
    of an event, one for all heads -> [B, Q, C, H, dv + W]; zeros where nothing is allowed. The gradient goes through stage two
    alone. Where alphas tie the newer event (the later place) comes first. bfloat16 is read as float32, also under
    autocast: its rounding would make ties that are none."""
    check_target(q, k, v, bias, allowed, context, keep)
    whole = torch.is_grad_enabled() or torch.compiler.is_compiling()
    step = max(q.shape[3] if whole else CELLS // max(bias.numel(), 1), 1)
    of_events = wide(k), wide(v), wide(bias), allowed, context, keep
    with torch.autocast(k.device.type, enabled=False):
        parts = [_attend(wide(part), *of_events) for part in q.split(step, 3)]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 2)).to(v.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, allowed: Tensor, context: Tensor | None, keep: int | None) -> Tensor:
    alpha = torch.einsum("bqhcd,bhld->bhqcl", q.expand(*allowed.shape[:2], -1, -1, -1), k) / k.shape[-1] ** 0.5
    alpha = alpha + bias.unsqueeze(3)  # [B, H, Q, C, L]
    kept = allowed.unsqueeze(2).expand(*allowed.shape[:2], alpha.shape[3], -1)  # [B, Q, C, L]
    if keep is not None and keep < k.shape[2]:
        scores = alpha.detach().masked_fill(~kept.unsqueeze(1), -torch.inf)
        kept = kept & union_of_heads(ranked(scores, keep).permute(0, 2, 3, 1, 4), keep, k.shape[2])
    kept = kept.unsqueeze(1)  # [B, 1, Q, C, L]
    weights = alpha.masked_fill(~kept, torch.finfo(alpha.dtype).min).softmax(-1).masked_fill(~kept, 0.0)
    out = torch.einsum("bhqcl,bhld->bqchd", weights, v)
    if context is not None:
        out = torch.cat([out, torch.einsum("bhqcl,bqlw->bqchw", weights, context.to(out.dtype))], -1)
    return out


def ranked(scores: Tensor, keep: int) -> Tensor:
    """Scores [..., L] -> the places of the `keep` highest, best first; where they tie the later place comes first."""
    newest_first = scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    return scores.shape[-1] - 1 - newest_first


def union_of_heads(ranked: Tensor, keep: int, length: int) -> Tensor:
    """Events [..., H, R] of each head, best first -> [..., L] bool: `keep` of them, taking the heads' lists in turn
    (first of each head, second of each, ...) until that many are unique; all listed where they are fewer."""
    heads, ranks = ranked.shape[-2:]
    never = heads * ranks
    taken = ranked.new_full((*ranked.shape[:-2], length), never)  # [..., L]: the turn at which an event is first met
    turns = torch.arange(never, device=ranked.device).reshape(ranks, heads)
    for head in range(heads):
        met = torch.full_like(taken, never).scatter_(
            -1, ranked[..., head, :], turns[:, head].expand(ranked.shape[:-2] + (ranks,))
        )
        taken = torch.minimum(taken, met)
    order = ranked.transpose(-1, -2).flatten(-2)  # [..., R * H]: as they are met
    new = taken.gather(-1, order) == turns.flatten()
    enough = (new.cumsum(-1) < keep).sum(-1, keepdim=True)  # [..., 1]: the turn of the last event kept
    return (taken <= enough) & (taken < never)


def check_target(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, allowed: Tensor, context: Tensor | None, keep: int | None
) -> None:
    """Raises UserError where the shapes do not fit."""
    rows, questions, length = allowed.shape
    heads, width = k.shape[1], k.shape[-1]
    fits = {
        "q": q.dim() == 5 and q.shape[0] in (1, rows) and q.shape[1] in (1, questions) and q.shape[2::2] == (heads, width),
        "k": k.shape == (rows, heads, length, width),
        "v": v.dim() == 4 and v.shape[:3] == k.shape[:3],
        "bias": bias.shape == (rows, heads, questions, length),
        "context": context is None or (context.dim() == 4 and context.shape[:3] == allowed.shape),
    }
    if wrong := [name for name, right in fits.items() if not right]:
        told = f"target_attention: {', '.join(wrong)}"
        raise UserError(
            f"{told} cannot be of {rows} rows, {questions} questions, {heads} heads, {length} events: "
            "q [B|1, Q|1, H, C, d], k [B, H, L, d], v [B, H, L, dv], bias [B, H, Q, L], allowed [B, Q, L], context [B, Q, L, W]"
        )
    if keep is not None and keep < 1:
        raise UserError(f"target_attention: keep {keep} keeps no event: 1 or more, or None for all")


def cost(arguments: Mapping[str, Any]) -> Cost:
    """Every score once, every value once for each event kept; all tensors and the result once."""
    q, k, v, allowed = (arguments[name] for name in ("q", "k", "v", "allowed"))
    context, keep = arguments.get("context"), arguments.get("keep")
    width = v.shape[-1] + (0 if context is None else context.shape[-1])
    targets = allowed.shape[0] * allowed.shape[1] * q.shape[3] * k.shape[1]
    kept = k.shape[2] if keep is None else min(keep, k.shape[2])
    tensors = (q, k, v, arguments["bias"], *(() if context is None else (context,)))
    moved = sum(x.numel() for x in tensors) + targets * width
    return Cost(2.0 * targets * (k.shape[2] * k.shape[-1] + kept * width), float(q.element_size() * moved))


def cases() -> Iterable[Case]:
    """All kept and some; one and as many as there are; targets of all rows, or of all questions; blocks; nothing anywhere."""
    yield _case("keep 5")
    yield _case("keep all", keep=None)
    yield _case("no context", context=0)
    yield _case("keep 1", keep=1)
    yield _case("keep all but one", keep=16)
    yield _case("keep as many as there are", keep=17)
    yield _case("one head", heads=1)
    yield _case("targets of all rows", shared=(1, 1))
    yield _case("targets of a row", shared=(3, 1))
    yield _case("targets of all rows, one question", shared=(1, 1), questions=1)
    yield _case("long", length=65, keep=16)
    yield _case("one event", length=1, keep=1)
    yield _case("ties", ties=True, length=33)
    yield _case("no events", length=0)
    yield _case("no targets", targets=0)
    yield _case("nobody", rows=0)


def _case(name: str, **settings: Any) -> Case:
    shared = settings.get("shared", (3, 2))[0] == 1
    user = ("k", "v", "bias", "allowed", "context") if shared else ("q", "k", "v", "bias", "allowed", "context")
    return Case(name, partial(_arguments, **settings), user=user, out=("user",))


def _arguments(
    generator: Generator,
    keep: int | None = 5,
    heads: int = 2,
    length: int = 17,
    targets: int = 3,
    questions: int = 2,
    rows: int = 3,
    shared: tuple[int, int] | None = None,
    context: int = 3,
    ties: bool = False,
) -> dict[str, Any]:
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    seen = torch.randint(0, length + 1, (rows, questions, 1), generator=generator)
    seen[:1] = length  # a row that sees all, and one that sees nothing
    seen[2:] = 0
    q, k = draw(*(shared or (rows, questions)), heads, targets, 16), draw(rows, heads, length, 16)
    bias = draw(rows, heads, questions, length)
    return {
        "q": q.sign() if ties else q,  # with k likewise, alphas are whole quarters: exact, and many are equal
        "k": k.sign() if ties else k,
        "v": draw(rows, heads, length, 4),
        "bias": bias.sign() if ties else bias,
        "allowed": torch.arange(length) < seen,
        "context": draw(rows, questions, length, context) if context else None,
        "keep": keep,
    }
