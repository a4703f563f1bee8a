"""Speeds of the spine, each beside what it is judged by, in one run:

    python benchmarks/spine.py [--data-dir ../shared/data] [--save]

start-up of the command, MovieLens-1M from archive to first batch (cold and warm), full-catalogue evaluation of SASRec against
its forward passes alone, and the loader's share of a training step. Medians; the machine is named. `--save` keeps the
figures in benchmarks/results/spine.json, which docs/results.md is made from."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import publish


def median_of(times: int, measure: Callable[[], float]) -> float:
    """The median of so many measurements."""
    return statistics.median(measure() for _ in range(times))


def clock(do: Callable[[], Any]) -> float:
    """Seconds that `do` takes."""
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def startup() -> dict[str, float]:
    """Seconds of the two commands that answer from metadata alone."""
    out = {}
    for words in (["--help"], ["plugins", "list"]):
        command = [str(Path(sys.executable).parent / "userec"), *words]
        out["userec " + " ".join(words)] = median_of(
            7, lambda command=command: clock(lambda: subprocess.run(command, capture_output=True, check=True))
        )
    return out


def open_movielens(data_dir: Path, cache_folder: Path) -> tuple[Any, Any]:
    """MovieLens-1M, coded and divided by leave-one-out."""
    from userec_datasets.movielens import MovieLens1M

    from userec.dataset import cache
    from userec.dataset.split import SplitConfig, divide

    coded = cache.load(MovieLens1M(MovieLens1M.Config(), data_dir), cache_folder)
    return coded, divide(coded, SplitConfig(name="leave_last"))


def first_batch(data_dir: Path) -> dict[str, float]:
    """Seconds from the archive to the first training batch, imports apart: without any cache, and with a warm one."""
    from userec.dataset.loader import BatchConfig, TrainLoader

    def go(folder: Path) -> None:
        coded, division = open_movielens(data_dir, folder)
        config = BatchConfig()
        loader = TrainLoader(
            coded, division, config=config, task="next", window=200, ahead=1, whole=True, fields={"item"}, seed=1
        )
        next(iter(loader.batches(0)))

    cold, warm = [], []
    for _ in range(5):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(clock(partial(go, Path(folder))))
            warm.append(clock(partial(go, Path(folder))))
    return {"cold": statistics.median(cold), "warm": statistics.median(warm)}


def evaluation_and_loader(data_dir: Path) -> dict[str, float]:
    """SASRec of its recipe, length 200: seconds of an evaluation and of its forward passes, of loading and of training steps."""
    import torch

    from userec.capability import Can
    from userec.engine.compose import Builder
    from userec.engine.experiment import resolve
    from userec.engine.learner import GradientLearner
    from userec.engine.session import Host, Run, Session
    from userec.kernel.dispatch import Kernels
    from userec.registry import load
    from userec.schema import NEXT

    registry = load()
    with tempfile.TemporaryDirectory() as folder:
        coded, division = open_movielens(data_dir, Path(folder))
        kernels = Kernels(kernel for provided in registry.plugins["kernels"].values() for kernel in provided)
        recipe = registry.find("encoders", "sasrec").recipe
        said = {"encoder": {"name": "sasrec"}, "dataset": {"name": "movielens-1m"}, "split": {"name": "leave_last"}}
        experiment = resolve(said, recipe, NEXT)
        host = Host(registry.plugins, tell=lambda line: None)
        about = Run("sasrec", "movielens-1m", experiment, None)
        device = torch.device("cpu")
        session = Session(host, about, coded, division, Builder.of(registry.plugins, coded, kernels, division.train), device)
        model = session.compose(experiment)
        encoder, evaluator = model.encoder.eval(), session.evaluator(model, "ranking")
        view = session.view(model, evaluator)
        assert Can.DOT_SCORE in encoder.offers

        def forward() -> None:
            for batch in view.batches("test", "next"):
                encoder.encode(batch.history)

        with torch.no_grad():
            forward()
            pairs = [(clock(forward), clock(lambda: list(evaluator.evaluate(encoder, view, "test")))) for _ in range(5)]
        encoder.begin_task(("next",), "train")
        assert experiment.objective is not None
        objective = model.build.objective(experiment.objective)
        learner = GradientLearner(encoder.train(), objective, experiment.train, 1, device)
        loader = session.loader(model, ("next",), objective)
        loading, stepping = [], []
        batches = iter(loader.batches(0))
        for step in range(25):
            began = time.perf_counter()
            batch = next(batches)
            loading.append(time.perf_counter() - began)
            stepping.append(clock(partial(learner.step, [batch], step, 0.0, 1000)))
    return {
        "forward": statistics.median(forward for forward, _ in pairs),
        "evaluation": statistics.median(whole for _, whole in pairs),
        "evaluation_over_forward": statistics.median(whole / forward for forward, whole in pairs),
        "loader": sum(loading),
        "steps": sum(stepping),
        "loader_share": sum(loading) / (sum(loading) + sum(stepping)),
    }


def figures(data_dir: Path) -> dict[str, Any]:
    """All of them."""
    first = {"startup_s": startup(), "movielens_1m_first_batch_s": first_batch(data_dir)}
    return {**first, "sasrec_movielens_1m": evaluation_and_loader(data_dir)}


if __name__ == "__main__":
    publish("spine", __doc__, figures)
