"""Cross-entropy of a linear layer over an answer and drawn negatives, as one reads it (Bengio & Senecal 2008)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from userec.errors import UserError
from userec.kernel.contract import Case, Cost, Layout
from userec.kernel.reference import linear_cross_entropy


def sampled_cross_entropy(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    negatives: Tensor,
    log_q: Tensor | None = None,
    *,
    reduction: str = "none",
) -> Tensor:
    """-log softmax over (target, negatives) of x W^T + b - log_q, at the target: x [N, D], weight [V, D], bias [V], target [N],
    negatives [N, K] a row's own or [K] shared by all -> [N], or their mean; the mean of no rows is 0.

    `log_q` [N, 1 + K], the answer first: each candidate's log-probability to be drawn, taken from every logit, the answer's too;
    +inf voids a negative. It gets no gradient. A negative that is the target (an accidental hit) counts as any other: its
    `log_q` voids it, for only the caller knows which hits are accidents. Raises UserError where the shapes do not fit."""
    check(x, weight, bias, target, negatives, log_q, reduction)
    own = (weight[target] * x).sum(1, keepdim=True)  # [N, 1]
    others = weight[negatives]  # [N, K, D] or [K, D]
    others = x @ others.T if negatives.dim() == 1 else (others @ x[:, :, None]).squeeze(2)  # [N, K]
    logits = torch.cat([own, others], 1)  # [N, 1 + K]
    if bias is not None:
        logits = logits + torch.cat([bias[target][:, None], bias[negatives].expand_as(others)], 1)
    if log_q is not None:
        logits = logits - log_q.detach()
    losses = torch.logsumexp(logits, dim=1) - logits[:, 0]  # [N]
    return losses.sum() / max(len(x), 1) if reduction == "mean" else losses


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    negatives: Tensor,
    log_q: Tensor | None,
    reduction: str,
) -> None:
    """Raise UserError where the shapes do not fit each other, or `reduction` is no known word."""
    op = "sampled_cross_entropy"
    linear_cross_entropy.check(op, x, weight, bias, target, reduction)
    if negatives.dim() != 1 and (negatives.dim() != 2 or len(negatives) != len(x)):
        raise UserError(f"{op}: negatives have the shape {[*negatives.shape]}: shared [K], or a row's own [{len(x)}, K]")
    candidates = [len(x), 1 + negatives.shape[-1]]
    if log_q is not None and [*log_q.shape] != candidates:
        raise UserError(f"{op}: log_q has the shape {[*log_q.shape]}, one for the answer and each negative would be {candidates}")


def cost(arguments: Mapping[str, Any]) -> Cost:
    """A product a candidate; x, the rows of weight that are asked for, their ids and the losses once."""
    x, negatives = arguments["x"], arguments["negatives"]
    asked = len(x) + negatives.numel()
    size = x.element_size()
    return Cost(2.0 * x.numel() * (1 + negatives.shape[-1]), size * float(x.numel() + asked * x.shape[1] + len(x)) + 8.0 * asked)


def cases() -> Iterable[Case]:
    """Own and shared negatives, both reductions, of many classes and few; bias, log_q and voids on and off; no row, one, and
    around the rows of a block; no negative; logits that leave the answer nothing."""
    for reduction in ("mean", "none"):
        for shared in (False, True):
            whose = f"{reduction}, {'shared' if shared else 'own'}"
            settings = {"reduction": reduction, "shared": shared}
            yield _case(f"{whose}", 40, **settings)
            yield _case(f"{whose}, few classes", 40, classes=9, **settings)
            yield _case(f"{whose}, no bias", 40, bias=False, **settings)
            yield _case(f"{whose}, no log_q", 40, log_q=False, **settings)
            for rows in (0, 1):
                yield _case(f"{whose}, rows {rows}", rows, **settings)
    for rows in (511, 512, 513):
        yield replace(_case(f"shared, rows {rows}", rows, shared=True), user=())
        yield replace(_case(f"few classes, rows {rows}", rows, classes=9), user=())
    yield _case("no negatives", 5, negatives=0)
    yield _case("large log_q", 20, spread=30.0)


def _case(name: str, rows: int, **settings: Any) -> Case:
    out: Layout = "shared" if settings.get("reduction") == "mean" else "user"
    user = ("x", "target", *(() if settings.get("shared") else ("negatives",)), "log_q")
    return Case(name, partial(_arguments, rows, **settings), user=user, out=(out,), fixed=("log_q",))


def _arguments(
    rows: int,
    generator: Generator,
    reduction: str = "none",
    shared: bool = False,
    classes: int = 200,
    negatives: int = 6,
    bias: bool = True,
    log_q: bool = True,
    spread: float = 1.0,
) -> dict[str, Any]:
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    log_p = spread * draw(rows, 1 + negatives)
    void = torch.rand(rows, negatives, generator=generator) < 0.2
    log_p[:, 1:].masked_fill_(void, torch.inf)
    return {
        "x": 0.3 * draw(rows, 8),
        "weight": draw(classes, 8),
        "bias": draw(classes) if bias else None,
        "target": torch.randint(classes, (rows,), generator=generator),
        "negatives": torch.randint(classes, (negatives,) if shared else (rows, negatives), generator=generator),
        "log_q": log_p if log_q else None,
        "reduction": reduction,
    }
