"""Scores of the questions that were really asked, packed to rows [N, ...], over a whole catalogue or over drawn candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from userec.batch import Encoded, Query, Targets
from userec.capability import Can
from userec.encoder.contract import Encoder
from userec.objective import prices
from userec.schema import FIRST

DENSE: Final = 16
"""Where a catalogue is at most so many times the candidates, all its logits and a gather beat gathered embeddings."""


def where_asked(targets: Targets) -> tuple[Tensor, Tensor]:
    """(True where a question stands [B, Q], the answers of those questions [N])."""
    assert targets.answer is not None
    assert targets.weight is not None
    asked = targets.weight > 0
    return asked, targets.answer[asked]


def mean_cross_entropy(
    encoder: Encoder, encoded: Encoded, targets: Targets, fused: Callable[..., Tensor], temperature: float = 1.0
) -> Tensor:
    """Cross-entropy over the real ids of the whole space, the mean over asked questions; 0 where none is asked.

    `fused` is the op `linear_cross_entropy`: with DOT_SCORE the logits [N, n] are never held."""
    asked, answer = where_asked(targets)
    if Can.DOT_SCORE in encoder.offers:
        weight, bias = encoder.candidates(encoded.history.tasks)
        x = encoder.queries(encoded, targets.query)[asked] / temperature  # [N, D]
        return fused(x, weight[FIRST:], None if bias is None else bias[FIRST:] / temperature, answer - FIRST, reduction="mean")
    scores = over_catalogue(encoder, encoded, targets) / temperature
    return prices.softmax(scores, answer - FIRST).sum() / max(len(answer), 1)


def mean_sampled_cross_entropy(
    encoder: Encoder,
    encoded: Encoded,
    targets: Targets,
    log_q: Tensor,
    fused: Callable[..., Tensor],
    size: int,
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy over drawn candidates of a space of `size` ids, the mean over asked questions; 0 where none is asked.

    `targets.query.ids` are [B, Q, 1 + K] with the answer first, or the K negatives [1, 1, K] that all share; `log_q` [N, 1 + K].
    `fused` is the op `sampled_cross_entropy`; the encoder offers DOT_SCORE."""
    asked, answer = where_asked(targets)
    assert targets.query.ids is not None
    shared = targets.query.ids.shape[-1] < log_q.shape[-1]
    negatives = targets.query.ids[0, 0] if shared else targets.query.ids[asked][:, 1:]  # [K] or [N, K]
    tasks = encoded.history.tasks
    # The op wants rows to pick from. All of them are a table's own weight, or a network over every item's features: nobody can
    # tell without asking. So all are asked for where as many candidates are drawn, else each drawn one, once.
    if size <= answer.numel() + negatives.numel():
        weight, bias = encoder.candidates(tasks)  # [n, D]
    else:
        drawn = torch.zeros(size, dtype=torch.bool, device=answer.device)
        drawn[answer] = drawn[negatives.flatten()] = True
        weight, bias = encoder.candidates(tasks, drawn.nonzero().squeeze(1))  # [n', D], ascending ids
        place = drawn.cumsum(0) - 1  # [n] where a drawn id stands among them
        answer, negatives = place[answer], place[negatives]
    x = encoder.queries(encoded, targets.query)[asked] / temperature  # [N, D]
    return fused(x, weight, None if bias is None else bias / temperature, answer, negatives, log_q, reduction="mean")


def over_catalogue(encoder: Encoder, encoded: Encoded, targets: Targets) -> Tensor:
    """[N, n - 2]: scores of every real id for each asked question."""
    asked, _ = where_asked(targets)
    return encoder.score(encoded, dataclasses.replace(targets.query, ids=None))[..., FIRST:, 0][asked]


def over_candidates(encoder: Encoder, encoded: Encoded, targets: Targets, size: int) -> Tensor:
    """[N, C]: scores of `targets.query.ids` [B, Q, C], of a space of `size` ids, for each asked question."""
    asked, _ = where_asked(targets)
    assert targets.query.ids is not None
    if Can.DOT_SCORE not in encoder.offers:
        return encoder.score(encoded, targets.query)[..., 0][asked]
    tasks, ids = encoded.history.tasks, targets.query.ids[asked]  # [N, C]
    x = encoder.queries(encoded, targets.query)[asked]  # [N, D]
    if size <= DENSE * ids.shape[-1]:
        return _logits(x, *encoder.candidates(tasks)).gather(1, ids)
    weight, bias = encoder.candidates(tasks, ids)  # [N, C, D]
    scores = torch.matmul(weight, x.unsqueeze(-1)).squeeze(-1)
    return scores if bias is None else scores + bias


def over_shared(encoder: Encoder, encoded: Encoded, targets: Targets) -> Tensor:
    """[N, 1 + K]: scores of each question's own answer, then of the K negatives `targets.query.ids` [1, 1, K] that all share."""
    asked, answer = where_asked(targets)
    assert targets.query.ids is not None
    assert targets.answer is not None
    if Can.DOT_SCORE not in encoder.offers:
        own = encoder.score(encoded, dataclasses.replace(targets.query, ids=targets.answer.unsqueeze(-1)))
        return torch.cat([own[..., 0], encoder.score(encoded, targets.query)[..., 0]], -1)[asked]
    tasks, x = encoded.history.tasks, encoder.queries(encoded, targets.query)[asked]  # [N, D]
    weight, bias = encoder.candidates(tasks, answer)  # [N, D]
    own = (weight * x).sum(-1) if bias is None else (weight * x).sum(-1) + bias
    return torch.cat([own.unsqueeze(-1), _logits(x, *encoder.candidates(tasks, targets.query.ids[0, 0]))], -1)


def auxiliary(
    encoder: Encoder, encoded: Encoded, query: Query | None, asked: Tensor, price: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The encoder's own training losses by name: scalars as they are, scores [B, Q, C, A] of the `asked` questions priced."""
    extra = {}
    for name, value in encoder.auxiliary(encoded, query).items():
        extra[name] = value if value.dim() == 0 else price(value[..., 0][asked]).sum() / asked.sum().clamp(min=1)
    return extra


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
