"""The pre-LN block of a causal Transformer (Xiong et al. 2020), over packed events."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from userec.encoder.blocks.dropout import Dropout


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
        x = x + self.drop(self.merge(attended))
        return x + self.drop(self.narrow(self.drop(self.activation(self.widen(self.norm_feed(x))))))


def start_small(module: nn.Module, std: float = 0.02) -> None:
    """Weights of linear layers from Normal(0, std), their biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
