"""BERT4Rec: each item from those on both sides of it (Sun et al., CIKM 2019).

x_l = LN(E[item_l] + P_l), then blocks x = LN(x + attention x), x = LN(x + W2 gelu(W1 x)) without a causal mask (equations 1 to
6); an event is told by GELU(W h + b), normalised, times the item's own embedding, plus a bias an item (equation 7). The item that
is asked for is hidden: its slot has id 1, the unknown item, which is [MASK] here. The objective `cloze` hides events of the row,
and `encode` puts one more such slot after each row's last event: what comes next is asked there, in training and in use.

Where we depart: the slot comes on top of `window` events (the authors' 200 positions hold 199 and the slot); events are packed,
without padding; masks are drawn anew at each step, where the authors write ten masked copies of the data; attention weights are
not dropped by default, which keeps the attention on its fused path (`attention_dropout=0.2` brings it back), and dropout is 0.1
elsewhere, where the authors have 0.2. The recipe trains on all windows of a user's events, in batches of 6,144 events, at a rate
of 2e-3 that warms up over 500 steps and then decays linearly, where the authors take the newest windows, 256 rows, 1e-4 and
400,000 steps: by Petrov & Macdonald (RecSys 2022), too few at that rate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from userec_transformer.block import attend_newest, start_small, through


class BERT4RecConfig(Config):
    """The authors' setting for MovieLens-1M, but for dropout."""

    dim: int = Setting(64, ge=1)
    layers: int = Setting(2, ge=1)
    heads: int = Setting(2, ge=1)
    inner: int | None = Setting(None, ge=1)
    """Width inside a feed-forward layer; None = 4 `dim`, as published."""
    dropout: float = Setting(0.1, ge=0, lt=1)
    """Of embeddings and what each block adds, 0.2 as published."""
    attention_dropout: float = Setting(0.0, ge=0, lt=1)
    """Of attention weights, 0.2 as published; slow on a CPU."""
    window: int = Setting(200, ge=1)
    """Last events used; the slot of the question comes on top."""


class BothWays(nn.Module):
    """LN(x + attention x), then LN(x + feed-forward x): [S, D] -> [S, D], all users' slots one after another."""

    def __init__(self, config: BERT4RecConfig, attend: Callable[..., Tensor]) -> None:
        super().__init__()
        dim, inner = config.dim, config.inner or 4 * config.dim
        self.config, self.attend = config, attend
        self.project, self.merge = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.norm_attention, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, offsets: Tensor, max_len: int) -> Tensor:
        """User b's slots stand at offsets[b] to offsets[b + 1], at most `max_len`; each sees all of them, and no other."""
        q, k, v = self.project(x).unflatten(1, (3, self.config.heads, -1)).unbind(1)  # 3 x [S, H, D / H]
        dropout = self.config.attention_dropout if self.training else 0.0
        attended = self.attend(q, k, v, offsets, max_len=max_len, causal=False, dropout_p=dropout).flatten(1)  # [S, D]
        return self._fed(x + self.drop(self.merge(attended)))

    def newest(self, x: Tensor, offsets: Tensor, max_len: int) -> Tensor:
        """What `forward` makes of each user's last slot, [B, D], without the others; see `Block.newest`."""
        attended = attend_newest(self.project, self.config.heads, x, offsets, max_len)
        return self._fed(x[offsets[1:] - 1] + self.drop(self.merge(attended)))

    def _fed(self, x: Tensor) -> Tensor:
        x = self.norm_attention(x)
        return self.norm_feed(x + self.drop(self.narrow(F.gelu(self.widen(x)))))


class BERT4Rec(Encoder):
    """Self-attention over events on both sides of a hidden one.

    Tokens [B, L, D] of the events; a question at `at` is answered by slot `at` + 1, which should not be told: a hidden event,
    or, after the last event, the slot that `encode` appends. The user is the token of that slot."""

    name = "bert4rec"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.EMBED_USER
    Config = BERT4RecConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "cloze", "mask": 0.2},
            "click": {"name": "labelled", "price": "bce"},
            "label": {"name": "labelled"},
        },
        "train": {
            "optimizer": "adamw",
            "lr": 2e-3,
            "weight_decay": 0.01,
            "schedule": "linear",
            "warmup": 500,
            "epochs": 130,
            "validate_every": 10,
            "patience": 5,
        },
        "batch": {"rows": 512, "tokens": 6144, "windows": "all"},
    }

    def __init__(self, config: BERT4RecConfig, build: Build) -> None:
        super().__init__(config, build)
        if config.dim % config.heads:
            raise UserError(f"encoder 'bert4rec': encoder.dim {config.dim} is not a multiple of encoder.heads {config.heads}")
        self.items = build.table("item", config.dim)
        self.labels = Heads(build, config.dim)
        self.positions = nn.Parameter(torch.empty(config.window + 1, config.dim))
        self.norm, self.drop = nn.LayerNorm(config.dim), Dropout(config.dropout)
        attend = build.op("jagged_attention")
        self.blocks = nn.ModuleList(BothWays(config, attend) for _ in range(config.layers))
        self.head = nn.Sequential(nn.Linear(config.dim, config.dim), nn.GELU(), nn.LayerNorm(config.dim))
        self.bias = nn.Parameter(torch.zeros(build.schema.spaces["item"]))
        nn.init.normal_(self.positions, std=0.02)
        start_small(self.blocks)
        start_small(self.head)

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """Of rows longer than `window` the last `window` events are encoded, and the slot; other tokens are zero."""
        length, lengths = history.mask.shape[1], history.lengths
        place = torch.arange(length + 1, device=lengths.device)  # of a slot in its row
        start = (lengths - self.config.window).clamp(min=0)  # [B]
        item = F.pad(history.events["item"], (0, 1)).masked_fill(place == lengths[:, None], UNKNOWN)  # [B, L + 1]
        there = (place >= start[:, None]) & (place <= lengths[:, None])
        offsets = F.pad(there.sum(1).cumsum(0), (1, 0))  # [B + 1]
        x = self.items(pack(item, there)) + F.embedding(pack(place - start[:, None], there), self.positions)
        x = self.drop(self.norm(x))
        slots = through(self.blocks, x, offsets, min(length, self.config.window) + 1, history.newest)
        if history.newest:  # one slot a row, behind all of its events
            cache = {"slots": slots, "first": torch.arange(len(slots), device=slots.device), "start": lengths}
            return Encoded(history, slots.new_zeros(*history.mask.shape, slots.shape[1]), slots, cache=cache)
        tokens = unpack(slots, there)[:, :length].masked_fill(~history.mask[..., None], 0)
        cache = {"slots": slots, "first": offsets[:-1], "start": start}
        return Encoded(history, tokens, slots[offsets[1:] - 1], cache=cache)

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, D]: slot `at` + 1 through the head, each slot once; before the window begins, its first slot."""
        cache = encoded.cache
        place = cache["first"][:, None] + (query.at + 1 - cache["start"][:, None]).clamp(min=0)  # [B, Q] among the packed
        asked, where = place.unique(return_inverse=True)
        return F.embedding(where, self.head(cache["slots"].index_select(0, asked)))

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The item embeddings themselves with a bias each, or the classes of a label task."""
        return self.labels.candidates(tasks, self.items, ids, self.bias)
