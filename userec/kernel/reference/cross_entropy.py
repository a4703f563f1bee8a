"""Cross-entropy of a linear layer over a whole catalogue, as one reads it."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, reduction: str = "none") -> Tensor:
    """-log softmax(x W^T + b)[target]: x [N, D], weight [V, D], bias [V], target [N] -> [N], or their mean.

    The mean of no rows is 0."""
    logits = x @ weight.T  # [N, V]
    if bias is not None:
        logits = logits + bias
    losses = torch.logsumexp(logits, dim=1) - logits.gather(1, target[:, None]).squeeze(1)  # [N]
    return losses.sum() / max(len(x), 1) if reduction == "mean" else losses
