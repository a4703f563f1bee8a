"""The hooks, nothing else. A hook returns values (classes); each docstring ends with a whole plugin.

A plugin is a module with `@hookimpl` functions, named by an entry point of the group `userec1`:

    [project.entry-points.userec1]
    my-plugin = "my_plugin"
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from userec.markers import hookspec

if TYPE_CHECKING:
    from userec.dataset.contract import Dataset
    from userec.encoder.contract import Encoder
    from userec.evaluator.contract import Evaluator
    from userec.kernel.contract import Kernel
    from userec.objective.contract import Objective


@hookspec
def userec_datasets() -> Iterable[type[Dataset]]:  # type: ignore[empty-body]
    """Data sets, by class. Called when a data set is asked for or listed.

    Example:
        class Toy(Dataset):
            name = "toy"
            def events(self):
                return pd.DataFrame({"user": [1, 1, 1], "item": ["a", "b", "c"], "time": [1, 2, 3]})

        @hookimpl
        def userec_datasets():
            return [Toy]
    """


@hookspec
def userec_encoders() -> Iterable[type[Encoder]]:  # type: ignore[empty-body]
    """Encoders (models), by class. Called when a model is asked for or listed.

    Example:
        class Newest(Encoder):
            name = "newest"
            offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.ANY_POSITION
            class Config(Config):
                dim: int = 32
            def __init__(self, config, build):
                super().__init__(config, build)
                self.items = build.table("item", config.dim)
            def encode(self, history):
                return Encoded(history, self.items(history.events["item"]))
            def candidates(self, tasks, ids=None):
                return (self.items.all() if ids is None else self.items(ids)), None

        @hookimpl
        def userec_encoders():
            return [Newest]
    """


@hookspec
def userec_objectives() -> Iterable[type[Objective]]:  # type: ignore[empty-body]
    """Objectives (question x price), by class. Called when an encoder with GRADIENT is composed.

    Example:
        class Last(NextItem):
            name = "last-item"
            class Config(NextItem.Config):
                positions: str = "last"

        @hookimpl
        def userec_objectives():
            return [Last]
    """


@hookspec
def userec_evaluators() -> Iterable[type[Evaluator]]:  # type: ignore[empty-body]
    """Evaluators, by class. All that fit the encoder and the data run by default.

    Example:
        class Norm(Evaluator):
            name = "norm"
            needs = Can.EMBED_USER
            def evaluate(self, encoder, data, split):
                for task in data.trained:
                    norms = torch.cat([encoder.encode(b.history).user.norm(dim=1) for b in data.batches(split, task)])
                    yield Metric(task, "norm", "norm[l2, mean over users]", float(norms.mean()), n=len(norms))

        @hookimpl
        def userec_evaluators():
            return [Norm]
    """


@hookspec
def userec_kernels() -> Iterable[Kernel]:  # type: ignore[empty-body]
    """Kernels: providers of ops, chosen by what the machine and the call allow. Importing one must succeed everywhere.

    Example:
        @hookimpl
        def userec_kernels():
            return [Kernel("jagged_attention", "mine", priority=50, load=lambda: my_attention)]
    """


@hookspec
def userec_run_started(run: Any) -> None:
    """Observer: a run is composed and about to train; `run.out` is its folder, `run.experiment` its settings.

    Example:
        @hookimpl
        def userec_run_started(run):
            print("started", run.model)
    """


@hookspec
def userec_progress(run: Any, step: int, values: dict[str, float]) -> None:
    """Observer: called every few steps and after each validation with named numbers (`train/loss`, `valid/ranking/ndcg@10`).

    Example:
        @hookimpl
        def userec_progress(run, step, values):
            print(step, values)
    """


@hookspec
def userec_run_finished(run: Any, report: dict[str, Any]) -> None:
    """Observer: the report as it was written to `report.json`.

    Example:
        @hookimpl
        def userec_run_finished(run, report):
            print(report["timing"])
    """
