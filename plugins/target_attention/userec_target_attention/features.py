"""What an item is to these models: its id, and the side features that are ids."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from userec.encoder.contract import Build
from userec.schema import PAD


class ItemFeatures(nn.Module):
    """Item ids [...] -> [..., width]: the id's embedding beside those of its side features (`item.X` ids of the catalogue; the
    mean where an item has several), all times sqrt(dim) so that products move at once. Zeros at padding.

    With `penalised`, the mini-batch-aware L2 of Zhou et al. (KDD 2018), section 5.2: in each step only the parameters of ids
    that the batch touches are penalised, each by 1 / n_j, n_j its occurrences in the training events."""

    def __init__(self, build: Build, dim: int, side: int, penalised: bool) -> None:
        super().__init__()
        self.scale = dim**0.5
        self.items = build.table("item", dim)
        fields, catalog = build.schema.fields, build.catalog.get("item", {})
        self.sides = tuple(sorted(name for name in catalog if name in fields and fields[name].kind == "id"))
        self.side_tables = nn.ModuleList(build.table(fields[name].space, side) for name in self.sides)
        for index, name in enumerate(self.sides):
            column = torch.as_tensor(catalog[name]).long()
            self.register_buffer(f"side_{index}", column.reshape(len(column), -1), persistent=False)  # [n, P]
        self.width = dim + side * len(self.sides)
        if penalised:
            self._count(build)

    def forward(self, ids: Tensor) -> Tensor:
        """[..., width]."""
        parts = [self.items(ids) * self.scale]
        for index, table in enumerate(self.side_tables):
            values = self.get_buffer(f"side_{index}")[ids]  # [..., P]
            count = (values != PAD).sum(-1, keepdim=True).clamp(min=1)
            parts.append(table(values).sum(-2) * self.scale / count)
        return torch.cat(parts, -1)

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
