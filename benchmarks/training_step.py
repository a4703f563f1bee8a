"""Milliseconds of a training step on MovieLens-1M with a model's own recipe, of the userec that Python finds first:

    python benchmarks/training_step.py sasrec leave_last [--data-dir ../shared/data]

The median over the batches of the first epoch's beginning, the same in every version. `benchmarks/kernels.py` runs it in turn on
this checkout and on the commit before kernels were plugins."""

from __future__ import annotations

import argparse
import inspect
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent))
from spine import open_movielens

WARM: Final = 3
STEPS: Final = 25


def median_step(name: str, split: str, data_dir: Path) -> float:
    """Milliseconds."""
    import torch

    from userec.engine import device
    from userec.engine.learner import GradientLearner
    from userec.registry import load
    from userec.testing import open_session

    getattr(device, "choose_matmul", lambda: None)()  # what a run did before large products were an op's business
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as folder:
        coded, _ = open_movielens(data_dir, Path(folder))
        session = open_session(load().plugins, coded, {"encoder": {"name": name}, "split": {"name": split}})
        experiment = session.run.experiment
        model = session.compose(experiment)
        encoder = model.encoder
        encoder.begin_task(("next",), "train")
        assert experiment.objective is not None
        objective = model.build.objective(experiment.objective)
        learner = GradientLearner(encoder.train(), objective, experiment.train, 1, torch.device("cpu"))
        told: tuple[Any, ...] = (objective,)
        if "window" in inspect.signature(session.loader).parameters:  # before the loader asked the objective itself
            told = (encoder.window, objective.ahead, encoder.reads | objective.reads)
        loader = session.loader(model, ("next",), *told)
        taken = []
        for step, batch in zip(range(WARM + STEPS), loader.batches(0), strict=False):
            began = time.perf_counter()
            learner.step([batch], step, 0.0, 1000)
            taken.append(time.perf_counter() - began)
    return 1000 * statistics.median(taken[WARM:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("split")
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"))
    given = parser.parse_args()
    print(median_step(given.model, given.split, given.data_dir))
