"""The contract of an objective: a question (which positions, which candidates) times a price (scores -> loss)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from userec.batch import Batch
from userec.capability import Can
from userec.config import Plugin
from userec.encoder.contract import Build, Encoder


@dataclass(frozen=True)
class Step:
    """What one step came to."""

    loss: Tensor  # scalar, mean over the questions asked
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # {name: detached scalar} to log
    state: Mapping[str, Tensor] | None = None  # state out, for an encoder that carries it
    targets: int = 0  # questions answered, for throughput


class Objective(nn.Module, Plugin, ABC):
    """What is asked and what an answer costs. `needs` and `reads` are final after construction."""

    needs: Can = Can.GRADIENT
    reads: frozenset[str] = frozenset({"item"})
    hides: frozenset[str] = frozenset()
    """Fields that this objective predicts: an encoder that reads one is refused."""
    ahead: int = 0
    """Events past the window that `prepare` may look at (next item 1, future W)."""
    windows: bool = False
    """Whether a row is asked about many of its events whatever the encoder; else one that answers a single position at a time
    gets a row a question."""
    odds: bool = False
    """Whether its price makes a score a log-odds: then 1 / (1 + exp(-score)) is a probability."""
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ()
    """Settings that change what it needs, so that a refusal can say what would fit: `({"negatives": 100},)`."""

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Rows of window + `ahead` events -> the question and its `targets`. Pure: all chance is in `rng`."""

    @abstractmethod
    def loss(self, encoder: Encoder, batch: Batch) -> Step:
        """Encode, score, price."""

    def begin_task(self, encoder: Encoder, tasks: tuple[str, ...], phase: str) -> None:
        """Called before a task group is trained."""

    def end_task(self, encoder: Encoder, tasks: tuple[str, ...], phase: str) -> None:
        """Called after it."""
