"""TWIN's target attention: one relevance that both finds events and weighs them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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


class TargetAttention(nn.Module):
    """alpha = (K_h W^h)(q W^q)^T / sqrt(d_k) + (K_c W^c) beta, softmax over the `keep` events of highest alpha, values K W^v,
    heads joined by W^o. K_h [B, L, inherent] are inherent features, K_c [B, Q, L, J, cross] cross features: W^c makes one scalar
    of each (it is block-diagonal), beta in R^J weighs them per head. `keep` None keeps all events."""

    def __init__(self, inherent: int, features: int, cross: int, dim: int, heads: int, keep: int | None) -> None:
        super().__init__()
        self.heads, self.keep = heads, keep
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
        """What no candidate changes, the part worth caching: K_h W^h [B, H, L, d_k] and K_h's share of K W^v [B, L, D]."""
        return self._split(self.wh(inherent)), self.wv_inherent(inherent)

    def bias(self, cross: Tensor) -> Tensor:
        """(K_c W^c) beta: [B, Q, L, J, cross] -> [B, H, Q, L]."""
        return torch.einsum("bqljw,jw,jh->bhql", cross, self.wc, self.beta)

    def relevance(self, keys: Tensor, bias: Tensor, target: Tensor) -> Tensor:
        """alpha [B, H, Q, C, L] of targets [B|1, Q|1, C, inherent]; raw, before any softmax."""
        rows, heads = bias.shape[:2]
        q = self._split(self.wq(target)) / keys.shape[-1] ** 0.5  # [B|1, Q|1, H, C, d_k]
        if q.shape[:2] == (1, 1):  # one list of candidates for all: a matrix product, nothing copied
            alpha = torch.einsum("bhld,hcd->bhcl", keys, q[0, 0]).unsqueeze(2)
        else:
            q = q.transpose(1, 2).expand(rows, heads, -1, -1, -1)  # [B, H, Q|1, C, d_k]
            alpha = (q.flatten(2, 3) @ keys.transpose(2, 3)).unflatten(2, q.shape[2:4])  # [B, H, Q|1, C, L]
        return alpha + bias.unsqueeze(3)

    def select(self, alpha: Tensor, allowed: Tensor) -> Tensor:
        """Stage one, CP-GSU: alpha [B, H, Q, C, L], allowed [B, Q, L] -> [B, Q, C, L] bool, the events that stage two sees.
        Padding and the future come last in every head's list and are never kept."""
        allowed = allowed.unsqueeze(2)  # [B, Q, 1, L]
        length = alpha.shape[-1]
        if self.keep is None or self.keep >= length:
            return allowed.expand(alpha.shape[0], *alpha.shape[2:])
        with torch.no_grad():
            scores = alpha.masked_fill(~allowed.unsqueeze(1), -torch.inf)
            ranked = scores.topk(self.keep, dim=-1).indices.permute(0, 2, 3, 1, 4)  # [B, Q, C, H, K]
            return union_of_heads(ranked, self.keep, length) & allowed

    def weigh(self, alpha: Tensor, kept: Tensor) -> Tensor:
        """Stage two, ESU: softmax of the same alpha over the kept events: [B, H, Q, C, L]; zeros where none is kept."""
        kept = kept.unsqueeze(1)
        scores = alpha.masked_fill(~kept, torch.finfo(alpha.dtype).min)
        return scores.softmax(-1).masked_fill(~kept, 0.0)

    def values(self, projected: Tensor, cross: Tensor) -> Tensor:
        """K W^v: [B, L, D], [B, Q, L, J, cross] -> [B, H, Q, L, d_v]."""
        return self._split(projected.unsqueeze(1) + self.wv_cross(cross.flatten(3))).transpose(1, 2)

    def forward(self, keys: Tensor, bias: Tensor, values: Tensor, target: Tensor, allowed: Tensor) -> Tensor:
        """Both stages: [B, Q, C, D]."""
        alpha = self.relevance(keys, bias, target)
        weights = self.weigh(alpha, self.select(alpha, allowed))
        return self.wo((weights @ values).permute(0, 2, 3, 1, 4).flatten(3))  # heads side by side
