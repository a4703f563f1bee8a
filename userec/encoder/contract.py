"""The contract of an encoder: `encode` is what does not depend on the candidate, `score` is what does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from userec.batch import Batch, Encoded, History, Query, gather_positions
from userec.capability import Can
from userec.config import Config, Plugin, Ref
from userec.schema import Schema

if TYPE_CHECKING:
    from userec.dataset.events import Events
    from userec.objective.contract import Objective


class Table(Protocol):
    """Embeddings of a label space, as `build.table` gives them: a module called with ids."""

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., D]; padding is zero."""
        ...

    def all(self) -> Tensor:
        """[n, D], row 0 padding, row 1 unknown."""
        ...


class Build(Protocol):
    """All that a plugin may know of the world, made by the engine."""

    schema: Schema
    catalog: Mapping[str, Mapping[str, Tensor]]
    """{space: {field: [n, ...]}}: features of items, coded; reserved rows are 0."""
    train: Events | None
    """The training events alone (popularity, logQ, offline clusters); None when an encoder is restored."""
    dim: int | None
    """Width of the composed encoder, for objectives and evaluators."""

    def table(self, space: str, dim: int) -> Any:
        """A `Table` of the space: the one place for label spaces and sharding."""
        ...

    def encoder(self, ref: Ref | str) -> Encoder:
        """A nested encoder by name."""
        ...

    def objective(self, ref: Ref | str) -> Objective:
        """A nested objective by name."""
        ...

    def op(self, name: str) -> Callable[..., Any]:
        """The kernel of that name, chosen by what the machine and the call allow."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """`x` over all ranks, differentiable; the identity alone."""
        ...


class Encoder(nn.Module, Plugin, ABC):
    """A model of users. The smallest one sets `name`, `offers`, `__init__`, `encode` and `candidates`.

    `super().__init__(config, build)` keeps the config and takes `dim` from it. All that must survive is in `state_dict()`."""

    offers: Can = Can.GRADIENT
    reads: frozenset[str] = frozenset({"item"})
    """Fields it needs (`item`, `time`, `profile.age`, `asked.time`): final after construction. Optional ones are not listed."""
    dim: int = 0
    """Width of `tokens` and `user`."""
    window: int | None = None
    """How many last events it can use; targets and "seen" never depend on it."""
    recipe: ClassVar[Mapping[str, Any]] = {}
    """A partial experiment: `objective` and `monitor` per kind of task, `train`, `batch`; what the user says stands over it."""
    phases: ClassVar[tuple[str, ...]] = ("train",)

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__()
        self.config = config
        self.dim = int(getattr(config, "dim", 0))
        self.window = getattr(config, "window", None)

    def refuses(self, tasks: tuple[str, ...]) -> list[str]:
        """Reasons why it cannot be trained on this group of tasks; told before anything trains."""
        return []

    @abstractmethod
    def encode(self, history: History) -> Encoded:
        """Events -> tokens [B, L, D], user [B, D] where EMBED_USER is offered.

        Where `history.newest` holds, tokens that a question after the last event does not need may be zero. Who reads all tokens
        of an encoder nested in it unsets it first."""

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, D]: the user as each question sees him; by default the token at `query.at`, zeros before any event."""
        return gather_positions(encoded.tokens, query.at)

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """DOT_SCORE: (weight, bias) of the whole space, [n, D] and [n], or of `ids` [..., C]: [..., C, D] and [..., C]."""
        raise TypeError(f"encoder {self.name!r} has no candidates: it does not offer DOT_SCORE")

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, A]: higher is better. Inherited where DOT_SCORE is offered; A is 1 then."""
        weight, bias = self.candidates(encoded.history.tasks, query.ids)
        asked = self.queries(encoded, query)  # [B, Q, D]
        if query.ids is None:
            scores = asked @ weight.T  # [B, Q, n]
        else:
            scores = torch.matmul(weight, asked.unsqueeze(-1)).squeeze(-1)  # [B, Q, C]
        return (scores if bias is None else scores + bias).unsqueeze(-1)

    def auxiliary(self, encoded: Encoded, query: Query | None) -> Mapping[str, Tensor]:
        """Training only: a scalar is added to the loss, scores [B, Q, C, A] are priced like `score`."""
        return {}

    def partial_fit(self, batch: Batch) -> None:
        """One counting pass over training rows; only for an encoder without GRADIENT."""
        raise TypeError(f"encoder {self.name!r} trains by gradient")

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Called before a task group is trained: make heads, take a frozen teacher."""

    def end_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Called after it: drop the teacher, prune. Optimizers are made after `begin_task`."""


class NoConfig(Config):
    """Nothing to set."""


def has_scores(encoder: Encoder) -> bool:
    """Whether it scores candidates at all: one that only embeds users is trained on no task, and probed on all."""
    return Can.DOT_SCORE in encoder.offers or type(encoder).score is not Encoder.score
