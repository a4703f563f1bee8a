"""GRU4Rec: a recurrent network over a session's items (Hidasi et al. 2016; Hidasi & Karatzoglou 2018, and the authors' code).

r, z = sigmoid(W e_t + b + U h_{t-1} + c), n = tanh(W_n e_t + b_n + r (U_n h_{t-1} + c_n)), h_t = z h_{t-1} + (1 - z) n; the score
of item i is h_t . y_i + b_i, without a final activation, and by default ("constrained") y_i is the item's own input embedding.

Where we depart: a user's whole window is learnt from at once, by backpropagation through time, as the authors advise for user
histories; `batch.carry` is their session-parallel reading, which learns from T events and hands the state on until the user
ends (each must be one session). Dropout of the hidden state acts on what layers and scores read of it, not on what the next
event continues from. A GRU wider than `dim` is projected back (RecBole's form). Optimisers have no momentum. The recipe is full
cross-entropy under Adam for user histories; their BPR-max and CE with logQ are settings of the objective, in the README."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field as Setting
from torch import Tensor, nn
from torch.nn import functional as F

from userec.batch import Encoded, History, Query, gather_positions, pack, unpack
from userec.capability import Can
from userec.config import Config
from userec.encoder.blocks.dropout import Dropout
from userec.encoder.blocks.heads import Heads
from userec.encoder.contract import Build, Encoder


class GRU4RecConfig(Config):
    """One layer with shared embeddings, as the authors found best; the width is that of the MovieLens-1M literature."""

    dim: int = Setting(64, ge=1)
    """Width of embeddings and tokens."""
    hidden: int | None = Setting(None, ge=1)
    """Width of the GRU; None = `dim`. Another one is projected back to `dim`."""
    layers: int = Setting(1, ge=1)
    dropout_embedding: float = Setting(0.2, ge=0, lt=1)
    dropout_hidden: float = Setting(0.2, ge=0, lt=1)
    constrained: bool = True
    """Items are scored by their input embeddings; otherwise by a table of their own."""
    window: int = Setting(200, ge=1)
    """Last events of a user that a row holds; the state itself has no limit."""


def begin(cell: nn.GRUCell) -> None:
    """Weights uniform by Glorot, gate by gate, and biases zero, as the authors begin."""
    for gate in (*cell.weight_ih.chunk(3), *cell.weight_hh.chunk(3)):
        bound = math.sqrt(6 / sum(gate.shape))
        nn.init.uniform_(gate, -bound, bound)
    nn.init.zeros_(cell.bias_ih)
    nn.init.zeros_(cell.bias_hh)


class GRULayer(nn.Module):
    """A GRU over jagged rows, of `nn.GRUCell`'s parameters."""

    def __init__(self, width: int, hidden: int, recur: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.recur = recur
        cell = nn.GRUCell(width, hidden)
        begin(cell)
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh = cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh

    def forward(self, x: Tensor, offsets: Tensor, state: Tensor, max_len: int) -> tuple[Tensor, Tensor]:
        """x [S, D], states before [B, H] -> (states after each event [S, H], after each row's last [B, H])."""
        weights = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        return self.recur(x, x.new_ones(len(x)), *weights, offsets, state, max_len=max_len)  # attention 1: a plain GRU


class GRU4Rec(Encoder):
    """A GRU over the items of a user or session.

    Tokens [B, L, D] are the hidden states (projected where the GRU has another width); the user is the newest one. `state` is
    {"hidden": [B, layers, H]}, zero where a user begins."""

    name = "gru4rec"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER | Can.CARRY_STATE
    Config = GRU4RecConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "next_item"},
            "click": {"name": "labelled", "price": "bce"},
            "label": {"name": "labelled"},
        },
        "train": {
            "optimizer": "adam",
            "lr": 8e-3,
            "schedule": "linear",
            "warmup": 100,
            "epochs": 40,
            "validate_every": 2,
            "patience": 5,
        },
        "batch": {"rows": 512, "tokens": 6144, "windows": "all", "eval_tokens": 65_536},
    }

    def __init__(self, config: GRU4RecConfig, build: Build) -> None:
        super().__init__(config, build)
        hidden = config.hidden or config.dim
        self.items = build.table("item", config.dim)
        self.outputs = None if config.constrained else build.table("item", config.dim)
        self.bias = nn.Parameter(torch.zeros(build.schema.spaces["item"]))
        self.labels = Heads(build, config.dim)
        recur = build.op("augru")
        self.layers = nn.ModuleList(GRULayer(config.dim if i == 0 else hidden, hidden, recur) for i in range(config.layers))
        self.project: nn.Module = nn.Identity() if hidden == config.dim else nn.Linear(hidden, config.dim)
        self.drop_embedding = Dropout(config.dropout_embedding)
        self.drop_hidden = Dropout(config.dropout_hidden)
        self.hidden = hidden

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """Every event given is read, from the state given; a row without events keeps its state."""
        item, mask = history.events["item"], history.mask
        offsets = F.pad(history.lengths.cumsum(0), (1, 0))  # [B + 1]
        x = self.drop_embedding(self.items(pack(item, mask)))  # [S, D]
        begun = x.new_zeros(len(item), len(self.layers), self.hidden) if history.state is None else history.state["hidden"]
        ended = []
        for layer, state in zip(self.layers, begun.unbind(1), strict=True):
            x, last = layer(x, offsets, state, item.shape[1])
            x = self.drop_hidden(x)
            ended.append(last)
        tokens, before = unpack(self.project(x), mask), self.project(begun[:, -1])  # [B, L, D], [B, D]
        newest = gather_positions(tokens, history.last[:, None])[:, 0]
        user = torch.where(mask.any(1, keepdim=True), newest, before)
        return Encoded(history, tokens, user, {"hidden": torch.stack(ended, 1)}, {"before": before})

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, D]: the token at `query.at`; before any event, what the state says that the row began with."""
        asked = gather_positions(encoded.tokens, query.at)
        return torch.where(query.at.unsqueeze(-1) < 0, encoded.cache["before"].unsqueeze(1), asked)

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The output embeddings and biases of items, or the classes of a label task, without bias."""
        return self.labels.candidates(tasks, self.items if self.outputs is None else self.outputs, ids, self.bias)
