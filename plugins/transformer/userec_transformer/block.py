"""The pre-LN block of a causal Transformer (Xiong et al. 2020), over packed events."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from userec.encoder.blocks.dropout import Dropout
from userec.kernel.jagged import pad


class Block(nn.Module):
    """x + attention(LN x), then x + W2 activation(W1 LN x): [S, D] -> [S, D], all users' events one after another.

    `dropout` falls on what each half adds and inside the feed-forward layer, `attention_dropout` on attention weights."""

    def __init__(
        self,
        attend: Callable[..., Tensor],
        dim: int,
        heads: int,
        inner: int,
        dropout: float,
        attention_dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.attend, self.activation = attend, activation
        self.heads, self.attention_dropout = heads, attention_dropout
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project, self.merge = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, offsets: Tensor, max_len: int) -> Tensor:
        """User b's events stand at offsets[b] to offsets[b + 1], at most `max_len`; each is made of his events up to itself."""
        q, k, v = self.project(self.norm_attention(x)).unflatten(1, (3, self.heads, -1)).unbind(1)  # 3 x [S, H, D / H]
        dropout = self.attention_dropout if self.training else 0.0
        attended = self.attend(q, k, v, offsets, max_len=max_len, causal=True, dropout_p=dropout).flatten(1)  # [S, D]
        return self._fed(x + self.drop(self.merge(attended)))

    def newest(self, x: Tensor, offsets: Tensor, max_len: int) -> Tensor:
        """What `forward` makes of each user's last event, [B, D], without the others; nobody is without events. For evaluation:
        no attention weight is dropped."""
        last = offsets[1:] - 1
        attended = attend_newest(self.project, self.heads, self.norm_attention(x), offsets, max_len)
        return self._fed(x[last] + self.drop(self.merge(attended)))

    def _fed(self, x: Tensor) -> Tensor:
        return x + self.drop(self.narrow(self.drop(self.activation(self.widen(self.norm_feed(x))))))


def attend_newest(project: nn.Linear, heads: int, x: Tensor, offsets: Tensor, max_len: int) -> Tensor:
    """Attention of each user's last event to all of his, x [S, D] -> [B, D]; nobody is without events.

    `project` makes [queries; keys; values] of an event; queries are made of the last ones alone. A softmax does not see the
    keys' bias, and the values' is added behind it."""
    users, (ask, tell) = len(offsets) - 1, project.weight.split([x.shape[1], 2 * x.shape[1]])
    ask_bias, _, value_bias = project.bias.chunk(3)
    q = F.linear(x[offsets[1:] - 1], ask, ask_bias).unflatten(1, (heads, 1, -1))  # [B, H, 1, D / H]
    told, seen = F.linear(x, tell), None
    if len(x) == users * max_len:
        told = told.unflatten(0, (users, max_len))
    else:
        told = pad(told, offsets, max_len)
        seen = (torch.arange(max_len, device=x.device) < offsets.diff()[:, None])[:, None, None]  # [B, 1, 1, L]
    k, v = told.unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)  # 2 x [B, H, L, D / H]
    return F.scaled_dot_product_attention(q, k, v, seen).flatten(1) + value_bias


def through(blocks: nn.ModuleList, x: Tensor, offsets: Tensor, max_len: int, newest: bool) -> Tensor:
    """Events x [S, D] through all blocks -> [S, D]; of each user who has events the `newest` alone, in order, where so asked."""
    *lower, top = blocks
    for block in lower if newest else blocks:
        x = block(x, offsets, max_len)
    if not newest:
        return x
    offsets = offsets[F.pad(offsets.diff() > 0, (1, 0), value=True)]
    return top.newest(x, offsets, max_len) if len(x) else x


def start_small(module: nn.Module, std: float = 0.02) -> None:
    """Weights of linear layers from Normal(0, std), their biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
