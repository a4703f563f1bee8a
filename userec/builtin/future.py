"""The objective `future`: which items a user will meet in a window of time, not only the very next one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field as Setting

from userec.batch import Batch
from userec.capability import Can
from userec.encoder.contract import Build
from userec.errors import UserError
from userec.markers import hookimpl
from userec.objective import questions
from userec.objective.choice import Choice, ChoiceConfig
from userec.objective.contract import Objective


class FutureConfig(ChoiceConfig):
    """How far the future reaches, who is asked about it, against which candidates, at what price."""

    window: int = Setting(20, ge=1)
    """Events in the future, at most."""
    days: float | None = Setting(None, gt=0)
    """Days in the future, at most, after the last event that is known; None = as far as `window` reaches."""
    question: Literal["dense", "last", "each"] = "dense"
    """`dense`: each position before the cut is asked for one random event behind it (PinnerFormer's dense all-action loss);
    `last`: the last one is asked for every event behind the cut (all-action); `each`: each position is asked for every one of
    the `window` events that follow it (Caser's T targets)."""
    cut: Literal["anywhere", "newest"] = "anywhere"
    """Where `dense` and `last` cut a row: behind any of its events, another one each time that the row is read; or as late as
    leaves a whole window, so that the same events are the answers in every epoch."""
    positions: Literal["all"] | Annotated[int, Setting(ge=1)] = "all"
    """`dense`: every position before the cut, or so many random ones a row."""


class Future(Choice):
    """What the answers are made of stands behind the last event that any of its questions may see; under `each`, behind the one
    position that it is the answer of."""

    name = "future"
    fidelity = "paper"
    Config = FutureConfig
    windows = True
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ({"negatives": 100}, {"negatives": 100, "question": "last"})

    def __init__(self, config: FutureConfig, build: Build) -> None:
        super().__init__(config, build)
        self.ahead = config.window
        self.windows = config.question != "last"
        self.needs |= Can.NOTHING if config.question == "last" else Can.CAUSAL
        if config.question == "each":
            self.needs |= Can.ANY_POSITION
        if config.days is not None:
            if config.question == "each":
                raise UserError("objective 'future': question 'each' counts events; leave objective.days out")
            self.reads |= {"time"}

    def ask(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Rows of up to the encoder's window and `window` events more."""
        config = self.config
        if config.question == "each":
            return questions.following(batch, config.window)
        seconds = None if config.days is None else round(config.days * 86_400)
        positions: questions.Positions = config.positions if config.question == "dense" else "last"
        return questions.future(batch, config.window, seconds, positions, rng, config.cut == "anywhere")


@hookimpl
def userec_objectives() -> list[type[Objective]]:
    """The objective."""
    return [Future]
