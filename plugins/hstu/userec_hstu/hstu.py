"""HSTU: hierarchical sequential transduction units (Zhai et al. 2024), in the setting of the authors' public experiments.

x_l = sqrt(d) E[item_l] + P_l, then blocks (section 3, equations 1 to 3):

    U, V, Q, K = silu(LN(x) W)
    A_ij = silu(Q_i K_j + p[i - j] + w[bucket(t_{i+1} - t_j)]) / n,  j <= i
    x += dropout(U * LN(A V)) W_o + b_o

No softmax, no 1/sqrt(d), no feed-forward layer, norms without weights, `n` a constant. t_{i+1} is the time of the event to be
predicted: `asked.time`, when the question is put. The score of an item is the cosine of token and embedding over `temperature`.

Where we depart: events are packed, without padding (positions count from the start of the window, as in the authors' rows);
tables are drawn from normals that are not truncated; a time bucket is found by edges in whole seconds, where the authors round a
float32 logarithm. The recipe trains on all windows, in batches of 6,144 events, at a rate that decays linearly from 2e-3, and
keeps the best epoch on validation; the authors train 101 epochs of 128 rows, each user's newest window, at 1e-3, without
validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Literal

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
from userec.errors import UserError

EPS: Final = 1e-6
SLOTS: Final = 11
"""What the authors' rows are longer than the window: ten slots for outputs, and one."""
BUCKETS: Final = 129
STEP: Final = 0.301
"""A gap of dt seconds is in bucket floor(ln(max(dt, 1)) / STEP), at most the last."""


class HSTUConfig(Config):
    """The authors' setting for MovieLens-1M."""

    dim: int = Setting(50, ge=1)
    layers: int = Setting(2, ge=1)
    heads: int = Setting(1, ge=1)
    query_dim: int = Setting(50, ge=1)
    """Width of a head's queries and keys."""
    value_dim: int = Setting(50, ge=1)
    """Width of a head's values and gates."""
    dropout: float = Setting(0.2, ge=0, lt=1)
    """Of embeddings."""
    linear_dropout: float = Setting(0.2, ge=0, lt=1)
    """Of what a block's last layer sees."""
    window: int = Setting(200, ge=1)
    """Last events used."""
    divisor: float | None = Setting(None, gt=0)
    """What attention weights are divided by; None = window + 11, as in the authors' code."""
    temperature: float = Setting(0.05, gt=0)
    time: Literal["request", "events", "off"] = "request"
    """What the time bias sees of the question after event i: when it is put, t_{i+1}, which for the next item is when that
    happens; or only the time of event i. `off`: no time bias, and times are not read."""
    position_bias: bool = True


class HSTULargeConfig(HSTUConfig):
    """The authors' large setting for MovieLens-1M."""

    layers: int = Setting(8, ge=1)
    heads: int = Setting(2, ge=1)
    query_dim: int = Setting(25, ge=1)
    value_dim: int = Setting(25, ge=1)


def time_edges() -> Tensor:
    """[128] int64, ascending: from edge k - 1 seconds on a gap is in bucket k, exactly where the logarithm says so."""
    return torch.tensor([math.ceil(math.exp(STEP * k)) for k in range(1, BUCKETS)])


class Block(nn.Module):
    """[S, D] -> [S, D], all users' events one after another; position and time bias are its own, shared by its heads."""

    def __init__(self, config: HSTUConfig, build: Build) -> None:
        super().__init__()
        self.attend, self.gate = build.op("hstu_attention"), build.op("norm_gate")
        self.heads, self.divisor = config.heads, config.divisor or config.window + SLOTS
        self.widths = [config.value_dim] * 2 + [config.query_dim] * 2
        self.project = nn.Linear(config.dim, config.heads * sum(self.widths), bias=False)
        self.merge = nn.Linear(config.heads * config.value_dim, config.dim)
        self.position = nn.Parameter(torch.empty(config.window, 1)) if config.position_bias else None
        self.time = nn.Parameter(torch.empty(BUCKETS, 1)) if config.time != "off" else None
        self.drop = Dropout(config.linear_dropout)
        for weight in (self.project.weight, self.position, self.time):
            if weight is not None:
                nn.init.normal_(weight, std=0.02)
        nn.init.xavier_uniform_(self.merge.weight)
        nn.init.zeros_(self.merge.bias)

    def forward(self, x: Tensor, offsets: Tensor, max_len: int, times: Mapping[str, Tensor]) -> Tensor:
        """User b's events stand at offsets[b] to offsets[b + 1], at most `max_len`; `times` are arguments of the op."""
        made = F.silu(self.project(F.layer_norm(x, x.shape[-1:], eps=EPS)))
        u, v, q, k = made.split([self.heads * width for width in self.widths], 1)  # [S, H * Dv] twice, [S, H * Dqk] twice
        v, q, k = (part.unflatten(1, (self.heads, -1)) for part in (v, q, k))  # [S, H, Dv], [S, H, Dqk] twice
        y = self.attend(q, k, v, offsets, self.position, self.time, **times, max_len=max_len, divisor=self.divisor)
        return x + self.merge(self.drop(self.gate(y.flatten(1), u, eps=EPS)))


class HSTU(Encoder):
    """Gated pointwise attention with position and time bias.

    Tokens [B, L, D] of length 1, of every position at once; the user is the token of his last event, zeros where he has none.

    With `time="request"` both depend on when the question is put."""

    name = "hstu"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER
    reads = frozenset({"item", "time", "asked.time"})
    Config = HSTUConfig
    edges: Tensor  # [128] int64 seconds
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "next_item", "negatives": 128},
            "click": {"name": "labelled", "price": "bce"},
            "label": {"name": "labelled"},
        },
        "train": {
            "optimizer": "adamw",
            "lr": 2e-3,
            "betas": (0.9, 0.98),
            "schedule": "linear",
            "warmup": 100,
            "epochs": 40,
            "validate_every": 3,
            "patience": 5,
        },
        "batch": {"rows": 512, "tokens": 6144, "windows": "all"},
    }

    def __init__(self, config: HSTUConfig, build: Build) -> None:
        super().__init__(config, build)
        self.reads = {"request": HSTU.reads, "events": HSTU.reads - {"asked.time"}, "off": frozenset({"item"})}[config.time]
        if config.time != "off" and "time" not in build.schema.fields:
            raise UserError(
                f"encoder {self.name!r} reads the times of events, and this data set has none:"
                " --set encoder.time=off leaves out the time bias"
            )
        self.items = build.table("item", config.dim)
        self.labels = Heads(build, config.dim)
        self.positions = nn.Parameter(torch.empty(config.window, config.dim))
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, build) for _ in range(config.layers))
        self.register_buffer("edges", time_edges(), persistent=False)
        nn.init.normal_(self.positions, std=config.dim**-0.5)

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """Of rows longer than `window` the last `window` events are encoded; other tokens are zero."""
        item, window = history.events["item"], len(self.positions)
        start = (history.lengths - window).clamp(min=0)  # [B]
        place = torch.arange(item.shape[1], device=item.device) - start[:, None]  # [B, L] position in the window
        seen = history.mask & (place >= 0)
        offsets = F.pad(seen.sum(1).cumsum(0), (1, 0))  # [B + 1]
        x = self.items(pack(item, seen)) * math.sqrt(self.dim) + F.embedding(pack(place, seen), self.positions)
        x, times = self.drop(x), self._times(history, seen)
        for block in self.blocks:
            x = block(x, offsets, min(item.shape[1], window), times)
        tokens = unpack(F.normalize(x, dim=-1, eps=EPS), seen)
        return Encoded(history, tokens, gather_positions(tokens, history.last[:, None])[:, 0])

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """The tokens, divided by the temperature."""
        return super().queries(encoded, query) / self.config.temperature

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The item embeddings, or the classes of a label task, each of length 1."""
        table = self.labels.table_of(tasks, self.items)
        return F.normalize(table.all() if ids is None else table(ids), dim=-1, eps=EPS), None

    def _times(self, history: History, seen: Tensor) -> dict[str, Tensor]:
        """What the time bias compares: arguments of the op, [S] int64 each, and the edges."""
        if self.config.time == "off":
            return {}
        time = pack(history.events["time"], seen)
        asked = pack(history.asked["asked.time"], seen) if self.config.time == "request" else time
        return {"time": time, "asked": asked, "edges": self.edges}


class HSTULarge(HSTU):
    """HSTU in the authors' large setting: eight blocks of two heads."""

    name = "hstu_large"
    Config = HSTULargeConfig
