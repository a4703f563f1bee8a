"""What flows: the question (`History`, `Query`), the answer (`Targets`), and what an encoder makes of the first.

B users, L events, Q queries, C candidates, A tasks asked together, D width, P relevant answers. Rows are
right-padded and chronological. All are frozen; `to` moves every tensor inside."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _changed(entry, change) for key, entry in value.items()}
    if isinstance(value, _Moves):
        fields = dataclasses.fields(value)  # type: ignore[arg-type]
        return dataclasses.replace(value, **{f.name: _changed(getattr(value, f.name), change) for f in fields})  # type: ignore[type-var]
    return value


class _Moves:
    def to(self: T, device: torch.device | str) -> T:
        """The same value with every tensor on `device`."""
        return cast(T, _changed(self, lambda x: x.to(device)))


@dataclass(frozen=True)
class History(_Moves):
    """What an encoder may know."""

    user: Tensor  # [B] int64; 0 = nobody
    events: Mapping[str, Tensor]  # {field: [B, L, ...]}; "item" always
    mask: Tensor  # [B, L] bool, True at a real event; right-padded
    profile: Mapping[str, Tensor] = field(default_factory=dict)  # {"profile.age": [B]}
    tasks: tuple[str, ...] = ()  # names, A of them
    asked: Mapping[str, Tensor] = field(default_factory=dict)  # {"asked.time": [B, L]}: known of the question after event l
    state: Mapping[str, Tensor] | None = None  # {name: [B, ...]}; an all-zero row is a user never seen
    epoch: float | None = None  # 3.25 while training, None once trained
    newest: bool = False  # whether rows are asked after their last event alone: tokens that this does not need may be zero

    @property
    def lengths(self) -> Tensor:
        """Events a row: [B] int64."""
        return self.mask.sum(1)

    @property
    def last(self) -> Tensor:
        """The position of each row's last event, -1 where it has none: [B] int64."""
        return self.lengths - 1


@dataclass(frozen=True)
class Query(_Moves):
    """A question: put just after event `at`; events 0..at may be used, -1 = before any event."""

    at: Tensor  # [B, Q] int64
    ids: Tensor | None = None  # [B|1, Q|1, C] candidates; None = the whole label space, ids 0..n-1
    context: Mapping[str, Tensor] = field(default_factory=dict)  # {"asked.time": [B, Q]}


@dataclass(frozen=True)
class Targets(_Moves):
    """The answer; only an objective or an evaluator ever holds it.

    In training `answer` or `labels` is set. In evaluation `query.ids` [B, 1, P] are the relevant ids and `labels`
    is 1 there and NaN at padding."""

    query: Query
    answer: Tensor | None = None  # [B, Q] int64, an id of the task's space
    labels: Tensor | None = None  # [B, Q, C, A] float32, NaN = not observed
    weight: Tensor | None = None  # [B, Q] float32, 0 = no question stands here


@dataclass(frozen=True)
class Batch(_Moves):
    """One batch. `users` and `ends` say where its rows were cut from: row b is the events of `users[b]`, all before `ends[b]`."""

    history: History
    targets: Targets | None = None
    users: Tensor | None = None  # [B] int64, row of the coded events (not the id)
    ends: Tensor | None = None  # [B] int64, absolute index into the coded events: the history ends before it
    carried: Tensor | None = None  # [B] int64, the row of the batch before whose state each row goes on from; -1 = nobody's

    def rows(self, start: int, stop: int) -> Batch:
        """The rows from `start` to before `stop`; what is one for all rows stays."""
        count = len(self.history.user)
        return cast(Batch, _changed(self, lambda x: x[start:stop] if len(x) == count else x))


@dataclass(frozen=True)
class Encoded(_Moves):
    """What an encoder made of a history; nothing in it depends on a candidate."""

    history: History
    tokens: Tensor  # [B, L, D]
    user: Tensor | None = None  # [B, D], the universal user embedding
    state: Mapping[str, Tensor] | None = None
    cache: Mapping[str, Any] = field(default_factory=dict)  # private to the encoder: codes, clusters, projected keys


def gather_positions(x: Tensor, at: Tensor) -> Tensor:
    """`x` [B, L, ...] at `at` [B, Q] -> [B, Q, ...]; zeros where `at` is -1 (before any event)."""
    if x.shape[1] == 0:
        return x.new_zeros(*at.shape, *x.shape[2:])
    index = at.clamp(min=0).reshape(*at.shape, *[1] * (x.dim() - 2)).expand(*at.shape, *x.shape[2:])
    found = x.gather(1, index)
    return torch.where((at >= 0).reshape(*at.shape, *[1] * (x.dim() - 2)), found, found.new_zeros(()))


def pack(x: Tensor, mask: Tensor) -> Tensor:
    """`x` [B, L, ...] -> [sum L, ...]: the real events only, row by row."""
    return x[mask]


def unpack(values: Tensor, mask: Tensor) -> Tensor:
    """The inverse of `pack`: [sum L, ...] -> [B, L, ...], zeros at padding."""
    out = values.new_zeros(mask.numel(), *values.shape[1:])
    return out.index_copy_(0, mask.flatten().nonzero()[:, 0], values).unflatten(0, mask.shape)
