"""A context tree: contexts of every length up to `depth`, mixed with weights that each context has earned (Garcin, Dimitrakakis &
Faltings, RecSys 2013).

q_0 is the root; of a context of k items q_k(x) = w_k P_k(x) + (1 - w_k) q_{k-1}(x), where w_k is the context's own, shared by
all users: prior^k at first, then w_k <- w_k P_k(x) / q_k(x) at every event x that follows it. Its expert is
P_k(x) = (n_k(x) + c_k q_{k-1}(x)) / (n_k + c_k). The root mixes, in the same way,
P_0(x) = (n_0(x) + a) / (n_0 + a N), popularity among the newest events and freshness: the recent items that the user has not
met, all alike.

Where we depart: the weights are not updated as the events come by but when the counts are complete, each event judged by the
others (`weights.py`): the product of the updates is the same posterior, and it does not depend on the order in which users are
read, which has no meaning. They and the strength of the back-off are judged over P_0 alone, whatever the root is: what is popular
or fresh at the end of training says nothing of the earlier events that they are judged by; the mixture that is scored ends in
the root with its experts. Nothing learns from what is asked in evaluation. The expert backs off: with a uniform share, as
published, contexts of a large catalogue are never believed. Its strength is Witten-Bell's number of distinct successors times a
factor which is the same for all contexts of a length, the likeliest by that same judgement. The recent set are the newest
`recent` events of training, it does not slide on afterwards; where events have no time there are no such experts, and
popularity is that of all events. No context crosses a session: a question continues that of the event before it, and an event
of no session is a session of its own."""

from __future__ import annotations

import numpy as np
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Batch, Encoded, History, Query
from userec.capability import Can
from userec.config import Config
from userec.encoder.contract import Build, Encoder
from userec.schema import FIRST
from userec_markov import contexts
from userec_markov.newest import Experts, Newest, experts
from userec_markov.weights import weighed


class ContextTreeConfig(Config):
    """How deep, and how much is believed before anything was seen."""

    depth: int = Setting(3, ge=1, le=5)
    """Items in the longest context."""
    prior: float = Setting(0.5, gt=0, lt=1)
    """The weight of a context of k items starts as prior^k."""
    smoothing: float | None = Setting(None, gt=0)
    """a: events added to each item's count at the root; None = 1 / N, one event spread over all items."""
    backoff: float | None = Setting(None, gt=0)
    """c_k for each distinct successor of a context; None = the likeliest power of two for each length."""
    min_count: int = Setting(2, ge=1)
    """Contexts that fewer events followed are left out."""
    recent: int = Setting(1000, ge=1)
    """Newest events that the two experts look at."""
    popularity: bool = True
    """The expert of popularity among them."""
    freshness: bool = True
    """The expert of recent items that the user has not met."""


class ContextTree(Encoder):
    """Contexts of every length, mixed by what each has earned.

    Scores are log-probabilities over the real ids; tokens [B, L, 1] are the item ids themselves.

    It reads `time` for the experts and `session`, which no context crosses, where the data has them."""

    name = "context_tree"
    fidelity = "variant"
    offers = Can.SCORE_CATALOG | Can.CAUSAL | Can.ANY_POSITION
    Config = ContextTreeConfig

    def __init__(self, config: ContextTreeConfig, build: Build) -> None:
        super().__init__(config, build)
        self.dim, self.size, self.tasks = 1, build.schema.spaces["item"], build.schema.all_tasks
        self.sessions = "session" in build.schema.fields
        self.timed = "time" in build.schema.fields and (config.popularity or config.freshness)
        optional = {"session": self.sessions, "time": self.timed}
        self.reads = frozenset({"item", *(name for name, read in optional.items() if read)})
        self.window = None if self.timed and config.freshness else config.depth
        self.grams, self.newest = contexts.Grams(config.depth), Newest(config.recent)
        self._tables: tuple[tuple[Tensor, Tensor], Experts, list[contexts.Order]] | None = None

    def refuses(self, tasks: tuple[str, ...]) -> list[str]:
        """It predicts which event follows, nothing else."""
        return contexts.refusals(self.name, self.tasks, tasks)

    def partial_fit(self, batch: Batch) -> None:
        """Count every event of the rows after the items before it. Rows are whole sequences: no context reaches another user."""
        events = batch.history.events
        asked = batch.history.mask & (events["item"] >= FIRST)
        self.grams.add(contexts.grams(events["item"], asked, self.config.depth, self._start(batch.history)))
        if self.timed:
            self.newest.add(events["time"], events["item"], asked)

    def end_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Where freshness is not believed, events before the longest context say nothing."""
        self.window = None if self._made()[0].freshness else self.config.depth

    def encode(self, history: History) -> Encoded:
        """Nothing is worked out before a question is put."""
        return Encoded(history, history.events["item"].unsqueeze(-1).float())

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, 1] log-probabilities: of the whole space, or of `query.ids`."""
        root, orders = self._made()
        item, start = encoded.history.events["item"], self._start(encoded.history)
        return contexts.interpolate(orders, item, query, root.base(item, query), self.size, start).unsqueeze(-1)

    def _start(self, history: History) -> Tensor | None:
        """The position that begins each event's session [B, L]."""
        return contexts.starts(history.events["session"]) if self.sessions else None

    def _made(self) -> tuple[Experts, list[contexts.Order]]:
        """The root and the weighed orders; made at the first question after a count."""
        made_of = self.grams.merged(), self.newest.rows
        if self._tables is None or any(was is not now for was, now in zip(self._tables[0], made_of, strict=True)):
            config, counts = self.config, self.grams.popularity(self.size)
            real = np.arange(self.size) >= FIRST
            a = 1 / real.sum() if config.smoothing is None else config.smoothing
            rows, wanted = self.newest.rows.cpu().numpy(), (config.popularity, config.freshness)
            root = experts(rows, counts, real, a, config.prior, *wanted)
            left_out = (np.maximum(counts - 1, 0) + a) / (max(counts.sum() - 1, 0) + a * real.sum())  # [n] of P_0
            orders = weighed(self.grams.orders(self.size, config.min_count), left_out, self.size, config.prior, config.backoff)
            device = made_of[0].device
            self._tables = made_of, root.to(device), [order.to(device) for order in orders]
        return self._tables[1:]
