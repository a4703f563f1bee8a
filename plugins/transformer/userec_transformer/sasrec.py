"""SASRec: self-attentive sequential recommendation (Kang & McAuley 2018), in its pre-LN form.

x_l = sqrt(d) E[item_l] + P_l, then blocks x += attention(LN x), x += W2 relu(W1 LN x), a last LN; the score of an item is the
token times the item's own embedding (section 3, equations 2 to 6).

Where we depart: standard pre-LN blocks with an output projection (the authors normalise the queries alone and have none; the
PyTorch port measures the same accuracy); events are packed, without padding, and positions count from the start of the window;
attention weights are not dropped by default, which keeps the attention on its fused path (`attention_dropout` brings it back).
The recipe trains on all windows of a user's events, where the newest alone is published, in batches of 6,144 events where 128
rows are published, and at a rate that decays linearly from 2e-3 where it is 1e-3 throughout."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field as Setting
from torch import Tensor, nn
from torch.nn import functional as F

from userec.batch import Encoded, History, gather_positions, pack, unpack
from userec.capability import Can
from userec.config import Config
from userec.encoder.blocks.dropout import Dropout
from userec.encoder.blocks.heads import Heads
from userec.encoder.contract import Build, Encoder
from userec.errors import UserError
from userec_transformer.block import Block, start_small, through


class SASRecConfig(Config):
    """The published setting for MovieLens-1M, but for dropout."""

    dim: int = Setting(64, ge=1)
    layers: int = Setting(2, ge=1)
    heads: int = Setting(1, ge=1)
    inner: int | None = Setting(None, ge=1)
    """Width inside a feed-forward layer; None = `dim`, as published."""
    dropout: float = Setting(0.1, ge=0, lt=1)
    """0.2 with the authors' loss, less with cross-entropy. Of embeddings, feed-forward layers and what each block adds."""
    attention_dropout: float = Setting(0.0, ge=0, lt=1)
    """Of attention weights, as the authors have it; slow on a CPU."""
    window: int = Setting(200, ge=1)
    """Last events used."""


class SASRec(Encoder):
    """Self-attention over the last events, causal.

    Tokens [B, L, D] of every position at once; the user is the token of his last event, zeros where he has none."""

    name = "sasrec"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER
    Config = SASRecConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "next_item"},
            "click": {"name": "labelled", "price": "bce"},
            "label": {"name": "labelled"},
        },
        "train": {
            "optimizer": "adam",
            "lr": 2e-3,
            "betas": (0.9, 0.98),
            "schedule": "linear",
            "warmup": 100,
            "epochs": 45,
            "validate_every": 3,
            "patience": 5,
        },
        "batch": {"rows": 512, "tokens": 6144, "windows": "all"},
    }

    def __init__(self, config: SASRecConfig, build: Build) -> None:
        super().__init__(config, build)
        if config.dim % config.heads:
            raise UserError(f"encoder {self.name!r}: encoder.dim {config.dim} is not a multiple of encoder.heads {config.heads}")
        self.items = build.table("item", config.dim)
        self.labels = Heads(build, config.dim)
        self.positions = nn.Parameter(torch.empty(config.window, config.dim))
        self.drop = Dropout(config.dropout)
        attend = build.op("jagged_attention")
        settings = config.dim, config.heads, config.inner or config.dim, config.dropout, config.attention_dropout
        self.blocks = nn.ModuleList(Block(attend, *settings) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        nn.init.normal_(self.positions, std=0.02)
        start_small(self.blocks)

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """Of rows longer than `window` the last `window` events are encoded; other tokens are zero."""
        item, window = history.events["item"], len(self.positions)
        start = (history.lengths - window).clamp(min=0)  # [B]
        event = torch.arange(item.shape[1], device=item.device)
        place = event - start[:, None]  # [B, L] position in the window
        seen = history.mask & (place >= 0)
        offsets = F.pad(seen.sum(1).cumsum(0), (1, 0))  # [B + 1]
        x = self.drop(self.items(pack(item, seen)) * math.sqrt(self.dim) + F.embedding(pack(place, seen), self.positions))
        x = self.norm(through(self.blocks, x, offsets, min(item.shape[1], window), history.newest))
        tokens = unpack(x, event == history.last[:, None] if history.newest else seen)
        return Encoded(history, tokens, gather_positions(tokens, history.last[:, None])[:, 0])

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The item embeddings themselves, or the classes of a label task."""
        return self.labels.candidates(tasks, self.items, ids)
