"""Caser: the last L items as an image, read by convolutions (Tang & Wang 2018, WSDM; section 3).

E [L, d] are the embeddings of the last L items, zero where a user has fewer. Horizontal filters of every height h = 1..L (n_h
of each): max over time of relu(sum_t F_t . E_{i + t} + b) (equations 3 to 5); vertical filters, n_v: sum_l F_l E_l, no
activation (equations 6, 7). z = relu(W [o_h; o_v] + b) in R^d with dropout before W (equation 8); the score of an item is
W2_i [z; p_u] + b2_i (equation 9). A filter's value at a place is shared by every window that holds it, so all windows of a
user are read at once.

Where we depart: a user's first windows, shorter than L, are trained on too (the authors slide over full windows, and pad
users of fewer than L + T events alone); negatives are uniform over all items but the target, where theirs are items that the
user never met; the price is the mean over the positive and its negatives, where theirs is the sum of the positives' mean and
the negatives' mean; a user of fewer than 2 T events has his newer half cut off, as answers that no window
reads. The recipe trains in batches of 2,048 windows where 512 are published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field as Setting
from torch import Tensor, nn
from torch.nn import functional as F

from userec.batch import Encoded, History, Query, pack, unpack
from userec.capability import Can
from userec.config import Config
from userec.encoder.blocks.dropout import Dropout
from userec.encoder.blocks.heads import Heads
from userec.encoder.contract import Build, Encoder
from userec.errors import UserError
from userec.schema import UNKNOWN


class CaserConfig(Config):
    """The published setting for MovieLens-1M."""

    embedding: int = Setting(50, ge=1)
    """d: width of an item's and a user's embedding; tokens are twice as wide, d without `user`."""
    length: int = Setting(5, ge=1)
    """L: last items read."""
    horizontal: int = Setting(16, ge=1)
    """n_h: filters of each height 1..L."""
    vertical: int = Setting(4, ge=1)
    """n_v: filters of height L and width 1."""
    dropout: float = Setting(0.5, ge=0, lt=1)
    """Of what the filters found."""
    user: bool = True
    """Whether each user has an embedding of his own; without it users never trained on are served alike."""
    window: int = Setting(200, ge=1)
    """Events of a training row; an answer depends on the last `length` alone."""


class Filters(nn.Module):
    """What all filters say of the window that ends at each event: [S, D] -> [S, n_h L + n_v D]."""

    def __init__(self, config: CaserConfig) -> None:
        super().__init__()
        self.length, self.horizontal, self.vertical = config.length, config.horizontal, config.vertical
        heights = range(1, config.length + 1)
        self.heights = nn.ModuleList(
            nn.Linear(h * config.embedding, config.horizontal) for h in heights
        )  # the newest event first
        self.columns = nn.Linear(config.length, config.vertical)  # the newest event first
        self.width = config.length * config.horizontal + config.vertical * config.embedding

    def forward(self, x: Tensor) -> Tensor:
        """Events stand one after another; the first L - 1 of them have no window, and get anything."""
        count, dim = x.shape
        padded = F.pad(x, (0, 0, self.length - 1, 0))  # [L - 1 + S, D]
        taps = [padded[back : back + count] for back in range(self.length - 1, -1, -1)]  # the newest event's first
        windows = torch.cat(taps, 1)  # [S, L D]
        found = []
        for height, filters in enumerate(self.heights, 1):
            here, places = (
                filters(windows[:, : height * dim]),
                self.length - height + 1,
            )  # [S, n_h]: the filter ends at each event
            if places > 1:
                here = F.pad(here, (0, 0, places - 1, 0)).unfold(0, places, 1).amax(-1)
            found.append(F.relu(here))
        lines = windows.unflatten(1, (self.length, dim)).transpose(1, 2).reshape(-1, self.length)  # [S D, L]
        columns = self.columns(lines).unflatten(0, (count, dim)).transpose(1, 2)  # [S, n_v, D]
        return torch.cat([*found, columns.flatten(1)], 1)


class Caser(Encoder):
    """The last items as an image: convolutions down and across it.

    Tokens [B, L, 2 d] are [z; p_u] of every position at once (z alone without `user`); the user is the token of his last
    event, zeros where he has none. The state is the last L - 1 items and the last token."""

    name = "caser"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER | Can.CARRY_STATE
    Config = CaserConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "future", "window": 3, "question": "each", "price": "bce", "negatives": 3},
            "click": {"name": "labelled", "price": "bce"},
            "label": {"name": "labelled"},
        },
        "train": {
            "optimizer": "adam",
            "lr": 1e-3,
            "weight_decay": 1e-6,
            "epochs": 50,
            "validate_every": 2,
            "patience": 5,
        },
        "batch": {"rows": 512, "tokens": 2048, "windows": "all"},
    }

    def __init__(self, config: CaserConfig, build: Build) -> None:
        super().__init__(config, build)
        if config.window < config.length:
            raise UserError(
                f"encoder 'caser': encoder.window {config.window} is less than encoder.length {config.length}, the items "
                f"that an answer reads: --set encoder.window={config.length} or more, or a smaller encoder.length"
            )
        self.dim = config.embedding * (2 if config.user else 1)
        self.items = build.table("item", config.embedding)
        if config.user:
            self.reads = frozenset({"item", "user"})
            self.users = build.table("user", config.embedding)
            self.known = build.schema.spaces["user"]
        self.filters = Filters(config)
        self.drop = Dropout(config.dropout)
        self.join = nn.Linear(self.filters.width, config.embedding)
        self.output = build.table("item", self.dim)
        self.output.reset(std=1 / self.dim)
        self.bias = nn.Parameter(torch.zeros(build.schema.spaces["item"]))
        self.labels = Heads(build, self.dim)

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """Each row is led by the L - 1 items before it, so that no window reaches into the row before. Under `newest` the last L
        items alone are read."""
        item, lead = history.events["item"], self.config.length - 1
        past = item.new_zeros(len(item), lead) if history.state is None else history.state["items"].long()  # [B, L - 1]
        led = torch.cat([past, item], 1)  # [B, L - 1 + L']
        mask, told = F.pad(history.mask, (lead, 0), value=True), history.mask
        if history.newest:
            place = torch.arange(led.shape[1], device=item.device)
            mask, told = mask & (place >= history.lengths[:, None] - 1), place[: item.shape[1]] == history.last[:, None]
        found = self.filters(self.items(pack(led, mask)))
        z = unpack(F.relu(self.join(self.drop(found))), mask)[:, lead:] * told.unsqueeze(-1)  # [B, L', d]
        if self.config.user:
            user = torch.where(history.user < self.known, history.user, UNKNOWN)  # [B]
            z = torch.cat([z, self.users(user).unsqueeze(1) * told.unsqueeze(-1)], -1)
        encoded = Encoded(history, z)
        user = self.queries(encoded, Query(history.last[:, None]))[:, 0]
        newest = led.gather(1, history.lengths[:, None] + torch.arange(lead, device=item.device))
        return replace(encoded, user=user, state={"items": newest, "user": user})

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """The token at `query.at`; before a row's first event the user that its state left, zeros where it has none."""
        asked, state = super().queries(encoded, query), encoded.history.state
        return asked if state is None else torch.where((query.at < 0).unsqueeze(-1), state["user"].unsqueeze(1), asked)

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The output table with its bias, or the classes of a label task."""
        return self.labels.candidates(tasks, self.output, ids, self.bias)
