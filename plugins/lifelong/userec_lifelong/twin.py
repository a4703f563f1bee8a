"""TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in CTR Prediction at Kuaishou (Chang et al., KDD 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, NamedTuple, Self

import torch
from pydantic import Field as Setting
from pydantic import model_validator
from torch import Tensor, nn

from userec.batch import Encoded, History, Query, gather_positions
from userec.capability import Can
from userec.config import Config
from userec.encoder.blocks.dropout import Dropout
from userec.encoder.blocks.heads import Heads
from userec.encoder.blocks.item_features import ItemFeatures
from userec.encoder.contract import Build, Encoder
from userec_lifelong.attention import TargetAttention
from userec_lifelong.features import Cross

CELLS: Final = 2**22
"""Numbers (questions x candidates x 5 widths) held at once where no gradient is asked for: 16 MiB."""


class _Side(NamedTuple):
    """An attention and all that it needs but the target."""

    attention: TargetAttention
    keys: Tensor
    values: Tensor
    cross: Tensor
    bias: Tensor
    allowed: Tensor

    def attend(self, target: Tensor) -> Tensor:
        """[B, Q, C, D]."""
        return self.attention(self.keys, self.values, self.cross, self.bias, target, self.allowed)


class _View(NamedTuple):
    """What Q questions see."""

    shape: torch.Size  # [B, Q]
    long: _Side
    short: _Side  # one question a row: [B * Q, ...]

    def attend(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Targets [B|1, Q|1, C, width] -> (twin, short), [B, Q, C, D] each."""
        twin = self.long.attend(target)
        shared = target.shape[:2] == (1, 1)
        own = target if shared else target.expand(*self.shape, -1, -1).flatten(0, 1).unsqueeze(1)  # [B * Q|1, 1, C, width]
        short = self.short.attend(own)
        return twin, short.squeeze(1).unflatten(0, self.shape)


class TWIN(Encoder):
    """TWo-stage Interest Network: the attention that weighs a long history's events is also what finds them.

    So the search throws nothing away that the attention would have wanted ("consistency-preserved"): one `TargetAttention`, its
    parameters shared by both stages, gradient through the second alone. Beside it a short-term attention over the newest
    events; an MLP on both, target and user.

    Departures. Sizes: 20 of 200 events are kept by default where the paper keeps 100 of 10,000, and the short-term module sees 20
    events for 50; set `keep`, `window`, `recent`. The paper leaves the short-term module and the network on top open: ours are
    the same attention with its own parameters, and one hidden layer over [twin, short, target, user, twin * target,
    short * target, user * target], user being the mean of all events' features; the products let little data learn a dot
    product. Adam 3e-3 for all, where the paper has AdaGrad .05 for embeddings and Adam 5e-6, meant for billions of samples.
    Cross features are what the data has: distance in events always, age where there are times, action and rating where kept."""

    name = "twin"
    fidelity = "paper"
    offers = Can.GRADIENT | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "next_item", "positions": 8, "negatives": 4, "price": "bce"},
            "click": {"name": "labelled", "price": "bce"},
            "rating": {"name": "labelled", "price": "squared"},
            "label": {"name": "labelled", "price": "bce", "negatives": 4},
        },
        "monitor": {"item": "click/auc"},  # a walk over a large catalogue costs more than an epoch
        "train": {"optimizer": "adam", "lr": 3e-3, "epochs": 12, "patience": 3},
        "batch": {"rows": 32, "windows": "last"},
    }

    class Config(Config):
        """Sizes."""

        dim: int = Setting(64, ge=1)
        """Width of the item id's embedding and of both attentions."""
        side: int = Setting(8, ge=1)
        """Width of each side feature of an item."""
        cross: int = Setting(8, ge=1)
        """Width of each cross feature."""
        heads: int = Setting(4, ge=1)
        window: int = Setting(200, ge=1)
        """Events that stage one searches; the paper: 10,000."""
        keep: int = Setting(20, ge=1)
        """Events that stage two attends to; the paper: 100."""
        recent: int = Setting(20, ge=1)
        """Newest events that the short-term module attends to; the paper: 50."""
        hidden: int = Setting(64, ge=1)
        dropout: float = Setting(0.1, ge=0, lt=1)

        @model_validator(mode="after")
        def _heads_divide(self) -> Self:
            if self.dim % self.heads:
                raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
            return self

    config: Config

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__(config, build)
        self.schema = build.schema
        self.inherent = ItemFeatures(build, config.dim, config.side)
        self.labels = Heads(build, self.inherent.width)
        self.cross = Cross(build, config.cross)
        self.reads = frozenset({"item", *self.inherent.sides}) | self.cross.reads
        width, dim = self.inherent.width, config.dim
        self.long = TargetAttention(build, width, self.cross.count, config.cross, dim, config.heads, config.keep)
        self.short = TargetAttention(build, width, self.cross.count, config.cross, dim, config.heads, None)
        self.merge = nn.Linear(width, dim, bias=False)  # inherent features -> a token
        nn.init.normal_(self.merge.weight, std=width**-0.5)
        self.of_pair = nn.Linear(5 * dim, config.hidden)  # the first layer, by its columns: what a (user, target) pair changes,
        self.of_target = nn.Linear(dim, config.hidden, bias=False)  # what the target alone
        self.of_user = nn.Linear(dim, config.hidden, bias=False)  # and the user alone
        self.top = nn.Sequential(nn.PReLU(), Dropout(config.dropout), nn.Linear(config.hidden, 1))

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """A label space gets its own table: a class is a candidate like an item."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """What no candidate changes. `user` is what is seen with the user's last event as the target: twin + short + mean."""
        items = history.events["item"]
        inherent = self.inherent(items)  # [B, L, width]
        tokens = self.merge(inherent)  # [B, L, D]
        before = torch.arange(1, items.shape[1] + 1, device=items.device).unsqueeze(1)
        keys, values = self.long.project(inherent)
        cache = {"inherent": inherent, "keys": keys, "values": values, "mean": tokens.cumsum(1) / before}
        encoded = Encoded(history, tokens, cache=cache)
        last = history.last.unsqueeze(1)  # [B, 1]
        view = self._view(encoded, Query(last))
        target = self.inherent(gather_positions(items, last).unsqueeze(2))  # [B, 1, 1, width]
        twin, short = view.attend(target)
        user = (twin + short).reshape(len(items), self.dim) + gather_positions(cache["mean"], last).squeeze(1)
        return Encoded(history, tokens, user, cache=cache)

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, 1]. Without gradients candidates go in chunks, so that memory does not grow with their number."""
        targets = self.labels.table_of(encoded.history.tasks, self.inherent)
        ids = query.ids
        if ids is None:
            ids = torch.arange(self._size(encoded.history.tasks), device=query.at.device).reshape(1, 1, -1)
        view = self._view(encoded, query)
        mean = gather_positions(encoded.cache["mean"], query.at).unsqueeze(2)  # [B, Q, 1, D]
        cells = 5 * query.at.numel() * self.dim
        count = ids.shape[2]
        step = max(1, count if torch.is_grad_enabled() else CELLS // max(cells, 1))
        chunks = [self._score(view, mean, targets(ids[..., start : start + step])) for start in range(0, max(count, 1), step)]
        return torch.cat(chunks, 2)

    def _score(self, view: _View, mean: Tensor, target: Tensor) -> Tensor:
        """Of targets [B|1, Q|1, C, width]."""
        twin, short = view.attend(target)  # [B, Q, C, D] each
        token = self.merge(target)
        pair = torch.cat([twin, short, twin * token, short * token, mean * token], -1)
        return self.top(self.of_pair(pair) + self.of_target(token) + self.of_user(mean))

    def _size(self, tasks: tuple[str, ...]) -> int:
        return self.schema.spaces[self.schema.task(tasks[0]).space if tasks else "item"]

    def _view(self, encoded: Encoded, query: Query) -> _View:
        """What the questions see of the events: all up to `at` [B, Q] for TWIN, the newest of these for the short-term module."""
        history, at, cache = encoded.history, query.at, encoded.cache
        rows, length = history.mask.shape
        allowed = torch.arange(length, device=at.device) <= at.unsqueeze(2)  # [B, Q, L]
        allowed = allowed & history.mask.unsqueeze(1)
        cross = self.cross(history, query, at)  # [B, Q, L, J, cross]
        long = _Side(self.long, cache["keys"], cache["values"], cross, self.long.bias(cross), allowed)

        newest = at.unsqueeze(2) - torch.arange(min(self.config.recent, length), device=at.device)  # [B, Q, S], newest first
        row = torch.arange(rows, device=at.device).reshape(-1, 1, 1)
        question = torch.arange(at.shape[1], device=at.device).reshape(1, -1, 1)
        place = newest.clamp(min=0)
        near = cross[row, question, place].flatten(0, 1).unsqueeze(1)  # [B * Q, 1, S, J, cross]
        keys, values = self.short.project(cache["inherent"][row, place].flatten(0, 1))
        seen = (newest >= 0).flatten(0, 1).unsqueeze(1)  # [B * Q, 1, S]
        return _View(at.shape, long, _Side(self.short, keys, values, near, self.short.bias(near), seen))
