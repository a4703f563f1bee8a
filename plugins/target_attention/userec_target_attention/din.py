"""DIN: Deep Interest Network for Click-Through Rate Prediction (Zhou et al., KDD 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import torch
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Encoded, History, Query, gather_positions
from userec.capability import Can
from userec.config import Config
from userec.encoder.blocks.heads import Heads
from userec.encoder.blocks.item_features import ItemFeatures
from userec.encoder.contract import Build, Encoder
from userec.schema import PAD
from userec_target_attention.activations import Activation, settled
from userec_target_attention.attention import LocalActivation
from userec_target_attention.features import RECIPE, PenalisedItems
from userec_target_attention.network import PairNetwork

CELLS: Final = 2**22
"""Numbers (candidates x events or widths x questions) held at once where no gradient is asked for: 16 MiB."""


class DIN(Encoder):
    """Deep Interest Network: the user is what the target wakes in him, u(v) = sum_j a(e_j, v) e_j; an MLP on [u, v, u * v].

    Ranking the catalogue is fast because a(e_j, v) depends on two items and on no user: where all rows share their candidates,
    it is computed once for each (distinct item of the batch's histories, candidate), then gathered and summed for each user.

    Departures. The activation unit has the products v * e_j where the paper's figure has the outer product, and v - e_j, as in
    the authors' code. No profile or context fields. One score and its log-odds for the paper's softmax of two. Adam for SGD.
    Dice counts real cells alone, and its moving statistics are learnt. The user embedding, which the paper does not have, is
    u(v) of the user's last event v, plus the mean of his events."""

    name = "din"
    fidelity = "paper"
    offers = Can.GRADIENT | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER
    recipe: ClassVar[Mapping[str, Any]] = {
        **RECIPE,
        "batch": {**RECIPE["batch"], "eval_rows": 8192, "eval_tokens": 2**19},  # the more users, the more they share
    }

    class Config(Config):
        """Sizes."""

        dim: int = Setting(64, ge=1)
        """Width of the item id's embedding."""
        side: int = Setting(8, ge=1)
        """Width of each side feature of an item."""
        window: int = Setting(50, ge=1)
        attention: tuple[int, ...] = Setting((80, 40), min_length=1)
        """Widths of the activation unit's hidden layers."""
        attention_activation: Activation = "dice"
        """The authors' code: sigmoid."""
        softmax: bool = False
        """Normalise the activations over a history's events, as the authors' code does."""
        hidden: tuple[int, ...] = Setting((200, 80), min_length=1)
        """Widths of the head's hidden layers."""
        activation: Activation = "dice"
        """In the head."""
        l2: float = Setting(0.0, ge=0)
        """Mini-batch-aware L2 on the embeddings."""

    config: Config

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__(config, build)
        self.items = (PenalisedItems if config.l2 else ItemFeatures)(build, config.dim, config.side)
        self.spaces = {task.name: task.space for task in build.schema.all_tasks}
        self.dim = self.items.width
        self.labels = Heads(build, self.dim)
        self.reads = frozenset({"item", *self.items.sides})
        self.interest = LocalActivation(build, self.dim, config.attention, config.attention_activation, config.softmax)
        self.head = PairNetwork(build, self.dim, config.hidden, config.activation, difference=False)

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """A label space gets its own table: a class is a candidate like an item."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """The events, each by itself; `user` is what the last one wakes in all, plus their mean."""
        ids = history.events["item"]
        events, last = self.items(ids), history.last.reshape(-1, 1)  # [B, L, D], [B, 1]
        target = gather_positions(events, last).unsqueeze(2)  # [B, 1, 1, D]
        with settled(self.interest):
            woken = self.interest(events, history.mask.unsqueeze(1), target, last.unsqueeze(2) >= 0)
        mean = events.sum(1) / history.lengths.clamp(min=1).unsqueeze(1)
        cache = {}
        if not self._learns:
            cache["distinct"], cache["which"] = ids.unique(return_inverse=True)  # [n], [B, L]
        return Encoded(history, events, woken[:, 0, 0] + mean, cache=cache)

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, 1]; 0 at candidates that are padding. Without gradients candidates go in chunks of bounded memory."""
        assert query.ids is not None
        history, ids = encoded.history, query.ids
        table = self.labels.table_of(history.tasks, self.items)
        place = torch.arange(history.mask.shape[1], device=query.at.device)
        allowed = (place <= query.at.unsqueeze(2)) & history.mask.unsqueeze(1)  # [B, Q, L]
        shared = ids.shape[:2] == (1, 1) and "which" in encoded.cache and not self._learns
        one = max(query.at.numel(), 1) * max(len(place), self.dim)
        step = max(ids.shape[2] if self._learns else CELLS // one, 1)
        find = self._across if shared else self._each
        return torch.cat([find(encoded, allowed, table(part), part != PAD) for part in ids.split(step, 2)], 2).unsqueeze(3)

    def auxiliary(self, encoded: Encoded, query: Query | None) -> Mapping[str, Tensor]:
        """`l2` times the penalty of the items that the batch touches: events, and candidates where these are items."""
        if not self.config.l2:
            return {}
        tasks, touched = encoded.history.tasks, [encoded.history.events["item"].flatten()]
        if query is not None and query.ids is not None and (not tasks or self.spaces[tasks[0]] == "item"):
            touched.append(query.ids.flatten())
        return {"l2": self.config.l2 * self.items.penalty(torch.cat(touched))}

    @property
    def _learns(self) -> bool:
        """Whether a gradient or a batch's statistics may be asked for."""
        return self.training or torch.is_grad_enabled()

    def _each(self, encoded: Encoded, allowed: Tensor, target: Tensor, real: Tensor) -> Tensor:
        """[B, Q, C] of targets [B|1, Q|1, C, D], cell by cell."""
        interest = self.interest(encoded.tokens, allowed, target, real)  # [B, Q, C, D]
        return self.head(target, interest, real.expand(interest.shape[:3]))

    def _across(self, encoded: Encoded, allowed: Tensor, target: Tensor, real: Tensor) -> Tensor:
        """[B, Q, C] of targets [1, 1, C, D] that all rows share."""
        target, real = target[0, 0], real[0, 0]
        distinct, which = self.items(encoded.cache["distinct"]), encoded.cache["which"]
        interest = self.interest.across(distinct, which, encoded.tokens, allowed, target, real)  # [B, Q, C, D]
        own = interest.flatten(0, 1).transpose(0, 1).contiguous()  # [C, B * Q, D]
        return (self.head.across(target, own).T * real).unflatten(0, interest.shape[:2])
