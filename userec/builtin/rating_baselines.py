"""The floors of rating prediction: one number for all, and one with what is particular to the item and to the user."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Batch, Encoded, History, Query
from userec.capability import Can
from userec.config import Config
from userec.encoder.contract import Build, Encoder, NoConfig
from userec.markers import hookimpl
from userec.schema import FIRST, Schema


class GlobalMean(Encoder):
    """score = the mean of the training ratings, whatever is asked; 0 before any."""

    name = "global_mean"
    fidelity = "paper"
    Config = NoConfig
    offers = Can.SCORE_CATALOG | Can.CAUSAL | Can.ANY_POSITION

    schema: Schema
    total: Tensor
    count: Tensor

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__(config, build)
        self.dim, self.schema = 1, build.schema
        self.register_buffer("total", torch.zeros((), dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def refuses(self, tasks: tuple[str, ...]) -> list[str]:
        """It predicts ratings alone."""
        return not_ratings(self.name, tasks, self.schema)

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Ratings of another task are counted from nothing."""
        self.total.zero_()
        self.count.zero_()

    def partial_fit(self, batch: Batch) -> None:
        """Add up the ratings."""
        _, _, value = ratings(batch)
        self.total += value.sum()
        self.count += len(value)

    def encode(self, history: History) -> Encoded:
        return Encoded(history, tokens=torch.zeros(*history.mask.shape, 1, device=history.mask.device))

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        candidates = self.schema.spaces["item"] if query.ids is None else query.ids.shape[-1]
        mean = (self.total / self.count.clamp(min=1)).to(encoded.tokens.dtype)
        return mean.expand(*query.at.shape, candidates, 1)  # [B, Q, C, 1]


class RatingBiasConfig(Config):
    """How strongly an item or a user of few ratings is drawn to zero: as by so many more ratings without any offset."""

    damping_item: float = Setting(25.0, ge=0)
    damping_user: float = Setting(10.0, ge=0)


class RatingBias(Encoder):
    """score = mu + b_user + b_item (Koren, "Factor in the neighbors", TKDD 2010, section 2.1, the means in turn; the same in
    LensKit's bias model).

    b_i = sum_u (r_ui - mu) / (damping_item + n_i), then b_u = sum_i (r_ui - mu - b_i) / (damping_user + n_u); 0 of whom
    training never saw. What b_u takes off is not known before the last row was seen, so the rows are kept until `end_task`."""

    name = "rating_bias"
    fidelity = "paper"
    Config = RatingBiasConfig
    reads = frozenset({"item", "user"})
    offers = Can.SCORE_CATALOG | Can.CAUSAL | Can.ANY_POSITION

    schema: Schema
    mean: Tensor
    of_user: Tensor
    of_item: Tensor

    def __init__(self, config: RatingBiasConfig, build: Build) -> None:
        super().__init__(config, build)
        self.dim, self.schema = 1, build.schema
        self.damping_item, self.damping_user = config.damping_item, config.damping_user
        self.rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self.register_buffer("mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("of_user", torch.zeros(build.schema.spaces["user"], dtype=torch.float64))  # [U]
        self.register_buffer("of_item", torch.zeros(build.schema.spaces["item"], dtype=torch.float64))  # [n]

    def refuses(self, tasks: tuple[str, ...]) -> list[str]:
        """It predicts ratings alone."""
        return not_ratings(self.name, tasks, self.schema)

    def partial_fit(self, batch: Batch) -> None:
        """Keep the rows."""
        self.rows.append(ratings(batch))

    def end_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """The offsets, in an order of rows of its own: the order of batches changes no digit."""
        if not self.rows:
            return  # restored: the offsets are loaded
        user, item, value = (torch.cat([row[i] for row in self.rows]).cpu().numpy() for i in range(3))
        self.rows = []
        order = np.lexsort((value, item, user))
        user, item, value = user[order], item[order], value[order]
        mean = value.mean() if len(value) else 0.0
        of_item = damped(item, value - mean, len(self.of_item), self.damping_item)
        of_user = damped(user, value - mean - of_item[item], len(self.of_user), self.damping_user)
        self.mean.fill_(mean)
        self.of_item.copy_(torch.from_numpy(of_item))
        self.of_user.copy_(torch.from_numpy(of_user))

    def encode(self, history: History) -> Encoded:
        """The token of every event is the user's own level, mu + b_user."""
        level = (self.mean + self.of_user[history.user]).to(torch.get_default_dtype())  # [B]
        return Encoded(history, level[:, None, None].expand(*history.mask.shape, 1), cache={"level": level})

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        level: Tensor = encoded.cache["level"]
        offset = (self.of_item if query.ids is None else self.of_item[query.ids]).to(level.dtype)  # [n] or [B|1, Q|1, C]
        return (level[:, None, None] + offset).expand(*query.at.shape, offset.shape[-1]).unsqueeze(-1)


def damped(ids: np.ndarray, left: np.ndarray, size: int, damping: float) -> np.ndarray:
    """[size] sum of what is `left` [N] of each id's ratings / (damping + their number); 0 where it has none."""
    total, count = np.bincount(ids, weights=left, minlength=size), np.bincount(ids, minlength=size)
    return np.divide(total, count + damping, out=np.zeros(size), where=count > 0)


def ratings(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(user, item, rating), [N] each, int64 and float64: the labelled rows of a training batch whose item has an id."""
    if batch.targets is None or batch.targets.answer is None or batch.targets.labels is None:
        raise ValueError("a rating baseline counts rows of a rating task")
    item, value = batch.targets.answer, batch.targets.labels[:, :, 0, 0]  # [B, Q]
    known = (item >= FIRST) & ~value.isnan()
    return batch.history.user[:, None].expand_as(item)[known], item[known], value[known].double()


def not_ratings(name: str, tasks: tuple[str, ...], schema: Schema) -> list[str]:
    """Why a task that asks for no rating is refused."""
    others = [task for task in tasks if schema.task(task).kind != "rating" or schema.task(task).space != "item"]
    return [f"encoder {name!r} predicts ratings of items, which task {task!r} does not ask for" for task in others]


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    return [GlobalMean, RatingBias]
