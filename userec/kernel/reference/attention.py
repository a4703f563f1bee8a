"""Softmax attention, as one reads it: O = softmax(Q K^T / sqrt(d)) V (Vaswani 2017, equation 1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    """q, k, v [B, H, L, Dh], mask [B, L] True at real events -> [B, H, L, Dh].

    A padded key is not attended to, a padded query gets zeros; so does one that sees nothing."""
    length = q.shape[2]
    allowed = torch.ones(length, length, dtype=torch.bool, device=q.device)  # [L, L]: query, key
    if causal:
        allowed = allowed.tril()
    allowed = allowed.expand(q.shape[0], 1, length, length)
    if mask is not None:
        allowed = allowed & mask[:, None, None, :] & mask[:, None, :, None]
    scores = (q @ k.transpose(2, 3)) / math.sqrt(q.shape[3])  # [B, H, L, L]
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=3).masked_fill(~allowed, 0.0)
    if dropout_p > 0:
        weights = torch.nn.functional.dropout(weights, dropout_p)
    return weights @ v
