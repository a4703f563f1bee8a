"""The mini-batch-aware L2 of DIN, and what its models are trained with."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from userec.encoder.blocks.item_features import ItemFeatures
from userec.encoder.contract import Build

RECIPE: Final[dict[str, Any]] = {
    "objective": {
        "item": {"name": "next_item", "positions": 8, "negatives": 4, "price": "bce"},
        "label": {"name": "labelled", "price": "bce", "negatives": 4},
        "click": {"name": "labelled", "price": "bce"},
        "rating": {"name": "labelled", "price": "squared"},
    },
    "monitor": {"item": "click/auc"},  # a walk over a large catalogue costs more than an epoch
    "train": {"optimizer": "adam", "lr": 3e-3, "epochs": 12, "patience": 3},
    "batch": {"rows": 32, "windows": "last"},
}


class PenalisedItems(ItemFeatures):
    """Item features with the mini-batch-aware L2 of Zhou et al. (KDD 2018), section 5.2: in each step only the parameters of ids
    that the batch touches are penalised, each by 1 / n_j, n_j its occurrences in the training events."""

    def __init__(self, build: Build, dim: int, side: int) -> None:
        super().__init__(build, dim, side)
        self._count(build)

    def penalty(self, ids: Tensor) -> Tensor:
        """Half the sum of ||w_j||^2 / n_j over the distinct ids j among the item `ids`, and over those of their side features."""
        touched = ids.unique()
        total = self._shrink(self.items, touched, self.get_buffer("occurs"))
        for index, table in enumerate(self.side_tables):
            values = self.get_buffer(f"side_{index}")[touched].unique()
            total = total + self._shrink(table, values, self.get_buffer(f"side_occurs_{index}"))
        return total / 2

    def _shrink(self, table: nn.Module, ids: Tensor, occurs: Tensor) -> Tensor:
        return (table(ids).square().sum(-1) / occurs[ids]).sum()

    def _count(self, build: Build) -> None:
        """n_j of items and of side features; at least 1, as for an id that only a drawn negative touches."""
        sizes = build.schema.spaces
        items = np.zeros(0, np.int64) if build.train is None else build.train.fields["item"]
        occurs = torch.as_tensor(np.bincount(items, minlength=sizes["item"])).float()  # [n]
        self.register_buffer("occurs", occurs.clamp(min=1))
        for index, name in enumerate(self.sides):
            values = self.get_buffer(f"side_{index}")
            own = torch.zeros(sizes[build.schema.fields[name].space])
            own.index_add_(0, values.flatten(), occurs.unsqueeze(1).expand(values.shape).flatten())
            self.register_buffer(f"side_occurs_{index}", own.clamp(min=1))
