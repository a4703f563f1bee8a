"""PinnerFormer: a user embedding that tells what he will do in the weeks to come, not only next (Pancha et al., KDD 2022).

An event is [its item; its action; its times], made H wide by a linear layer, plus the learned position counted from the newest
event, which is 1 (section 3.3). Causal pre-LN blocks follow, then an MLP of two layers with GELU, and the L2 norm: the token. An
item is an MLP on its embedding and the L2 norm. The score is <token, item> / tau, tau learned and at least .01 (section 3.4). A
time t is [cos(2 pi t / p_i + phi_i), sin(...) of fixed periods p_i with learned phases; log t]: the event's own time with periods
from a quarter of an hour to a year, and the gap to the previous event with 32 periods from a second to four weeks.

The recipe asks the dense all-action question: each position of a row that ends before a cut is asked for one random event
behind the cut, by a softmax over uniform negatives and answers of the batch, corrected by log Q of the mixture (section 3.2).

Where we depart: there are no PinSage embeddings, so items are ids with a learned embedding, and no surface or duration. The
paper's third time, since the user's latest action, is off by default: it tells every position when later events are, so with
`since_latest=true` the encoder is not causal, and is trained by `future` with `question=last` (all-action). The future is counted
in events, not in 28 days (`objective.days`). Widths are made for MovieLens; the paper has H 768, D 256, 6 layers, 8 heads, M 256.
Times are scaled to length one, the logarithm by that of four weeks. Dropout, tau's start and schedule are ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Final

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
from userec_transformer.block import Block, start_small, through

HOUR: Final = 3600
DAY: Final = 24 * HOUR
ABSOLUTE: Final = (
    HOUR // 4,
    HOUR // 2,
    HOUR,
    2 * HOUR,
    4 * HOUR,
    8 * HOUR,
    12 * HOUR,
    DAY,
    7 * DAY,
    28 * DAY,
    91 * DAY,
    365 * DAY,
)
"""Periods of the event's own time, seconds; the paper tells their ends."""
RELATIVE: Final = tuple(math.exp(i / 31 * math.log(28 * DAY)) for i in range(32))
"""Periods of a time between events, seconds: from 1 to four weeks, evenly in the logarithm."""
LEAST_TAU: Final = 0.01


class PinnerFormerConfig(Config):
    """Widths made for MovieLens; the paper's stand in the docstring of the module."""

    dim: int = Setting(64, ge=1)
    """Of items and users (D)."""
    hidden: int = Setting(128, ge=1)
    """Inside the Transformer (H)."""
    layers: int = Setting(2, ge=1)
    heads: int = Setting(2, ge=1)
    inner: int | None = Setting(None, ge=1)
    """Width inside a feed-forward layer; None = 4 `hidden`, as published."""
    action_dim: int = Setting(16, ge=1)
    """Of the action's embedding, where the data tell actions."""
    dropout: float = Setting(0.2, ge=0, lt=1)
    window: int = Setting(200, ge=1)
    """Last events used (M)."""
    tau: float = Setting(0.1, gt=LEAST_TAU)
    """Where the learned temperature starts."""
    time: bool = True
    """Whether it reads times."""
    since_latest: bool = False
    """Whether an event tells the time from it to the latest one; then no position is free of later events."""


class Cycles(nn.Module):
    """Times [S] in whole seconds, none negative -> [S, 2 P + 1]: where each stands in every period, and its logarithm.

    All periods together are of length one, so that they do not drown the item at the start."""

    periods: Tensor  # [P] float64, seconds

    def __init__(self, periods: tuple[float, ...]) -> None:
        super().__init__()
        self.width, self.scale = 2 * len(periods) + 1, len(periods) ** -0.5
        self.register_buffer("periods", torch.tensor(periods, dtype=torch.float64), persistent=False)
        self.phases = nn.Parameter(torch.zeros(len(periods)))

    def forward(self, time: Tensor) -> Tensor:
        """The share of a period is taken in float64: in float32, seconds since 1970 are two minutes apart."""
        seconds = time.double()[:, None]
        share = (seconds / self.periods.double()).frac().to(self.phases.dtype)  # [S, P]
        angle = 2 * math.pi * share + self.phases
        log = seconds.log1p().to(self.phases.dtype) / math.log(28 * DAY)
        return torch.cat([angle.cos() * self.scale, angle.sin() * self.scale, log], 1)


class PinnerFormer(Encoder):
    """A causal Transformer that tells what a user will do in the time to come.

    Tokens [B, L, D] of length one, of every position; the user is the token of his last event, zeros where he has none.

    Positions count from the newest event: it is causal, but a token is not that of the history cut there."""

    name = "pinnerformer"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.EMBED_USER
    Config = PinnerFormerConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "future", "window": 20, "question": "dense", "negatives": 1024, "shared": True, "in_batch": 1024},
            "click": {"name": "labelled", "price": "bce"},
            "label": {"name": "labelled"},
        },
        "train": {
            "optimizer": "adam",
            "lr": 1e-3,
            "schedule": "linear",
            "warmup": 100,
            "epochs": 60,
            "validate_every": 3,
            "patience": 5,
        },
        "batch": {"rows": 512, "tokens": 6144, "windows": "last"},
    }

    def __init__(self, config: PinnerFormerConfig, build: Build) -> None:
        super().__init__(config, build)
        if config.hidden % config.heads:
            raise UserError(
                f"encoder 'pinnerformer': encoder.hidden {config.hidden} is not a multiple of encoder.heads {config.heads}"
            )
        if config.since_latest and not config.time:
            raise UserError("encoder 'pinnerformer': encoder.since_latest is a time; set encoder.time=true too")
        fields = build.schema.fields
        if config.time and "time" not in fields:
            raise UserError("encoder 'pinnerformer' reads time, and the data set has none; set encoder.time=false")
        if config.since_latest:
            self.offers = self.offers & ~Can.CAUSAL
        self.items = build.table("item", config.dim)
        self.labels = Heads(build, config.dim)
        self.actions = build.table(fields["action"].space, config.action_dim) if "action" in fields else None
        self.reads = frozenset({"item"} | ({"time"} if config.time else set()) | ({"action"} if "action" in fields else set()))
        spans = 1 + config.since_latest if config.time else 0
        self.cycles = nn.ModuleList([*([Cycles(ABSOLUTE)] if config.time else []), *(Cycles(RELATIVE) for _ in range(spans))])
        width = config.dim + (config.action_dim if self.actions is not None else 0)
        self.enter = nn.Linear(width + sum(cycle.width for cycle in self.cycles), config.hidden)  # type: ignore[misc]
        self.positions = nn.Parameter(torch.empty(config.window, config.hidden))
        self.drop = Dropout(config.dropout)
        attend, inner = build.op("jagged_attention"), config.inner or 4 * config.hidden
        self.blocks = nn.ModuleList(
            Block(attend, config.hidden, config.heads, inner, config.dropout, activation=F.gelu) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.hidden)
        self.user_tower = nn.Sequential(nn.Linear(config.hidden, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.dim))
        self.item_tower = nn.Sequential(nn.Linear(config.dim, config.dim), nn.GELU(), nn.Linear(config.dim, config.dim))
        self.log_tau = nn.Parameter(torch.tensor(math.log(config.tau - LEAST_TAU)))
        nn.init.normal_(self.positions, std=0.02)
        start_small(self.blocks)
        for layer in [*self.user_tower, *self.item_tower]:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)  # of a tower's output only the direction is left: at the start none is favoured

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """Of rows longer than `window` the last `window` events are encoded; other tokens are zero."""
        length, window = history.mask.shape[1], self.config.window
        back = history.last[:, None] - torch.arange(length, device=history.mask.device)  # [B, L], 0 at the newest
        seen = history.mask & (back < window)
        offsets = F.pad(seen.sum(1).cumsum(0), (1, 0))  # [B + 1]
        x = self.enter(torch.cat(self._told(history, seen), 1)) + F.embedding(pack(back, seen), self.positions)  # [S, H]
        x = through(self.blocks, self.drop(x), offsets, min(length, window), history.newest)
        tokens = unpack(_unit(self.user_tower(self.norm(x))), back == 0 if history.newest else seen)
        return Encoded(history, tokens, gather_positions(tokens, history.last[:, None])[:, 0])

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, D]: the token at `query.at` over tau, zeros before any event."""
        return gather_positions(encoded.tokens, query.at) / (LEAST_TAU + self.log_tau.exp())

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Items through their tower, or the classes of a label task."""
        table = self.labels.table_of(tasks, self.items)
        found = table.all() if ids is None else table(ids)
        return (_unit(self.item_tower(found * math.sqrt(self.dim))) if table is self.items else found), None

    def _told(self, history: History, seen: Tensor) -> list[Tensor]:
        """What the S `seen` events tell: item, action, times, each [S, ...]."""
        told = [self.items(pack(history.events["item"], seen)) * math.sqrt(self.dim)]
        if self.actions is not None:
            told.append(self.actions(pack(history.events["action"], seen)) * math.sqrt(self.config.action_dim))
        if self.config.time:
            time = history.events["time"]  # [B, L]
            first = seen & ~F.pad(seen, (1, 0))[:, :-1]
            spans = [time, (time - F.pad(time, (1, 0))[:, :-1]).masked_fill(first, 0)]
            if self.config.since_latest:
                spans.append(gather_positions(time, history.last[:, None]) - time)
            told += [cycles(pack(span, seen).clamp(min=0)) for cycles, span in zip(self.cycles, spans, strict=True)]
        return told


def _unit(x: Tensor) -> Tensor:
    """[..., D] of length one; nothing stays nothing."""
    return F.normalize(x, dim=-1, eps=1e-6)
