"""How far each context is believed: the weights of a context tree, found from its counts alone.

Every event is judged by a tree that never saw it: its own count is taken out of each context on its path, and its own ratio out
of each weight. That needs no order of events, so halves of the data counted apart, in either order, give the same weights. The
shortest context is judged against popularity overall, of which the experts of the newest events are no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from userec_markov.contexts import Order

STRENGTHS = 2.0 ** np.arange(-3, 7)
"""Strengths of the back-off that are tried."""

LIMIT = float(np.log(1e6 - 1))
"""Weights stay between 1e-6, where all belief is lost, and 1 - 1e-6."""


def posterior(prior: float, ratios: np.ndarray) -> np.ndarray:
    """The weight from `prior` and the sum of log(P_k / q_{k-1}) over what came: what w <- w P_k / q_k arrives at."""
    return 1 / (1 + np.exp(-np.clip(np.log(prior / (1 - prior)) + ratios, -LIMIT, LIMIT)))


LOST = float(posterior(0.5, np.array(-np.inf)))
"""The weight of what has lost all belief."""


def weighed(orders: Sequence[Order], q: np.ndarray, size: int, prior: float, strength: float | None) -> list[Order]:
    """The orders with `worth` and `rest` of the mixture. `q` [n]: each item's probability before any context, without one of its
    events.

    `strength` None: of `STRENGTHS` the one under which the events of that order are likeliest."""
    found: list[Order] = []
    shorter = np.arange(size)  # [S] the pairs of the order before
    for k, order in enumerate(orders, 1):
        pairs, counts = order.pairs.numpy(), order.counts.double().numpy()
        totals, kinds = order.totals.double().numpy(), order.kinds.double().numpy()
        context = pairs // size  # [S]
        parent = order.contexts.numpy() // size  # [C] the context without its oldest item
        q = q[np.searchsorted(shorter, parent[context] * size + pairs % size)]  # [S] q_{k-1} without the event
        others, sorts = totals[context] - 1, kinds[context] - (counts == 1)  # what is left without the event
        chosen = max(STRENGTHS, key=lambda c: _log(c, q, counts, others, sorts)) if strength is None else strength
        p = _left_out(chosen, q, counts, others, sorts)
        ratio = np.log(p / q)
        sums = np.bincount(context, counts * ratio, len(totals))  # [C]
        weight, own = posterior(prior**k, sums), posterior(prior**k, sums[context] - ratio)
        q, shorter = own * p + (1 - own) * q, pairs
        worth = weight / (totals + chosen * kinds)
        tensors = {"worth": worth, "rest": 1 - worth * totals}
        found.append(replace(order, **{name: torch.from_numpy(value).float() for name, value in tensors.items()}))
    return found


def _left_out(strength: float, q: np.ndarray, counts: np.ndarray, others: np.ndarray, sorts: np.ndarray) -> np.ndarray:
    """P_k of each pair [S], one of its events left out; q_{k-1} where it was its context's only one."""
    added = strength * sorts
    return np.where(others > 0, (counts - 1 + added * q) / np.maximum(others + added, 1), q)


def _log(strength: float, q: np.ndarray, counts: np.ndarray, others: np.ndarray, sorts: np.ndarray) -> float:
    """The log-likelihood of all events of an order, each left out."""
    return float(counts @ np.log(_left_out(strength, q, counts, others, sorts)))
