"""The journal: every number of a run as one JSON line in `DIR/log.jsonl`, appended, so that a resumed run goes on in it."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from userec.markers import hookimpl


def _append(run: Any, entry: dict[str, Any]) -> None:
    if run.out is not None:
        with (run.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": round(time.time(), 3), **entry}) + "\n")


@hookimpl
def userec_run_started(run: Any) -> None:
    """The first line."""
    _append(run, {"event": "started", "model": run.model, "dataset": run.dataset})


@hookimpl
def userec_progress(run: Any, step: int, values: dict[str, float]) -> None:
    """A line of numbers; what is not finite is null."""
    numbers = {name: value if math.isfinite(value) else None for name, value in values.items()}
    _append(run, {"event": "progress", "step": step, **numbers})


@hookimpl
def userec_run_finished(run: Any, report: dict[str, Any]) -> None:
    """The last line."""
    _append(run, {"event": "finished", "timing": report["timing"]})
