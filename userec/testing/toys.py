"""A toy encoder of each shape, the smallest that keeps the whole contract: what a plugin author may start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from userec.batch import Batch, Encoded, History, Query, gather_positions
from userec.capability import Can
from userec.config import Config, Ref
from userec.encoder.blocks.heads import Heads
from userec.encoder.contract import Build, Encoder

SEQUENCE = Can.CAUSAL | Can.ANY_POSITION
DOT = Can.SCORE_CATALOG | Can.DOT_SCORE


class Width(Config):
    """What most toys set."""

    dim: int = 8


def token_at_end(tokens: Tensor, history: History) -> Tensor:
    """[B, D]: each row's last token, zero where it has none."""
    return gather_positions(tokens, history.last[:, None])[:, 0]


class ItemsAlone(Encoder):
    """Has a table of the items and none of another label space; trains by drawn negatives unless told otherwise."""

    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "next_item", "negatives": 4, "price": "bce"},
            "label": {"name": "labelled", "negatives": 4, "price": "bce"},
            "click": {"name": "labelled", "price": "bce"},
            "rating": {"name": "labelled", "price": "squared"},
        }
    }

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__(config, build)
        self.spaces = {task.name: task.space for task in build.schema.all_tasks}

    def refuses(self, tasks: tuple[str, ...]) -> list[str]:
        """Tasks whose answers are no items."""
        return [f"{self.name!r} scores items; task {task!r} asks for others" for task in tasks if self.spaces[task] != "item"]


class Dot(ItemsAlone):
    """The mean of the items so far, projected; a dot product with the item table."""

    name = "toy-dot"
    offers = Can.GRADIENT | DOT | SEQUENCE | Can.EMBED_USER
    Config = Width

    def __init__(self, config: Width, build: Build) -> None:
        super().__init__(config, build)
        self.items = build.table("item", config.dim)
        self.project = nn.Linear(config.dim, config.dim)

    def encode(self, history: History) -> Encoded:
        """tokens[l] = W mean(items[..l]) + item[l]."""
        items = self.items(history.events["item"])  # [B, L, D]
        steps = torch.arange(1, items.shape[1] + 1)[:, None]
        tokens = self.project(items.cumsum(1) / steps) + items
        return Encoded(history, tokens, token_at_end(tokens, history))

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The item table, tied."""
        return (self.items.all() if ids is None else self.items(ids)), None


class Target(ItemsAlone):
    """The candidate attends to the events up to the question (DIN's shape); the user embedding asks with the last event."""

    name = "toy-target"
    offers = Can.GRADIENT | SEQUENCE | Can.EMBED_USER
    Config = Width

    def __init__(self, config: Width, build: Build) -> None:
        super().__init__(config, build)
        self.items = build.table("item", config.dim)
        self.judge = nn.Sequential(nn.Linear(2 * config.dim, config.dim), nn.ReLU(), nn.Linear(config.dim, 1))

    def encode(self, history: History) -> Encoded:
        """Item vectors; user = what the last event finds."""
        tokens = self.items(history.events["item"])  # [B, L, D]
        last = history.last[:, None]
        user = self.attend(gather_positions(tokens, last)[:, None], tokens, history.mask, last)[:, 0, 0]
        return Encoded(history, tokens, user)

    def attend(self, asking: Tensor, tokens: Tensor, mask: Tensor, at: Tensor) -> Tensor:
        """asking [B|1, Q|1, C, D] over events 0..at [B, Q] -> [B, Q, C, D]; zero where there is none."""
        seen = mask[:, None] & (torch.arange(mask.shape[1]) <= at[..., None])  # [B, Q, L]
        logits = torch.einsum("bqcd,bld->bqcl", asking.expand(*at.shape, *asking.shape[2:]), tokens)
        weight = logits.masked_fill(~seen[:, :, None], torch.finfo(logits.dtype).min).softmax(-1) * seen[:, :, None]
        return torch.einsum("bqcl,bld->bqcd", weight, tokens)

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, 1]: an MLP of what the candidate finds and the candidate."""
        assert query.ids is not None, "a target-aware encoder does not offer SCORE_CATALOG"
        asking = self.items(query.ids)
        found = self.attend(asking, encoded.tokens, encoded.history.mask, query.at)  # [B, Q, C, D]
        return self.judge(torch.cat([found, asking.expand_as(found)], -1))


class Counting(ItemsAlone):
    """First-order transitions, counted with add-one smoothing; tokens are one-hot last items."""

    name = "toy-counting"
    recipe: ClassVar[Mapping[str, Any]] = {}
    offers = Can.SCORE_CATALOG | SEQUENCE

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__(config, build)
        self.dim = build.schema.spaces["item"]
        self.counts: Tensor
        self.register_buffer("counts", torch.zeros(self.dim, self.dim))

    def encode(self, history: History) -> Encoded:
        """tokens[l] = one-hot item[l]."""
        return Encoded(history, F.one_hot(history.events["item"], self.dim).float())

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """log P(candidate | item at the question); before any event, the same for all."""
        rows = gather_positions(encoded.tokens, query.at) @ self.counts + 1  # [B, Q, n]
        scores = (rows / rows.sum(-1, keepdim=True)).log()
        if query.ids is not None:
            scores = scores.gather(-1, query.ids.expand(*query.at.shape, -1))
        return scores.unsqueeze(-1)

    def partial_fit(self, batch: Batch) -> None:
        """Add each pair of neighbours."""
        items, mask = batch.history.events["item"], batch.history.mask
        both = mask[:, :-1] & mask[:, 1:]
        pairs = items[:, :-1][both] * self.dim + items[:, 1:][both]
        self.counts += torch.bincount(pairs, minlength=self.dim**2).view(self.dim, self.dim)


class Stateful(Dot):
    """A leaky sum of items, h <- a h + item: the state is h, so that a history may come in pieces."""

    name = "toy-stateful"
    offers = Dot.offers | Can.CARRY_STATE

    def encode(self, history: History) -> Encoded:
        """tokens[l] = tanh(W h[l]); state out is h after each row's last event."""
        items = self.items(history.events["item"])  # [B, L, D]
        h = items.new_zeros(len(items), self.dim) if history.state is None else history.state["h"]
        before = h
        hidden = []
        for step in items.unbind(1):
            h = 0.7 * h + step
            hidden.append(h)
        states = torch.stack(hidden, 1)  # [B, L, D]
        after = torch.where(history.lengths[:, None] > 0, token_at_end(states, history), before)
        return Encoded(history, self.project(states).tanh(), self.project(after).tanh(), {"h": after})


class ManyTask(Encoder):
    """Dot with a table for each label space and a projection for each task, made when the task begins."""

    name = "toy-many-task"
    recipe = {**ItemsAlone.recipe, "objective": {**ItemsAlone.recipe["objective"], "label": {"name": "labelled"}}}
    offers = Can.GRADIENT | Can.SCORE_CATALOG | SEQUENCE | Can.EMBED_USER | Can.MANY_TASKS
    Config = Width

    def __init__(self, config: Width, build: Build) -> None:
        super().__init__(config, build)
        self.items = build.table("item", config.dim)
        self.labels = Heads(build, config.dim)
        self.heads = nn.ModuleDict()

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Heads for the group, a table where its space has none yet."""
        self.labels.begin(tasks)
        for task in tasks:
            if task not in self.heads:
                self.heads[task] = nn.Linear(self.dim, self.dim)

    def encode(self, history: History) -> Encoded:
        """The running mean of items."""
        items = self.items(history.events["item"])  # [B, L, D]
        tokens = items.cumsum(1) / torch.arange(1, items.shape[1] + 1)[:, None]
        return Encoded(history, tokens, token_at_end(tokens, history))

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, A]: each task's own projection of the user against the label space they share."""
        tasks = encoded.history.tasks
        table = self.labels.table_of(tasks, self.items)
        asked = gather_positions(encoded.tokens, query.at)
        labels = table(torch.arange(len(table.all())) if query.ids is None else query.ids)  # [.., C, D]
        labels = labels.expand(*query.at.shape, *labels.shape[-2:])
        return torch.stack([torch.einsum("bqd,bqcd->bqc", self.heads[task](asked), labels) for task in tasks], -1)


class UserId(ItemsAlone):
    """A row of a user table: a user-id representation is an encoder too. It reads no events."""

    name = "toy-user-id"
    offers = Can.GRADIENT | DOT | SEQUENCE | Can.EMBED_USER
    reads = frozenset({"user"})
    Config = Width

    def __init__(self, config: Width, build: Build) -> None:
        super().__init__(config, build)
        self.users = build.table("user", config.dim)
        self.items = build.table("item", config.dim)

    def encode(self, history: History) -> Encoded:
        """The same token after every event."""
        user = self.users(history.user)  # [B, D]
        return Encoded(history, user[:, None].expand(-1, history.mask.shape[1], -1), user)

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """The user, whatever has happened."""
        assert encoded.user is not None
        return encoded.user[:, None].expand(-1, query.at.shape[1], -1)

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The item table."""
        return (self.items.all() if ids is None else self.items(ids)), None


class Nested(ItemsAlone):
    """Another encoder by name inside, its tokens projected: `offers` and `reads` follow the inner one."""

    name = "toy-nested"

    class Config(Width):
        """The inner encoder and its settings."""

        inner: Ref = Ref(name=Dot.name)

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__(config, build)
        self.inner = build.encoder(config.inner)
        self.items = build.table("item", config.dim)
        self.project = nn.Linear(self.inner.dim, config.dim)
        self.reads = self.inner.reads
        self.offers = self.inner.offers & (Can.EMBED_USER | SEQUENCE) | Can.GRADIENT | DOT

    def encode(self, history: History) -> Encoded:
        """The inner tokens, projected."""
        inner = self.inner.encode(history)
        return Encoded(history, self.project(inner.tokens), None if inner.user is None else self.project(inner.user))

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The item table."""
        return (self.items.all() if ids is None else self.items(ids)), None


TOYS: tuple[type[Encoder], ...] = (Dot, Target, Counting, Stateful, ManyTask, UserId, Nested)

PLUGINS: dict[str, dict[str, Any]] = {
    "encoders": {toy.name: toy for toy in TOYS},
    "objectives": {},
    "evaluators": {},
    "kernels": {},
}
"""The toys as a builder takes plugins."""
