"""HRNN: a GRU over a session's items, and one over a user's sessions (Quadrana et al. 2017, and the authors' code).

At the start of a user's session m + 1: c_{m+1} = GRU_user(s_{m,last}, c_m), s_{m+1,0} = tanh(W c_{m+1} + b); in his first session
both are zero. Within a session s_t = GRU_session(e_t, s_{t-1}) ("init"), or c_m stands beside every e_t, which adds W_us c_m to
all three gates ("all").

A row holds a user's newest events, of all their sessions. Sessions are told apart by the field `session`, or, where the data has
none, by gaps in `time`. Of the question put after an event only its time may be known (`question`): where it is later than the
gap allows, the question opens a session, and the token is that session's s_{m+1,0}. A next session's id is never known, so with
the field `session` each question is answered within the session at hand. An event of no session is one of its own.

Where we depart: items are embedded, and scored by their embeddings, where the authors have one-hot inputs; the first item of a
session is predicted too (above); within a session dropout acts on what scores read, never on what the next event continues from
(what a session begins with is dropped, by `dropout_user` and `dropout_init`, and carried on so, as theirs is); full cross-entropy
under Adam where they have TOP1 under Adagrad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
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
from userec.schema import FIRST
from userec_recurrent.gru4rec import GRULayer, begin


class HRNNConfig(Config):
    """The authors' small network."""

    dim: int = Setting(100, ge=1)
    """Width of embeddings and of the session's state."""
    user_dim: int | None = Setting(None, ge=1)
    """Width of the user's state; None = `dim`."""
    variant: Literal["init", "all"] = "init"
    """Whether the user's state only begins a session, or is read at every event too."""
    user_to_output: bool = False
    """Whether scores read the user's state too."""
    gap: float = Setting(1800, gt=0)
    """Seconds without an event after which a session ends, where the data has no field `session`."""
    question: Literal["request", "events"] = "request"
    """What is seen of the question after an event: when it is put, which for the next item is when that happens; or nothing, and
    it is answered within the session at hand. The field `session` tells nothing of questions either way."""
    dropout_embedding: float = Setting(0.0, ge=0, lt=1)
    dropout_hidden: float = Setting(0.1, ge=0, lt=1)
    """Of the session's state, as scores read it."""
    dropout_user: float = Setting(0.0, ge=0, lt=1)
    """Of the user's state, wherever it is read."""
    dropout_init: float = Setting(0.0, ge=0, lt=1)
    """Of the state that a session begins with."""
    window: int = Setting(200, ge=1)
    """Last events of a user that a row holds; the states themselves have no limit."""


@dataclass(frozen=True)
class Sessions:
    """The N sessions of a batch, round by round. Round 0 is what each of the B rows goes on with from the state given, which may
    be no event; round s is the s-th session that a row begins. Users stand in `order` in each round, the first of them alone."""

    order: Tensor  # [B] rows, those with most sessions first
    of_event: Tensor  # [S] the session of each packed event
    events: Tensor  # [S] places in the packed events, session after session
    offsets: Tensor  # [N + 1] a session's events among `events`
    places: np.ndarray  # [N + 1] the same on the host
    rounds: list[int]  # bounds of the rounds in N

    @classmethod
    def of(cls, opens: Tensor, row: Tensor, rows: int) -> Sessions:
        """`opens` [S]: the event begins a session that is not its user's first; `row` [S] rises to below `rows`."""
        begun = torch.bincount(row[opens], minlength=rows)  # [B] sessions that each row begins
        order = begun.argsort(descending=True, stable=True)
        rank = torch.empty_like(order).index_copy_(0, order, torch.arange(rows, device=row.device))
        number = opens.cumsum(0) - (begun.cumsum(0) - begun)[row]  # [S] the round of each event
        bounds = F.pad(torch.bincount(begun).flip(0).cumsum(0).flip(0).cumsum(0), (1, 0))
        of_event = bounds[number] + rank[row]
        rounds = bounds.tolist()
        offsets = F.pad(torch.bincount(of_event, minlength=rounds[-1]).cumsum(0), (1, 0))
        return cls(order, of_event, of_event.argsort(stable=True), offsets, offsets.cpu().numpy(), rounds)

    def within(self, low: int, high: int) -> tuple[slice, Tensor, int]:
        """Of sessions `low` to before `high`: their events among `events`, offsets of their own, the longest."""
        own = self.places[low : high + 1]
        return slice(int(own[0]), int(own[-1])), self.offsets[low : high + 1] - int(own[0]), int(np.diff(own).max(initial=0))


class HRNN(Encoder):
    """A GRU over the items of a session, begun by a GRU over the user's sessions.

    Tokens [B, L, D] are the session's states as questions find them; the user is the newest one. `state`: `hidden` [B, D] and
    `user` [B, U], `last` [B] the session or time of the last event, `seen` [B] whether there was one."""

    name = "hrnn"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.DOT_SCORE | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER | Can.CARRY_STATE
    Config = HRNNConfig
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

    def __init__(self, config: HRNNConfig, build: Build) -> None:
        super().__init__(config, build)
        self.config: HRNNConfig = config
        self.by = next((name for name in ("session", "time") if name in build.schema.fields), None)
        if self.by is None:
            raise UserError(
                "encoder 'hrnn' needs to know where sessions end: a field 'session' or 'time'; the data set has neither "
                "(gru4rec takes each user for one session)"
            )
        self.asks = self.by == "time" and config.question == "request"
        self.reads = frozenset({"item", self.by} | ({"asked.time"} if self.asks else set()))
        dim, user_dim = config.dim, config.user_dim or config.dim
        self.items = build.table("item", dim)
        self.bias = nn.Parameter(torch.zeros(build.schema.spaces["item"]))
        self.labels = Heads(build, dim)
        self.session = GRULayer(dim + (user_dim if config.variant == "all" else 0), dim, build.op("augru"))
        self.user = nn.GRUCell(dim, user_dim)
        begin(self.user)
        self.init = nn.Linear(user_dim, dim)
        nn.init.xavier_uniform_(self.init.weight)
        nn.init.zeros_(self.init.bias)
        self.output = nn.Linear(user_dim, dim, bias=False) if config.user_to_output else None
        self.drop_embedding, self.drop_hidden = Dropout(config.dropout_embedding), Dropout(config.dropout_hidden)
        self.drop_user, self.drop_init = Dropout(config.dropout_user), Dropout(config.dropout_init)
        self.user_dim = user_dim

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table."""
        self.labels.begin(tasks)

    def encode(self, history: History) -> Encoded:
        """Every event given is read, from the state given; a row without events keeps its state."""
        item, mask = history.events["item"], history.mask
        embedded = self.drop_embedding(self.items(pack(item, mask)))  # [S, D]
        state = history.state or self._unseen(embedded, len(item))
        row = torch.repeat_interleave(torch.arange(len(item), device=item.device), history.lengths)  # [S]
        sessions = Sessions.of(self._opens(history, state), row, len(item))
        after, users, hidden, user = self._rounds(embedded, sessions, state)  # [S, D], [N, U], [B, D], [B, U]
        tokens = unpack(self._asked(history, after, users, sessions.of_event), mask)  # [B, L, D]
        before = self._read(state["hidden"], state["user"])  # [B, D]
        newest = gather_positions(tokens, history.last[:, None])[:, 0]
        last = gather_positions(history.events[str(self.by)], history.last[:, None])[:, 0]
        some = mask.any(1)
        carried = {
            "hidden": hidden,
            "user": user,
            "last": torch.where(some, last, state["last"]),
            "seen": torch.where(some, 1, state["seen"]),
        }
        return Encoded(history, tokens, torch.where(some[:, None], newest, before), carried, {"before": before})

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, D]: the token at `query.at`; before any event, what the state says that the row began with."""
        asked = gather_positions(encoded.tokens, query.at)
        return torch.where(query.at.unsqueeze(-1) < 0, encoded.cache["before"].unsqueeze(1), asked)

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The items' embeddings and biases, or the classes of a label task, without bias."""
        return self.labels.candidates(tasks, self.items, ids, self.bias)

    def _unseen(self, like: Tensor, rows: int) -> Mapping[str, Tensor]:
        """The state of users never seen."""
        none = torch.zeros(rows, dtype=torch.int64, device=like.device)
        hidden, user = like.new_zeros(rows, self.dim), like.new_zeros(rows, self.user_dim)
        return {"hidden": hidden, "user": user, "last": none, "seen": none}

    def _opens(self, history: History, state: Mapping[str, Tensor]) -> Tensor:
        """[S]: the event is in another session than the one before it, or in none; a user's first event opens none."""
        now = history.events[str(self.by)]  # [B, L]
        before = torch.cat([state["last"][:, None], now[:, :-1]], 1)[:, : now.shape[1]]
        opens = (now != before) | (now < FIRST) if self.by == "session" else now - before > self.config.gap
        opens[:, :1] &= state["seen"].bool()[:, None]
        return pack(opens, history.mask)

    def _rounds(self, embedded: Tensor, sessions: Sessions, state: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The s-th sessions of all users at once, after their (s - 1)-th: states after each event [S, D], the user's state in
        each session [N, U], and both states in the end [B, D], [B, U]."""
        ordered = embedded.index_select(0, sessions.events)
        hidden, user = (state[name].index_select(0, sessions.order) for name in ("hidden", "user"))  # [n, D], [n, U]
        after, users, ended = [ordered[:0]], [user[:0]], [(hidden[:0], user[:0])]
        for number, (low, high) in enumerate(pairwise(sessions.rounds)):
            if number:
                ended.append((hidden[high - low :], user[high - low :]))  # of users without a session in this round
                user, hidden = self._begin(user[: high - low], hidden[: high - low])
            span, offsets, longest = sessions.within(low, high)
            x = ordered[span]
            if self.config.variant == "all":
                x = torch.cat([x, torch.repeat_interleave(self.drop_user(user), offsets.diff(), dim=0)], 1)
            states, hidden = self.session(x, offsets, hidden, longest)
            after.append(states)
            users.append(user)
        ended.append((hidden, user))
        states, back = torch.cat(after), sessions.order.argsort()
        last = (torch.cat(kind).index_select(0, back) for kind in zip(*reversed(ended), strict=True))
        return torch.empty_like(states).index_copy(0, sessions.events, states), torch.cat(users), *last

    def _begin(self, user: Tensor, ended: Tensor) -> tuple[Tensor, Tensor]:
        """A session ended in state `ended` [n, D]: the user's next state [n, U], and what the next session begins with [n, D]."""
        user = self.user(ended, user)
        return user, self.drop_init(torch.tanh(self.init(self.drop_user(user))))

    def _read(self, hidden: Tensor, user: Tensor) -> Tensor:
        """What scores read of a session's state [n, D] and of the user's [n, U], before his dropout."""
        return hidden if self.output is None else hidden + self.output(self.drop_user(user))

    def _asked(self, history: History, after: Tensor, users: Tensor, of_event: Tensor) -> Tensor:
        """[S, D]: each event's state as the question after it finds it, for which a session may have ended."""
        tokens = self.drop_hidden(after)
        if self.output is not None:
            tokens = self._read(tokens, users.index_select(0, of_event))
        if not self.asks:
            return tokens
        waited = pack(history.asked["asked.time"] - history.events["time"], history.mask)
        late = (waited > self.config.gap).nonzero()[:, 0]
        user, begun = self._begin(users.index_select(0, of_event[late]), after.index_select(0, late))
        return tokens.index_copy(0, late, self._read(begun, user))
