"""The objective `next_item`: at each asked position, the item that really followed against the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field as Setting

from userec.batch import Batch
from userec.capability import Can
from userec.encoder.contract import Build, Encoder
from userec.markers import hookimpl
from userec.objective import questions
from userec.objective.choice import Choice, ChoiceConfig
from userec.objective.contract import Objective


class NextItemConfig(ChoiceConfig):
    """Which positions are asked, against which candidates, at what price."""

    positions: Literal["all", "last"] | Annotated[int, Setting(ge=1)] = "all"
    """Every position, the last one, or so many random ones a row."""


class NextItem(Choice):
    """Every following event of a row is a question; see `NextItemConfig` for what it costs."""

    name = "next_item"
    fidelity = "paper"
    Config = NextItemConfig
    ahead = 1
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ({"negatives": 100}, {"negatives": 100, "positions": "last"})

    def __init__(self, config: NextItemConfig, build: Build) -> None:
        super().__init__(config, build)
        self.positions = config.positions
        self.needs |= Can.NOTHING if config.positions == "last" else Can.CAUSAL

    def begin_task(self, encoder: Encoder, tasks: tuple[str, ...], phase: str) -> None:
        """Where one encoding answers one position only, the loader cuts a row a question, and the last position is asked."""
        super().begin_task(encoder, tasks, phase)
        if Can.ANY_POSITION not in encoder.offers:
            self.positions = "last"

    def ask(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Rows of window + 1 events: what follows the asked positions."""
        return questions.next_item(batch, self.positions, rng)


@hookimpl
def userec_objectives() -> list[type[Objective]]:
    """The objective."""
    return [NextItem]
