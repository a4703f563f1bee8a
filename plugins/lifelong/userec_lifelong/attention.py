"""TWIN's target attention: one relevance that both finds events and weighs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from userec.encoder.contract import Build


class TargetAttention(nn.Module):
    """alpha = (K_h W^h)(q W^q)^T / sqrt(d_k) + (K_c W^c) beta, softmax over the `keep` events of highest alpha, values K W^v,
    heads joined by W^o. K_h [B, L, inherent] are inherent features, K_c [B, Q, L, J, cross] cross features: W^c makes one scalar
    of each (it is block-diagonal), beta in R^J weighs them per head. `keep` None keeps all events.

    K W^v is never made of the cross features: a sum of K_c W^v is the sum of K_c, times W^v."""

    def __init__(self, build: Build, inherent: int, features: int, cross: int, dim: int, heads: int, keep: int | None) -> None:
        super().__init__()
        self.heads, self.keep = heads, keep
        self.attend = build.op("target_attention")
        self.wh = nn.Linear(inherent, dim, bias=False)
        self.wq = nn.Linear(inherent, dim, bias=False)
        self.wc = nn.Parameter(torch.empty(features, cross))
        self.beta = nn.Parameter(torch.empty(features, heads))
        self.wv_inherent = nn.Linear(inherent, dim, bias=False)  # W^v by its rows: those of K_h and those of K_c
        self.wv_cross = nn.Linear(features * cross, dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        for linear in (self.wh, self.wq, self.wv_inherent, self.wv_cross, self.wo):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)  # what goes in comes out at its size
        nn.init.normal_(self.wc, std=cross**-0.5)
        nn.init.normal_(self.beta, mean=1.0, std=0.1)

    def _split(self, x: Tensor) -> Tensor:
        """[..., n, D] -> [..., H, n, D / H]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def project(self, inherent: Tensor) -> tuple[Tensor, Tensor]:
        """What no candidate changes, the part worth caching: K_h W^h and K_h's share of K W^v, [B, H, L, d_k] each."""
        return self._split(self.wh(inherent)), self._split(self.wv_inherent(inherent))

    def bias(self, cross: Tensor) -> Tensor:
        """(K_c W^c) beta: [B, Q, L, J, cross] -> [B, H, Q, L]."""
        weight = torch.einsum("jw,jh->hjw", self.wc, self.beta).flatten(1)  # [H, J * cross]
        return F.linear(cross.flatten(3), weight).permute(0, 3, 1, 2)

    def forward(self, keys: Tensor, values: Tensor, cross: Tensor, bias: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
        """Both stages: keys and values of the events [B, H, L, d_k], cross features [B, Q, L, J, cross] and their bias, targets
        [B|1, Q|1, C, inherent], events allowed [B, Q, L] -> [B, Q, C, D]."""
        q = self._split(self.wq(target))  # [B|1, Q|1, H, C, d_k]
        found = self.attend(q, keys, values, bias, allowed, cross.flatten(3), keep=self.keep)  # [B, Q, C, H, d_k + J * cross]
        own, shared = found.split([values.shape[-1], found.shape[-1] - values.shape[-1]], -1)
        weight = self.wv_cross.weight.unflatten(0, (self.heads, -1))  # [H, d_k, J * cross]
        return self.wo((own + torch.einsum("bqchw,hdw->bqchd", shared, weight)).flatten(3))  # heads side by side
