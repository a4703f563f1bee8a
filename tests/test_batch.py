"""What flows, cut and moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from userec.batch import Batch, History, Query, Targets


def batch(rows: int) -> Batch:
    item = torch.arange(rows * 4).reshape(rows, 4)
    history = History(
        torch.arange(rows),
        {"item": item},
        item > 2,
        {"profile.age": torch.arange(rows)},
        ("next",),
        {"asked.time": item},
        {"seen": torch.ones(rows, 2)},
        0.5,
    )
    query = Query(history.last[:, None], torch.arange(6).reshape(1, 1, 6), {"asked.time": item[:, :1]})
    labels = torch.ones(rows, 1, 6, 1)
    return Batch(history, Targets(query, item[:, :1], labels, labels[:, :, 0, 0]), torch.arange(rows), torch.arange(rows) + 9)


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    entries = value.values() if isinstance(value, Mapping) else [getattr(value, f.name) for f in fields(value)]
    return [x for entry in entries if isinstance(entry, Tensor | Mapping | History | Query | Targets) for x in tensors(entry)]


def test_rows_are_cut_everywhere_but_where_one_stands_for_all() -> None:
    whole = batch(5)
    part = whole.rows(2, 4)
    assert part.history.tasks == ("next",)
    assert part.history.epoch == 0.5
    assert len(tensors(part)) == 14
    for mine, theirs in zip(tensors(part), tensors(whole), strict=True):
        assert torch.equal(mine, theirs[2:4] if len(theirs) == 5 else theirs)
    assert part.targets is not None
    assert part.targets.query.ids is not None
    assert part.targets.query.ids.shape == (1, 1, 6)


def test_every_tensor_moves() -> None:
    assert {x.device.type for x in tensors(batch(3).to("meta"))} == {"meta"}
