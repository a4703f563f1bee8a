"""PRME: personalised ranking metric embedding (Feng, Li, Zeng, Cong, Chee & Yuan, IJCAI 2015).

Users and items have points P in a space of preference, items have others S in a space of sequence. After item c, item l is for
user u at the distance D = alpha |P_u - P_l|^2 + (1 - alpha) |S_c - S_l|^2, or |P_u - P_l|^2 where more than `tau` passes before
the question; the nearest come first, and training is BPR on -D. Expanded, with what is the same for every candidate left out, -D
is a dot product: (a P_u, -a, b S_c, -b) . (2 P_l, |P_l|^2, 2 S_l, |S_l|^2), where (a, b) is (alpha, 1 - alpha) or (1, 0);
of a user whom training has not seen a is 0.

Where we depart: 128 uniform negatives are shared by a batch, and one is void only where it is the answer itself, not where the
user has had it after the same item; Adam at 1e-2 in batches stands for SGD at 0.005 event by event. There is no L2 penalty
(`train.weight_decay` brings it back): early stopping does its work. A gap threshold (published: six hours) is off unless `tau` is
set. PRME-G's geographic weight is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Encoded, History, Query, gather_positions
from userec.capability import Can
from userec.config import Config
from userec.encoder.blocks.heads import Heads
from userec.encoder.contract import Build, Encoder
from userec.errors import UserError
from userec.schema import FIRST

HOUR = 3600


class PRMEConfig(Config):
    """Two spaces, and what each counts."""

    dim: int = Setting(60, ge=1)
    """Of either space."""
    alpha: float = Setting(0.2, ge=0, le=1)
    """What preference counts; the sequence counts the rest."""
    tau: float | None = Setting(None, gt=0)
    """Hours to the question after which the last item no longer counts; none = never."""
    spread: float = Setting(0.01, gt=0)
    """Standard deviation of the points at first."""


class PRME(Encoder):
    """Two metric spaces: near the user, and near his last item.

    Tokens [B, L, 2 dim + 2] are the user's half of the product at each position; the user is the last of them.

    Before any event preference alone counts. A user with no event in training has no point of preference: the sequence alone
    counts, and before any event all items are alike."""

    name = "prme"
    fidelity = "variant"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER
    reads = frozenset({"user", "item"})
    Config = PRMEConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "next_item", "negatives": 128, "shared": True, "price": "bpr"},
            "click": {"name": "labelled", "price": "bce"},
            "label": {"name": "labelled"},
        },
        "train": {
            "optimizer": "adam",
            "lr": 1e-2,
            "epochs": 20,
            "validate_every": 2,
            "patience": 4,
        },
        "batch": {"rows": 512, "tokens": 6144},
    }
    known: Tensor  # [U] bool: who has events in training

    def __init__(self, config: PRMEConfig, build: Build) -> None:
        super().__init__(config, build)
        if config.tau is not None:
            if "time" not in build.schema.fields:
                raise UserError("encoder 'prme': encoder.tau needs times and the data set has none; leave it out")
            self.reads |= {"time", "asked.time"}
        self.dim, self.window = 2 * config.dim + 2, None
        self.users = build.table("user", config.dim)
        self.preference, self.sequence = build.table("item", config.dim), build.table("item", config.dim)
        self.labels = Heads(build, self.dim)
        for table in (self.users, self.preference, self.sequence):
            table.reset(std=config.spread)
        known = torch.arange(build.schema.spaces["user"]) >= FIRST
        if build.train is not None:
            known[FIRST:] &= torch.from_numpy(build.train.lengths > 0)
        self.register_buffer("known", known)

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """The last item alone stands for the sequence; padding is zero."""
        item, near = history.events["item"], history.mask  # [B, L]: where the sequence counts
        if self.config.tau is not None:
            near = near & (history.asked["asked.time"] - history.events["time"] <= self.config.tau * HOUR)
        user, known = self._user(history)
        sequence = (1 - self.config.alpha) * near.to(user.dtype)
        points = user[:, None].expand(-1, item.shape[1], -1)  # [B, L, dim]
        tokens = _half(points, (1 - sequence) * known, self.sequence(item), sequence) * history.mask.unsqueeze(2)
        return Encoded(history, tokens, gather_positions(tokens, history.last[:, None])[:, 0])

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """The token at `query.at`, the user's preference alone before any event: [B, Q, D]."""
        user, known = self._user(encoded.history)
        point = user[:, None]  # [B, 1, dim]
        alone = _half(point, known, torch.zeros_like(point), torch.zeros_like(known))
        return torch.where(query.at.unsqueeze(2) < 0, alone, gather_positions(encoded.tokens, query.at))

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The items' half of the product, or the classes of a label task."""
        table = self.labels.table_of(tasks, self.preference)
        if table is not self.preference:
            return (table.all() if ids is None else table(ids)), None
        p, s = (x.all() if ids is None else x(ids) for x in (self.preference, self.sequence))
        return torch.cat([2 * p, p.square().sum(-1, keepdim=True), 2 * s, s.square().sum(-1, keepdim=True)], -1), None

    def _user(self, history: History) -> tuple[Tensor, Tensor]:
        """P_u [B, dim], and [B, 1] 1 where training has seen the user, 0 elsewhere."""
        user = torch.where(history.user < len(self.known), history.user, 0)
        point = self.users(user)
        return point, self.known[user].unsqueeze(1).to(point.dtype)


def _half(p: Tensor, a: Tensor, s: Tensor, b: Tensor) -> Tensor:
    """(a p, -a, b s, -b): p, s [B, L, dim] and a, b [B, L] -> [B, L, 2 dim + 2]."""
    a, b = a.unsqueeze(2), b.unsqueeze(2)
    return torch.cat([a * p, -a, b * s, -b], 2)
