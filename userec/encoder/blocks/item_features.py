"""What an item is to a model: its id, and the side features of the catalogue that are ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from userec.encoder.contract import Build
from userec.schema import PAD


class ItemFeatures(nn.Module):
    """Item ids [...] -> [..., width]: the id's embedding beside those of its side features (`item.X` ids of the catalogue; the
    mean where an item has several), all times sqrt(dim) so that products move at once. Zeros at padding."""

    def __init__(self, build: Build, dim: int, side: int) -> None:
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

    def forward(self, ids: Tensor) -> Tensor:
        """[..., width]."""
        parts = [self.items(ids) * self.scale]
        for index, table in enumerate(self.side_tables):
            values = self.get_buffer(f"side_{index}")[ids]  # [..., P]
            count = (values != PAD).sum(-1, keepdim=True).clamp(min=1)
            parts.append(table(values).sum(-2) * self.scale / count)
        return torch.cat(parts, -1)
