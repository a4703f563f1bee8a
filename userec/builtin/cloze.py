"""The objective `cloze`: some events are hidden, and asked for from those around them (BERT4Rec, Sun et al. 2019, 3.6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field as Setting

from userec.batch import Batch
from userec.markers import hookimpl
from userec.objective import questions
from userec.objective.choice import Choice, ChoiceConfig
from userec.objective.contract import Objective


class ClozeConfig(ChoiceConfig):
    """What is hidden, against which candidates it is held, at what price."""

    mask: float = Setting(0.2, ge=0, lt=1)
    """Share of a row's events that are hidden, drawn anew each time."""
    alone: float = Setting(0.1, ge=0, le=1)
    """Share of rows in which nothing is hidden but the event that follows: what is asked when the model is used."""


class Cloze(Choice):
    """Every hidden event is a question, and so is the event that follows each row. An encoder of any kind may be asked: a causal
    one answers a hidden event from what stands before it."""

    name = "cloze"
    fidelity = "variant"
    Config = ClozeConfig
    ahead = 1
    windows = True
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ({"negatives": 100},)

    def ask(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Rows of window + 1 events: the last is always hidden, the others by chance."""
        return questions.cloze(batch, self.config.mask, self.config.alone, rng)


@hookimpl
def userec_objectives() -> list[type[Objective]]:
    """The objective."""
    return [Cloze]
