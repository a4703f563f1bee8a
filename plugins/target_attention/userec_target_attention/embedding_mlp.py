"""Embedding & MLP: events pooled to their mean, whatever the target; the base model of Zhou et al. (KDD 2018), section 4.2."""

from __future__ import annotations

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
from userec_target_attention.activations import Activation
from userec_target_attention.features import RECIPE
from userec_target_attention.network import PairNetwork


class EmbeddingMLP(Encoder):
    """The mean of the events' embeddings, the target's embedding, their product; an MLP on the three. What attention must beat.

    Departures: the product is not in the paper's base model, but DIN's head has it, so that the two differ in attention alone.
    No profile or context fields. Adam, as for DIN."""

    name = "embedding_mlp"
    fidelity = "paper"
    offers = Can.GRADIENT | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER
    recipe = RECIPE

    class Config(Config):
        """Sizes."""

        dim: int = Setting(64, ge=1)
        """Width of the item id's embedding."""
        side: int = Setting(8, ge=1)
        """Width of each side feature of an item."""
        window: int = Setting(50, ge=1)
        hidden: tuple[int, ...] = Setting((200, 80), min_length=1)
        """Widths of the MLP's layers."""
        activation: Activation = "dice"

    config: Config

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__(config, build)
        self.items = ItemFeatures(build, config.dim, config.side)
        self.dim = self.items.width
        self.labels = Heads(build, self.dim)
        self.reads = frozenset({"item", *self.items.sides})
        self.head = PairNetwork(build, self.dim, config.hidden, config.activation, difference=False)

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """A label space gets its own table: a class is a candidate like an item."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """The mean of events 0..t at each t; `user` is that of all."""
        events = self.items(history.events["item"])  # [B, L, D]
        count = torch.arange(1, events.shape[1] + 1, device=events.device).unsqueeze(1)
        means = events.cumsum(1) / count
        return Encoded(history, means, gather_positions(means, history.last.unsqueeze(1)).squeeze(1))

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, 1]; 0 at candidates that are padding."""
        assert query.ids is not None
        target = self.labels.table_of(encoded.history.tasks, self.items)(query.ids)  # [B|1, Q|1, C, D]
        user, real = gather_positions(encoded.tokens, query.at), query.ids != PAD  # [B, Q, D], [B|1, Q|1, C]
        shape = (*query.at.shape, query.ids.shape[2])
        if real.shape[:2] == (1, 1) and not self.training and not torch.is_grad_enabled():
            return (self.head.across(target[0, 0], user.flatten(0, 1)).T * real[0, 0]).reshape(*shape, 1)
        return self.head(target, user.unsqueeze(2), real.expand(shape)).unsqueeze(3)
