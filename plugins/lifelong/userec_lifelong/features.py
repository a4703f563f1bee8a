"""What TWIN knows of an event beside its item's inherent features: cross features, which the user brought about."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from userec.batch import History, Query, gather_positions
from userec.encoder.contract import Build

BUCKETS: Final = 40
"""Log2 buckets of a distance in events or an age in seconds: 2^39 s is 17,000 years."""


def log_bucket(x: Tensor) -> Tensor:
    """0 for x <= 0, then one bucket a doubling: 1, 2-3, 4-7, ..."""
    return torch.log2(x.clamp(min=0).double() + 1).ceil().long().clamp(max=BUCKETS - 1)


def _bucket_table(width: int) -> nn.Embedding:
    table = nn.Embedding(BUCKETS, width)
    nn.init.normal_(table.weight, std=0.1)
    return table


class Cross(nn.Module):
    """J features of (user, item, question), 8 dims each: how many events and how many seconds ago (log2 buckets), and whatever
    else the data keeps of an event: ids such as `action` from a table, numbers such as `rating` as a line in
    sign(x) log(1 + |x|)."""

    def __init__(self, build: Build, width: int) -> None:
        super().__init__()
        fields = build.schema.fields
        own = sorted(name for name in fields if "." not in name and name not in ("user", "item", "time", "session"))
        self.ids = tuple(name for name in own if fields[name].kind == "id" and not fields[name].many)
        self.numbers = tuple(name for name in own if fields[name].kind == "number")
        self.timed = "time" in fields
        self.buckets = nn.ModuleList(_bucket_table(width) for _ in range(1 + self.timed))
        self.id_tables = nn.ModuleList(build.table(fields[name].space, width) for name in self.ids)
        self.number_lines = nn.ModuleList(nn.Linear(1, width) for _ in self.numbers)
        self.count = 1 + self.timed + len(self.ids) + len(self.numbers)
        self.width = width

    @property
    def reads(self) -> frozenset[str]:
        """The fields that it found."""
        return frozenset({*self.ids, *self.numbers, *(("time", "asked.time") if self.timed else ())})

    def forward(self, history: History, query: Query, at: Tensor) -> Tensor:
        """Questions after events `at` [B, Q] -> [B, Q, L, J, width]."""
        rows, length = history.mask.shape
        place = torch.arange(length, device=at.device)
        distance = at.unsqueeze(2) - place  # [B, Q, L]
        found = [self.buckets[0](log_bucket(distance))]
        if self.timed:
            age = self.asked(history, query, at).unsqueeze(2) - history.events["time"].unsqueeze(1)
            found.append(self.buckets[1](log_bucket(age)))
        once = [table(history.events[name]) for name, table in zip(self.ids, self.id_tables, strict=True)]  # [B, L, width]
        for name, line in zip(self.numbers, self.number_lines, strict=True):
            x = torch.nan_to_num(history.events[name].float())
            once.append(line((x.sign() * x.abs().log1p()).unsqueeze(-1)))
        found += [x.unsqueeze(1).expand(rows, at.shape[1], length, self.width) for x in once]
        return torch.stack(found, 3)

    def asked(self, history: History, query: Query, at: Tensor) -> Tensor:
        """When each question is asked, [B, Q] seconds: the request's time where known, else that of the last event before it."""
        if "asked.time" in query.context:
            return query.context["asked.time"]
        return gather_positions(history.asked.get("asked.time", history.events["time"]), at)
