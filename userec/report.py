"""The report of a run: one JSON object, its keys fixed by schema 1, and the per-user values beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
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


def write_per_user(path: Path, rows: Iterable[Row], users: np.ndarray) -> None:
    """One line a user and metric: encoder, evaluator, task, split, metric, user (external id, by `users`), value."""
    kept = [(row, row.metric.users, row.metric.values) for row in rows]
    told = [(row, who, values) for row, who, values in kept if who is not None and values is not None]
    sizes = [len(who) for _, who, _ in told]
    words = {
        "encoder": [row.encoder for row, _, _ in told],
        "evaluator": [row.evaluator for row, _, _ in told],
        "task": [row.metric.task for row, _, _ in told],
        "split": [row.split for row, _, _ in told],
        "metric": [row.metric.metric for row, _, _ in told],
    }
    columns: dict[str, Any] = {name: pd.Categorical(word).repeat(sizes) for name, word in words.items()}
    columns["user"] = users[np.concatenate([who for _, who, _ in told])] if told else users[:0]
    columns["value"] = np.concatenate([values for _, _, values in told]) if told else np.zeros(0)
    pd.DataFrame(columns).to_parquet(path, index=False)
