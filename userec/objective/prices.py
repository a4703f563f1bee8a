"""Prices: scores [B, Q, C] -> what each question costs [B, Q]. Pure, differentiable, stable in float32.

In a sampled price column 0 is the positive and the others are negatives; `log_q` [B|1, Q|1, C] is the logarithm of each
candidate's probability to be drawn, and +inf voids a candidate (an accidental hit, a reserved id)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def softmax(scores: Tensor, answer: Tensor) -> Tensor:
    """Cross-entropy over all C columns, of which `answer` [B, Q] names the true one."""
    return scores.logsumexp(-1) - scores.gather(-1, answer.unsqueeze(-1)).squeeze(-1)


def sampled_softmax(scores: Tensor, log_q: Tensor | None = None) -> Tensor:
    """Cross-entropy over the sampled columns, every logit less its log Q, the positive's too (Bengio & Senecal 2008)."""
    logits = scores if log_q is None else scores - log_q
    return logits.logsumexp(-1) - logits[..., 0]


def bce(scores: Tensor, log_q: Tensor | None = None) -> Tensor:
    """Binary cross-entropy, the mean over the positive and the live negatives (SASRec, eq. 7, is twice that with one)."""
    return gbce(scores, 1.0, log_q)


def gbce(scores: Tensor, beta: float, log_q: Tensor | None = None) -> Tensor:
    """Generalised BCE: -(beta log sigma(s+) + sum log(1 - sigma(s-))) / (1 + live negatives) (gSASRec, eq. 9)."""
    negatives, live = scores[..., 1:], _live(scores, log_q)
    refused = (F.softplus(negatives) * live).sum(-1)
    return (beta * F.softplus(-scores[..., 0]) + refused) / (1 + live.sum(-1))


def gbce_beta(negatives: int, items: int, t: float) -> float:
    """The exponent of gBCE for k negatives of N items: alpha (t (1 - 1/alpha) + 1/alpha), alpha = k / (N - 1).

    t = 0 gives 1 (plain BCE), t = 1 gives alpha (calibrated); more negatives than items count as all of them. Without a negative
    there is nothing to calibrate: 1."""
    if negatives == 0:
        return 1.0
    alpha = min(negatives / max(items - 1, 1), 1.0)
    return alpha * (t * (1 - 1 / alpha) + 1 / alpha)


def bpr(scores: Tensor, log_q: Tensor | None = None) -> Tensor:
    """Bayesian personalised ranking: the mean of -log sigma(s+ - s-) over live negatives (Rendle 2009)."""
    live = _live(scores, log_q)
    lost = F.softplus(scores[..., 1:] - scores[..., :1]) * live
    return lost.sum(-1) / live.sum(-1).clamp(min=1)


def bpr_max(scores: Tensor, log_q: Tensor | None = None, regularisation: float = 1.0, elu: float = 0.0) -> Tensor:
    """-log sum_j w_j sigma(s+ - s_j) + regularisation * sum_j w_j s_j^2, w = softmax of the negatives (GRU4Rec 2018, eq. 9).

    With `elu` > 0 every score goes through ELU of that alpha first (GRU4Rec's code). A question whose negatives are all void
    costs nothing."""
    scores = F.elu(scores, elu) if elu > 0 else scores
    negatives, live = scores[..., 1:], _live(scores, log_q)
    some = live.any(-1)
    void = ~live & some.unsqueeze(-1)
    log_w = negatives.masked_fill(void, -torch.inf).log_softmax(-1)  # [B, Q, C - 1]
    won = (log_w + F.logsigmoid(scores[..., :1] - negatives)).logsumexp(-1)
    penalty = (log_w.exp() * negatives.square()).sum(-1)
    return torch.where(some, regularisation * penalty - won, 0.0)


def binary(scores: Tensor, labels: Tensor, log_q: Tensor | None = None) -> Tensor:
    """Binary cross-entropy against `labels` [B, Q, C] in [0, 1], the mean over observed ones (NaN = not observed)."""
    observed = ~labels.isnan()
    if log_q is not None:
        observed = observed & (log_q < torch.inf)
    lost = F.binary_cross_entropy_with_logits(scores, labels.nan_to_num(), reduction="none") * observed
    return lost.sum(-1) / observed.sum(-1).clamp(min=1)


def squared(scores: Tensor, labels: Tensor) -> Tensor:
    """(score - label)^2, the mean over observed `labels` [B, Q, C] (NaN = not observed)."""
    observed = ~labels.isnan()
    lost = torch.where(observed, scores - labels.nan_to_num(), 0.0).square()
    return lost.sum(-1) / observed.sum(-1).clamp(min=1)


def _live(scores: Tensor, log_q: Tensor | None) -> Tensor:
    """[..., C - 1] bool: negatives that are not voided."""
    if log_q is None:
        return torch.ones_like(scores[..., 1:], dtype=torch.bool)
    return (log_q[..., 1:] < torch.inf).expand_as(scores[..., 1:])
