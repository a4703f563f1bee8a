"""A session of the engine as a run makes it, for tests that train or judge without the command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from userec.config import Ref
from userec.dataset.events import Coded
from userec.dataset.split import divide
from userec.engine.compose import Builder
from userec.engine.experiment import resolve
from userec.engine.session import Host, Run, Session, task_of
from userec.kernel.dispatch import Kernels
from userec.testing.build import kernels_of


def unheard(line: str) -> None:
    """Nobody reads along."""


def open_session(
    plugins: Mapping[str, Mapping[str, Any]], coded: Coded, said: Mapping[str, Any], tell: Callable[[str], None] = unheard
) -> Session:
    """The session of an experiment over coded data; `said` lacks only the data set: {"encoder": {"name": "markov"}}.

    Its settings are `session.run.experiment`. Raises UserError as a run does."""
    encoder = Ref(**said["encoder"])
    recipe = plugins["encoders"][encoder.name].recipe
    experiment = resolve({"dataset": {"name": coded.name}, **said}, recipe, task_of(coded, said.get("task")))
    division = divide(coded, experiment.split)
    build = Builder.of(plugins, coded, Kernels(kernels_of(plugins)), division.train)
    run = Run(encoder.name, coded.name, experiment, None)
    return Session(Host(plugins, tell=tell), run, coded, division, build, torch.device("cpu"))
