"""Softmax attention on torch's flash path for CPU: 1.6 to 6 times the explicit form's speed, without its [L, L] weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from userec.kernel.contract import No, Request, Yes


def supports(request: Request) -> Yes | No:
    """Where flash attention would run: on a CPU, without dropout (torch then takes its MATH path, 2.5 times slower)."""
    if request.device != "cpu":
        return No(f"device is {request.device}")
    if request.dtype not in ("float32", "float64", "bfloat16"):
        return No(f"{request.dtype} is slow on a CPU")
    if "dropout_p" in request.flags:
        return No("flash attention on a CPU has no dropout")
    return Yes()


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, mask: Tensor | None = None, dropout_p: float = 0.0) -> Tensor:
    """As the reference. Where padding is on the right, a causal query never sees it: no mask is needed but for the output."""
    if mask is None:
        return scaled_dot_product_attention(q, k, v, is_causal=causal)
    if causal and not bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        out = scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        allowed = (mask | ~mask.any(1, keepdim=True))[:, None, None, :]  # [B, 1, 1, L]; an empty row may see all, is zeroed below
        if causal:
            length = q.shape[2]
            lower = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
            unseen = torch.eye(length, dtype=torch.bool, device=q.device) & ~mask[:, None, :, None]  # keeps padded queries finite
            allowed = (allowed & lower) | unseen  # [B, 1, L, L]
        out = scaled_dot_product_attention(q, k, v, attn_mask=allowed)
    return out.masked_fill(~mask[:, None, :, None], 0.0)
