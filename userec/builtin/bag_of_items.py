"""The bag of items: a user is what he took, uncounted order. The floor of re-identification and of probes, with no parameter."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional

from userec.batch import Batch, Encoded, History
from userec.capability import Can
from userec.config import Config
from userec.encoder.contract import Build, Encoder
from userec.markers import hookimpl
from userec.schema import FIRST


class BagConfig(Config):
    """How much an item weighs."""

    idf: bool = False
    """Rare items weigh more: ln((1 + n) / (1 + df)) + 1, of n training histories df hold the item (scikit-learn's smooth idf)."""


class TfIdfConfig(BagConfig):
    """The same, weighed."""

    idf: bool = True


class BagOfItems(Encoder):
    """user[i] = how often item i stands in the history (times its idf), the whole divided by its norm; [B, n], zero of none.

    Divided, for the histories that a probe is tested on are longer than those it was trained on; a cosine does not know the
    norm anyway. It scores nothing and has no tokens: zeros stand there that take no memory."""

    name = "bag_of_items"
    fidelity = "paper"
    Config = BagConfig
    offers = Can.EMBED_USER

    def __init__(self, config: BagConfig, build: Build) -> None:
        super().__init__(config, build)
        self.dim = build.schema.spaces["item"]
        self.histories: Tensor
        self.documents: Tensor
        if config.idf:
            self.register_buffer("histories", torch.zeros((), dtype=torch.int64))
            self.register_buffer("documents", torch.zeros(self.dim, dtype=torch.int64))  # [n] histories that hold the item

    def partial_fit(self, batch: Batch) -> None:
        """Count the histories, and those that hold each item; a plain bag has nothing to learn."""
        if self.config.idf:
            self.histories += (batch.history.lengths > 0).sum()
            self.documents += torch.bincount(self._cells(batch.history).unique() % self.dim, minlength=self.dim)

    def encode(self, history: History) -> Encoded:
        """The bag of the whole history; items of no real id are in none."""
        bag = self._counts(history).to(torch.get_default_dtype())
        if self.config.idf:
            bag = bag * (((1 + self.histories) / (1 + self.documents)).log() + 1).to(bag.dtype)
        tokens = bag.new_zeros(()).expand(*history.mask.shape, self.dim)  # [B, L, n], one number
        return Encoded(history, tokens, functional.normalize(bag, dim=1))

    def _counts(self, history: History) -> Tensor:
        """[B, n] int64"""
        rows = len(history.user)
        return torch.bincount(self._cells(history), minlength=rows * self.dim).view(rows, self.dim)

    def _cells(self, history: History) -> Tensor:
        """[sum L] int64: row * n + item of every event whose item has an id."""
        items = history.events["item"]
        cells = torch.arange(len(items), device=items.device)[:, None] * self.dim + items  # [B, L]
        return cells[history.mask & (items >= FIRST)]


class TfIdf(BagOfItems):
    """The bag with idf, under a name of its own (Salton & Buckley, 1988; raw counts, smooth idf, unit norm)."""

    name = "tf_idf"
    Config = TfIdfConfig


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    return [BagOfItems, TfIdf]
