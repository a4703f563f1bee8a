"""A Markov chain of order k with back-off: what follows the last k items, smoothed by what follows fewer of them.

Witten-Bell interpolation (Witten & Bell 1991, method C): P_k(x) = (n_k(x) + T_k P_{k-1}(x)) / (n_k + T_k), where n_k(x) counts x
after the last k items, n_k is their sum and T_k the number of distinct x; a context never seen leaves P_{k-1}. Order 0 is
popularity backed by the uniform distribution: P_0(x) = (n_0(x) + a) / (n_0 + a N).

Where we depart: contexts that fewer than `min_count` events followed count as never seen (2 by default; 1 keeps all), and where
the data has sessions no context crosses them: a question continues the session of the event before it, and an event of no
session is a session of its own."""

from __future__ import annotations

import torch
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Batch, Encoded, History, Query
from userec.capability import Can
from userec.config import Config
from userec.encoder.contract import Build, Encoder
from userec.schema import FIRST
from userec_markov import contexts


class MarkovConfig(Config):
    """How far back, and how much is believed."""

    order: int = Setting(2, ge=1, le=5)
    """Items in the longest context."""
    smoothing: float = Setting(1.0, gt=0)
    """a of P_0: events added to each item's count."""
    min_count: int = Setting(2, ge=1)
    """Contexts that fewer events followed are left out."""


class Markov(Encoder):
    """What follows the last k items, with back-off.

    Scores are log-probabilities over the real ids; tokens [B, L, 1] are the item ids themselves.

    It reads `session` where the data has it."""

    name = "markov"
    fidelity = "paper"
    offers = Can.SCORE_CATALOG | Can.CAUSAL | Can.ANY_POSITION
    Config = MarkovConfig

    def __init__(self, config: MarkovConfig, build: Build) -> None:
        super().__init__(config, build)
        self.dim, self.window, self.size = 1, config.order, build.schema.spaces["item"]
        self.sessions = "session" in build.schema.fields
        self.reads = frozenset({"item", "session"} if self.sessions else {"item"})
        self.grams = contexts.Grams(config.order)
        self._tables: tuple[Tensor, Tensor, list[contexts.Order]] | None = None  # the counts that it is of, P_0 [n], orders
        self.tasks = build.schema.all_tasks

    def refuses(self, tasks: tuple[str, ...]) -> list[str]:
        """It predicts which event follows, nothing else."""
        return contexts.refusals(self.name, self.tasks, tasks)

    def partial_fit(self, batch: Batch) -> None:
        """Count every event of the rows after the items before it. Rows are whole sequences: no context reaches another user."""
        item = batch.history.events["item"]
        asked = batch.history.mask & (item >= FIRST)
        self.grams.add(contexts.grams(item, asked, self.config.order, self._start(batch.history)))

    def encode(self, history: History) -> Encoded:
        """Nothing is worked out before a question is put."""
        return Encoded(history, history.events["item"].unsqueeze(-1).float())

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, 1] log-probabilities: of the whole space, or of `query.ids`."""
        popular, orders = self._made()
        item, start = encoded.history.events["item"], self._start(encoded.history)
        base = popular[None] if query.ids is None else popular[query.ids].expand(*query.at.shape, -1).flatten(0, 1)
        return contexts.interpolate(orders, item, query, base, self.size, start).unsqueeze(-1)

    def _start(self, history: History) -> Tensor | None:
        """The position that begins each event's session [B, L]."""
        return contexts.starts(history.events["session"]) if self.sessions else None

    def _made(self) -> tuple[Tensor, list[contexts.Order]]:
        """P_0 [n], 0 at reserved ids, and the orders from 1 on; made at the first question after a count."""
        counts = self.grams.merged()
        if self._tables is None or self._tables[0] is not counts:
            popular = torch.from_numpy(self.grams.popularity(self.size)) + self.config.smoothing
            popular[:FIRST] = 0
            orders = [order.to(counts.device) for order in self.grams.orders(self.size, self.config.min_count)]
            self._tables = counts, (popular / popular.sum()).float().to(counts.device), orders
        return self._tables[1:]
