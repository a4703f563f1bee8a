"""Full-catalogue ranking of DIN on MovieLens-1M: 6,040 users x 3,706 items, leave-one-out, length 50, RecBole's widths.

    python benchmarks/din_ranking.py [--data-dir ../shared/data] [--save]

RecBole's own evaluation of it extrapolates to 1.9 hours. Untrained weights: what is measured is time. The model goes through
the evaluator `ranking` as in a run, with all users. `--save` keeps the figure in benchmarks/results/din-ranking.json."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
from measure import publish
from spine import open_movielens

WIDTHS: Final = {
    "dim": 64,
    "window": 50,
    "attention": (256, 256, 256),
    "attention_activation": "sigmoid",
    "hidden": (256, 256, 256),
    "activation": "dice",
}
"""RecBole's layers: attention 256-256-256 sigmoid, head 256-256-256 Dice."""

ENOUGH: Final = 24 * 60
"""Minutes: no sample of users is taken."""


def rank(data_dir: Path) -> dict[str, Any]:
    """Seconds of the evaluator on the test split, and what it ranked."""
    import torch

    from userec.registry import load
    from userec.testing import open_session

    torch.manual_seed(0)
    registry = load()
    with tempfile.TemporaryDirectory() as folder:
        coded, _ = open_movielens(data_dir, Path(folder))
        said = {"encoder": {"name": "din", **WIDTHS}, "split": {"name": "leave_last"}}
        session = open_session(registry.plugins, coded, {**said, "evaluator": {"ranking": {"minutes": ENOUGH}}})
        model = session.compose(session.run.experiment)
        model.encoder.begin_task(("next",), "train")
        model.encoder.eval()
        evaluator = session.evaluator(model, "ranking")
        view = session.view(model, evaluator)
        began = time.perf_counter()
        metrics = list(evaluator.evaluate(model.encoder, view, "test"))
        seconds = time.perf_counter() - began
    hits = next(metric for metric in metrics if metric.metric == "hr@10")
    assert "sample" not in hits.definition, hits.definition
    return {
        "seconds": round(seconds, 1),
        "users": hits.n,
        "items": coded.schema.spaces["item"] - 2,
        "threads": torch.get_num_threads(),
        "definition": hits.definition,
        "encoder": model.encoder.config.model_dump(mode="json"),
    }


if __name__ == "__main__":
    publish("din-ranking", __doc__, rank)
