"""TensorBoard as an observer: every number of a run under `DIR/tensorboard`."""

from __future__ import annotations

from typing import Any

from userec.markers import hookimpl


@hookimpl
def userec_run_started(run: Any) -> None:
    """Open the writer."""
    if run.out is not None:
        from torch.utils.tensorboard import SummaryWriter

        run.kept["tensorboard"] = SummaryWriter(str(run.out / "tensorboard"))


@hookimpl
def userec_progress(run: Any, step: int, values: dict[str, float]) -> None:
    """Write the numbers."""
    if (writer := run.kept.get("tensorboard")) is not None:
        for name, value in values.items():
            writer.add_scalar(name, value, step)


@hookimpl
def userec_run_finished(run: Any, report: dict[str, Any]) -> None:
    """Write the final metrics and close."""
    if (writer := run.kept.pop("tensorboard", None)) is not None:
        for row in report["metrics"]:
            if row["value"] is not None:
                writer.add_scalar(f"final/{row['split']}/{row['evaluator']}/{row['task']}/{row['metric']}", row["value"], 0)
        writer.close()
