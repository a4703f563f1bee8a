"""A Markov chain of order k with back-off: what follows the last k items, smoothed by what follows fewer of them.

Witten-Bell interpolation (Witten & Bell 1991, method C): P_k(x) = (n_k(x) + T_k P_{k-1}(x)) / (n_k + T_k), where n_k(x) counts x
after the last k items, n_k is their sum and T_k the number of distinct x; a context never seen leaves P_{k-1}. Order 0 is
popularity backed by the uniform distribution: P_0(x) = (n_0(x) + a) / (n_0 + a N)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Batch, Encoded, History, Query, gather_positions
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
    """Scores are log-probabilities over the real ids; tokens [B, L, 1] are the item ids themselves."""

    name = "markov"
    fidelity = "paper"
    offers = Can.SCORE_CATALOG | Can.CAUSAL | Can.ANY_POSITION
    Config = MarkovConfig
    grams: Tensor  # [M, order + 1] int32: the items before an event, oldest first, and the event; 0 before a row's start
    counts: Tensor  # [M] int64

    def __init__(self, config: MarkovConfig, build: Build) -> None:
        super().__init__(config, build)
        self.dim, self.window, self.size = 1, config.order, build.schema.spaces["item"]
        self.register_buffer("grams", torch.zeros(0, config.order + 1, dtype=torch.int32))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self._new: list[np.ndarray] = []  # n-grams not merged yet
        self._index: tuple[Tensor, list[contexts.Order]] | None = None
        self.tasks = build.schema.all_tasks

    def refuses(self, tasks: tuple[str, ...]) -> list[str]:
        """It predicts which event follows, nothing else."""
        own = " or ".join(f"--task {task.name}" for task in self.tasks if task.events)
        way = f"use {own}, or another model" if own else "use another model"
        labelled = [task.name for task in self.tasks if task.name in tasks and not task.events]
        return [f"encoder 'markov' predicts the next item only, not task {name!r}, which has labels: {way}" for name in labelled]

    def partial_fit(self, batch: Batch) -> None:
        """Count every event of the rows after the items before it. Rows are whole sequences: no context reaches another user."""
        item = batch.history.events["item"]
        self._new.append(contexts.grams(item, batch.history.mask & (item >= FIRST), self.config.order))
        self._index = None

    def encode(self, history: History) -> Encoded:
        """Nothing is worked out before a question is put."""
        return Encoded(history, history.events["item"].unsqueeze(-1).float())

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, 1] log-probabilities: of the whole space, or of `query.ids`."""
        popular, orders = self._tables()
        at, item = query.at.flatten(), encoded.history.events["item"]
        mass, path = self._path(orders, item, query.at)
        if query.ids is None:
            p = mass[:, None] * popular  # [R, n], R = B * Q
            for order, (context, weight) in zip(orders, path, strict=True):
                _add_successors(p, order, context, weight)
        else:
            ids = query.ids.expand(*query.at.shape, -1).reshape(len(at), -1)  # [R, C]
            p = mass[:, None] * popular[ids]
            for order, (context, weight) in zip(orders, path, strict=True):
                pair = contexts.lookup(order.pairs, torch.where(context >= 0, context * self.size, -self.size)[:, None] + ids)
                p += torch.where(pair >= 0, _at(order.counts, pair) * weight[:, None], 0.0)
        return p.clamp(min=torch.finfo(p.dtype).tiny).log().reshape(*query.at.shape, -1, 1)

    def _path(self, orders: list[contexts.Order], item: Tensor, at: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """What is left for order 0 [R]; of each order its context [R], -1 = never seen, and what one count there is worth [R]."""
        context, path = torch.zeros_like(at).flatten(), []
        for k, order in enumerate(orders):
            oldest = gather_positions(item, (at - k).clamp(min=-1)).flatten()
            known = (context >= 0) & (oldest > 0)
            context = torch.where(known, contexts.lookup(order.contexts, context * self.size + oldest), -1)
            path.append(context)
        mass, weights = torch.ones(at.numel(), device=at.device), []
        for order, context in zip(reversed(orders), reversed(path), strict=True):
            total, kinds = _at(order.totals, context), _at(order.kinds, context)
            seen = context >= 0
            weights.append(torch.where(seen, mass / (total + kinds), 0.0))
            mass = torch.where(seen, mass * kinds / (total + kinds), mass)
        return mass, list(zip(path, reversed(weights), strict=True))

    def _merge(self) -> None:
        """Take what was counted since into `grams` and `counts`."""
        if self._new:
            counts = np.concatenate([self.counts.cpu().numpy(), np.ones(sum(map(len, self._new)), np.int64)])
            rows, counts = contexts.merge(np.concatenate([self.grams.cpu().numpy(), *self._new]), counts)
            self.grams, self.counts = (torch.from_numpy(x).to(self.counts.device) for x in (rows, counts))
            self._new = []

    def _tables(self) -> tuple[Tensor, list[contexts.Order]]:
        """P_0 [n], 0 at reserved ids, and the orders from 1 on; made at the first question after a count."""
        if self._index is None or self._index[0].device != self.counts.device:
            self._merge()
            rows, counts = self.grams.cpu().numpy(), self.counts.cpu().numpy()
            popular = torch.from_numpy(np.bincount(rows[:, -1], counts, self.size)) + self.config.smoothing
            popular[:FIRST] = 0
            device = self.counts.device
            orders = [order.to(device) for order in contexts.orders(rows, counts, self.size, self.config.min_count)]
            self._index = (popular / popular.sum()).float().to(device), orders
        return self._index

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._merge()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """The buffers take the lengths that were saved."""
        for name in ("grams", "counts"):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty(saved.shape, dtype=saved.dtype, device=self.counts.device))
        self._new, self._index = [], None
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _at(values: Tensor, index: Tensor) -> Tensor:
    """`values` at `index`, anything where it is -1."""
    return values[index.clamp(min=0)] if len(values) else torch.ones_like(index, dtype=values.dtype)


def _add_successors(p: Tensor, order: contexts.Order, context: Tensor, weight: Tensor) -> None:
    """Add count * weight to `p` [R, n] at the successors of each row's context."""
    rows = (context >= 0).nonzero().squeeze(1)
    begin, number = order.offsets[context[rows]], order.kinds[context[rows]].long()
    owner = torch.repeat_interleave(rows, number)  # [sum of successors]
    first = torch.repeat_interleave(begin - (number.cumsum(0) - number), number)
    place = first + torch.arange(len(owner), device=p.device)
    p.view(-1).index_add_(0, owner * p.shape[1] + order.pairs[place] % p.shape[1], order.counts[place] * weight[owner])
