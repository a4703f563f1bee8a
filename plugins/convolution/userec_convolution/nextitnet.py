"""NextItNet: dilated causal convolutions over the sequence of items (Yuan et al. 2019, WSDM).

x_l = E[item_l], then residual blocks whose layers read x_l, x_{l - dilation}, ..., x_{l - (kernel - 1) dilation} (section
3.3); what stands before a row's first event is zero. Blocks (figure 3): `two` (b) is x + relu LN conv_{2 dilation}(relu LN
conv_{dilation} x), `one` (a) is x + W2 relu LN conv_{dilation}(relu LN W1 relu LN x) with W1 to half the width. The score of
an item is relu(x) times a row of an output table of its own, plus its bias.

Where we depart: events are packed, so padding is in no convolution and no loss (the authors' code convolves it and trains on
it); dropout, of which they have none, of embeddings and of what each block adds; layers start Xavier-normal (truncated normal
of std 0.02 is published: what a block `one` adds is then too small to learn from). The recipe trains in batches of events,
not of 128 rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

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


class NextItNetConfig(Config):
    """The authors' code, but for the width, dropout and the window."""

    dim: int = Setting(64, ge=1)
    block: Literal["one", "two"] = "two"
    """Dilated layers in a residual block: one between two 1 x 1 (figure 3a), or two (figure 3b)."""
    dilations: tuple[Annotated[int, Setting(ge=1)], ...] = Setting((1, 2, 1, 2, 1, 2), min_length=1)
    """A block each; the second layer of block `two` has twice its dilation."""
    kernel: int = Setting(3, ge=2)
    """Events that a layer reads."""
    dropout: float = Setting(0.2, ge=0, lt=1)
    shared: bool = False
    """Score by the input embeddings, without bias, instead of an output table."""
    window: int = Setting(200, ge=1)
    """Last events used; more than the receptive field change nothing."""


@dataclass(frozen=True)
class Packed:
    """Where events lie when all rows stand one after another."""

    row: Tensor  # [S] int64
    place: Tensor  # [S] int64: position in its row
    offsets: Tensor  # [B + 1] int64: where rows begin

    def earlier(self, x: Tensor, steps: int, past: Tensor | None) -> Tensor:
        """x [S, C] -> [S, C]: what stood `steps` before each event, in its row or in `past` [B, H, C], which ends there; zeros
        where there is no past."""
        moved = torch.cat([x.new_zeros(min(steps, len(x)), x.shape[1]), x[: max(len(x) - steps, 0)]])
        first = (self.place < steps).nonzero()[:, 0]
        if past is None:
            return moved.index_copy_(0, first, x.new_zeros(len(first), x.shape[1]))
        return moved.index_copy_(0, first, past[self.row[first], past.shape[1] - steps + self.place[first]])

    @torch.no_grad()
    def newest(self, x: Tensor, past: Tensor | None, kept: int) -> Tensor:
        """`past` [B, kept, C] moved on: the last `kept` of what stood before each row and of its own events x [S, C]. Values
        alone, without gradients: a state is carried on detached."""
        rows = len(self.offsets) - 1
        if not len(x):
            return x.new_zeros(rows, kept, x.shape[1]) if past is None else past
        at = torch.arange(-kept, 0, device=x.device) + self.offsets.diff()[:, None]  # [B, kept] in the row, negative in the past
        own = x[(self.offsets[:-1, None] + at).clamp_(min=0, max=len(x) - 1)]  # [B, kept, C]
        inside = (at >= 0).unsqueeze(-1)
        if past is None:
            return own.mul_(inside)
        return torch.where(inside, own, past.gather(1, (at + kept).clamp(max=kept - 1).unsqueeze(-1).expand_as(own)))


class Dilated(nn.Module):
    """y_l = b + sum over t of W_t x_{l - t dilation}: [S, C] -> [S, D], and the inputs that the next events will need."""

    def __init__(self, inside: int, outside: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.taps = nn.Linear(kernel * inside, outside)  # the newest event's weights first
        self.reach = (kernel - 1) * dilation

    def forward(self, x: Tensor, packed: Packed, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """`past` [B, reach, C], None = zeros -> (y, the same for what comes next)."""
        read = [x] + [packed.earlier(x, tap * self.dilation, past) for tap in range(1, self.kernel)]
        return self.taps(torch.cat(read, 1)), packed.newest(x, past, self.reach)


class One(nn.Module):
    """Figure 3a: a dilated layer of half the width between two 1 x 1, each after LN and ReLU."""

    def __init__(self, config: NextItNetConfig, dilation: int) -> None:
        super().__init__()
        dim, inner = config.dim, config.dim // 2
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in (dim, inner, inner))
        self.narrow, self.widen = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.layers = nn.ModuleList([Dilated(inner, inner, config.kernel, dilation)])
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, packed: Packed, pasts: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """[S, D] -> [S, D]; `pasts` holds what stood before the dilated layer."""
        inner = F.relu(self.norms[1](self.narrow(F.relu(self.norms[0](x)))))
        inner, past = self.layers[0](inner, packed, pasts[0])
        return x + self.drop(self.widen(F.relu(self.norms[2](inner)))), [past]


class Two(nn.Module):
    """Figure 3b: two dilated layers, the second of twice the dilation, each before LN and ReLU."""

    def __init__(self, config: NextItNetConfig, dilation: int) -> None:
        super().__init__()
        dim = config.dim
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.layers = nn.ModuleList(Dilated(dim, dim, config.kernel, step) for step in (dilation, 2 * dilation))
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, packed: Packed, pasts: Sequence[Tensor | None]) -> tuple[Tensor, list[Tensor]]:
        """[S, D] -> [S, D]; `pasts` holds what stood before each layer."""
        inner, news = x, []
        for layer, norm, past in zip(self.layers, self.norms, pasts, strict=True):
            inner, new = layer(inner, packed, past)
            inner = F.relu(norm(inner))
            news.append(new)
        return x + self.drop(inner), news


class NextItNet(Encoder):
    """Dilated causal convolutions over the last events.

    Tokens [B, L, D] of every position at once; the user is the token of his last event, zeros where he has none.

    The state is what the layers read of the past, for each the last (kernel - 1) dilation of its inputs, and the last token; zero
    before any event, which is also what the convolutions pad with."""

    name = "nextitnet"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER | Can.CARRY_STATE
    Config = NextItNetConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "next_item"},
            "click": {"name": "labelled", "price": "bce"},
            "label": {"name": "labelled"},
        },
        "train": {
            "optimizer": "adam",
            "lr": 2e-3,
            "schedule": "linear",
            "warmup": 100,
            "epochs": 30,
            "validate_every": 3,
            "patience": 5,
        },
        "batch": {"rows": 512, "tokens": 6144, "windows": "all"},
    }

    def __init__(self, config: NextItNetConfig, build: Build) -> None:
        super().__init__(config, build)
        if config.block == "one" and config.dim % 2:
            raise UserError(
                f"encoder 'nextitnet': encoder.block one halves the width, and encoder.dim {config.dim} is odd: "
                f"--set encoder.dim={config.dim + 1}, or encoder.block=two"
            )
        self.items = build.table("item", config.dim)
        if not config.shared:
            self.output = build.table("item", config.dim)
            self.bias = nn.Parameter(torch.zeros(build.schema.spaces["item"]))
        self.labels = Heads(build, config.dim)
        self.drop = Dropout(config.dropout)
        block = One if config.block == "one" else Two
        self.blocks = nn.ModuleList(block(config, dilation) for dilation in config.dilations)
        for layer in self.blocks.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_normal_(layer.weight)
                nn.init.zeros_(layer.bias)

    @property
    def reaches(self) -> list[list[int]]:
        """How far back each layer of each block reads."""
        return [[layer.reach for layer in block.layers] for block in self.blocks]  # type: ignore[union-attr]

    @property
    def receptive_field(self) -> int:
        """How many last events an answer depends on."""
        return 1 + sum(map(sum, self.reaches))

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """The user of a row without events is what its state left, zeros where it has none. Under `newest` the receptive
        field alone is read."""
        item, event = history.events["item"], torch.arange(history.mask.shape[1], device=history.mask.device)
        start = (history.lengths - self.receptive_field).clamp(min=0)[:, None] if history.newest else 0
        place = (event - start).expand_as(item)
        mask = history.mask & (place >= 0)
        row = torch.arange(len(item), device=item.device)[:, None].expand_as(item)
        packed = Packed(pack(row, mask), pack(place, mask), F.pad(mask.sum(1).cumsum(0), (1, 0)))
        x = self.drop(self.items(pack(item, mask)))  # [S, D]
        pasts = self._pasts(history)
        news: list[Tensor] = []
        for block in self.blocks:
            count = len(block.layers)  # type: ignore[arg-type]
            x, new = block(x, packed, pasts[len(news) : len(news) + count])
            news += new
        tokens = unpack(F.relu(x), mask)
        encoded = Encoded(history, tokens * (event == history.last[:, None]).unsqueeze(-1) if history.newest else tokens)
        user = self.queries(encoded, Query(history.last[:, None]))[:, 0]
        return replace(encoded, user=user, state={"inputs": torch.cat(news, 1), "user": user})

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """The token at `query.at`; before a row's first event the user that its state left, zeros where it has none."""
        asked, state = super().queries(encoded, query), encoded.history.state
        return asked if state is None else torch.where((query.at < 0).unsqueeze(-1), state["user"].unsqueeze(1), asked)

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The output table with its bias, the input embeddings where they are shared, or the classes of a label task."""
        if self.config.shared:
            return self.labels.candidates(tasks, self.items, ids)
        return self.labels.candidates(tasks, self.output, ids, self.bias)

    def _pasts(self, history: History) -> Sequence[Tensor | None]:
        """For each layer what stood before the rows: [B, reach, C]; None where nothing did."""
        reaches = [reach for block in self.reaches for reach in block]
        return [None] * len(reaches) if history.state is None else history.state["inputs"].split(reaches, 1)
