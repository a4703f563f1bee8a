"""Bags by torch's own embedding_bag: the rows gathered are never held, forward or backward."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from userec.kernel.dtypes import wide
from userec.kernel.reference.jagged_embedding_bag import check_bag


def jagged_embedding_bag(weight: Tensor, ids: Tensor, offsets: Tensor, factors: Tensor | None = None, *, mode: str) -> Tensor:
    """As the reference; the gradient of the table is dense, so a bfloat16 table may be widened whole: torch would add up its
    gradient in bfloat16."""
    check_bag(weight, ids, factors, mode)
    table = wide(weight)
    scale = None if factors is None else factors.to(table.dtype)
    bags = F.embedding_bag(ids.long(), table, offsets.long(), mode=mode, per_sample_weights=scale, include_last_offset=True)
    return bags.to(weight.dtype)
