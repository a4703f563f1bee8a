"""Softmax attention within each user, in buckets of like length, on torch's flash path for CPU: no [L, L] weights are held."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from userec.errors import UserError
from userec.kernel.jagged import Bucket, buckets, gathered
from userec.kernel.reference.jagged_attention import fitting


def jagged_attention(
    q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, *, max_len: int, causal: bool, dropout_p: float = 0.0
) -> Tensor:
    """As the reference, but without dropout, which flash attention has none of on a CPU: UserError."""
    if dropout_p:
        raise UserError("jagged_attention: flash attention on a CPU has no dropout; the provider torch has")
    q, k, v = fitting(q, k, v)
    found, parts = buckets(offsets, total=len(q)), []
    for bucket in found:
        own_q, own_k, own_v = (bucket.pad(x).transpose(1, 2) for x in (q, k, v))  # [b, H, L, D]
        out = scaled_dot_product_attention(own_q, own_k, own_v, _key_mask(bucket, causal), is_causal=causal)
        parts.append(bucket.pack(out.transpose(1, 2)))
    return gathered(parts, found, v)


def _key_mask(bucket: Bucket, causal: bool) -> Tensor | None:
    """[b, 1, 1, L], False at padding. Padding is on the right: a causal query never sees it, and full rows have none."""
    if causal or bucket.slot is None:
        return None
    mask = torch.ones(len(bucket.rows) * bucket.length, dtype=torch.bool)
    return mask.index_fill_(0, bucket.gaps, 0).view(-1, 1, 1, bucket.length)
