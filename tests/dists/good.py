"""A whole plugin: a model, a data set, an objective, an evaluator, a kernel, an observer."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import pandas as pd
import torch

from userec.batch import Batch, Encoded, History
from userec.capability import Can
from userec.config import Config, Ref
from userec.dataset.contract import Dataset
from userec.encoder.contract import Encoder
from userec.evaluator.contract import Evaluator
from userec.kernel.contract import Case, Kernel
from userec.markers import hookimpl
from userec.objective.contract import Objective, Step

SEEN: list[int] = []


class Schedule(Config):
    rate: float = 0.5


class Newest(Encoder):
    """The newest item, embedded.

    More than one line is not in the summary."""

    name = "newest"
    offers = Can.GRADIENT | Can.DOT_SCORE
    recipe = {"objective": "none"}

    class Config(Config):
        dim: int = 32
        """Width of the embedding."""
        decay: float = 0.9  # per event
        names: tuple[str, ...] = ("a",)
        schedule: Schedule = Schedule()
        inner: Ref | None = None

    def encode(self, history: History) -> Encoded:
        return Encoded(history, torch.zeros(*history.mask.shape, self.dim))


class Toy(Dataset):
    name = "toy"
    fidelity = "official"
    summary = "Three events of one user."
    files = ("toy.csv",)

    def events(self) -> pd.DataFrame:
        return pd.DataFrame({"user": [1, 1, 1], "item": ["a", "b", "c"], "time": [1, 2, 3]})


class Nothing(Objective):
    """Costs nothing."""

    name = "none"
    hides = frozenset({"profile.age"})

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:
        return batch

    def loss(self, encoder: Encoder, batch: Batch) -> Step:
        return Step(torch.zeros(()))


class Silent(Evaluator):
    """Says nothing."""

    name = "silent"
    needs = Can.EMBED_USER

    def evaluate(self, encoder: Any, data: Any, split: Any) -> Iterable[Any]:
        return ()


def twice(x: torch.Tensor, *, times: int = 1) -> torch.Tensor:
    """2 x, so many times: x [N, D] -> [N, D]."""
    return x * 2**times


def twice_arguments(times: int, generator: torch.Generator) -> dict[str, Any]:
    return {"x": torch.randn(5, 4, generator=generator, dtype=torch.float64), "times": times}


def twice_cases() -> Iterable[Case]:
    for times in (0, 1, 3):
        yield Case(f"{times} times", partial(twice_arguments, times), user=("x",), out=("user",))


@hookimpl
def userec_encoders() -> list[type[Encoder]]:
    return [Newest]


@hookimpl
def userec_datasets() -> list[type[Dataset]]:
    return [Toy]


@hookimpl
def userec_objectives() -> list[type[Objective]]:
    return [Nothing]


@hookimpl
def userec_evaluators() -> list[type[Evaluator]]:
    return [Silent]


@hookimpl
def userec_kernels() -> list[Kernel]:
    return [Kernel("twice", "torch", 0, load=lambda: twice, reference=True, cases=twice_cases)]


@hookimpl
def userec_progress(step: int) -> None:
    SEEN.append(step)
