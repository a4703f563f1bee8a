"""The report of a run: one JSON object, its keys fixed by schema 1, and the per-user values beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from userec.evaluator.contract import Metric

SCHEMA = 1


@dataclass(frozen=True)
class Row:
    """A metric as the engine stamps it."""

    encoder: str
    evaluator: str
    split: str
    metric: Metric

    def as_json(self, *, with_encoder: bool) -> dict[str, Any]:
        """The row of `report.json`; what is not a number is null."""
        m = self.metric
        row: dict[str, Any] = {"encoder": self.encoder} if with_encoder else {}
        row |= {"evaluator": self.evaluator, "task": m.task, "split": self.split, "metric": m.metric}
        row |= {"value": _number(m.value), "low": _number(m.low), "high": _number(m.high), "n": m.n, "definition": m.definition}
        if m.slice:
            row["slice"] = m.slice
        if m.period is not None:
            row["period"] = m.period
        return row


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def write_json(path: Path, value: Any) -> None:
    """Write atomically; NaN is refused rather than written."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def write_per_user(path: Path, rows: Iterable[Row], users: Sequence[Any]) -> None:
    """One line a user and metric: encoder, evaluator, task, split, metric, user (external id), value."""
    frames = []
    names = pd.Index(users)
    for row in rows:
        m = row.metric
        if m.users is None or m.values is None:
            continue
        frame = pd.DataFrame({"user": names[m.users], "value": m.values})
        for column, word in zip(
            ("metric", "split", "task", "evaluator", "encoder"),
            (m.metric, row.split, m.task, row.evaluator, row.encoder),
            strict=True,
        ):
            frame.insert(0, column, pd.Categorical([word] * 1).repeat(len(frame)))
        frames.append(frame)
    columns = ["encoder", "evaluator", "task", "split", "metric"]
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[*columns, "user", "value"])
    for column in columns:
        table[column] = table[column].astype("category")
    table.to_parquet(path, index=False)
