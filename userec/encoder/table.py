"""Embeddings of a label space: what `build.table` gives."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from userec.schema import FIRST, PAD


class EmbeddingTable(nn.Module):
    """ids [...] -> [..., D]. Rows 0 (padding) and 1 (unknown) start at zero; padding stays there."""

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, dim))
        self.reset()

    def reset(self, std: float = 0.02) -> None:
        """Normal(0, std), the reserved rows zero."""
        with torch.no_grad():
            nn.init.normal_(self.weight, std=std)
            self.weight[:FIRST] = 0

    def forward(self, ids: Tensor) -> Tensor:
        """[..., D]; no gradient reaches the padding row."""
        return F.embedding(ids, self.weight, padding_idx=PAD)

    def all(self) -> Tensor:
        """[n, D]."""
        return self.weight
