"""RRN: recurrent recommender network, a recurrence over each user and one over each item (Wu, Ahmed, Beutel, Smola, Jing 2017).

Time is cut into steps; steps without events are skipped. A step's input is y_t = W [x_t, newbie, tau_t, tau_{t-1}]: x_t its
events (of a user the items he rated, each by its rating less the training mean, of an item the users likewise; for the next
item, and without ratings, each counts 1), tau the wall clock. u_t and m_t are LSTMs of these; a question at time t sees the
states after the last steps strictly before that of t.

The rating is <W_u u_t + b_u, W_m m_t + b_m> + <u_i, m_j> + b_i + b_j + mean (section 3);
the score of a next item is the same without b_i and mean, of every item at the question's own time.

The stationary u_i and b_i are read from a table of users, which is transductive: they start at zero and stay there for a user
that training never saw. `stationary = false` leaves them out, and `user` is not read. Item states come of the training events
alone.

Training is the paper's subspace descent: a batch trains one side's recurrence while the states of the other side are fixed.

Where we depart: whose turn it is, is drawn at each batch (`item_share`), so that a resumed run takes the same turns; item states
are computed anew after each of their turns, when alone they change. An item's projected state stands beside an embedding of its
own: states alone tell items without a clock not apart. x_t is divided by the root of its number of events, whose logarithm is
given beside. tau is in units of the training span; the first step seen of a user is his newbie step. In training a user is taken
for unknown now and then (`unknown`), so that the recurrence learns to do without his factor. Steps of one minute leave the
question's own minute out, where longer ones leave out most of what MovieLens knows of a user, who rates in one sitting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field as Setting
from torch import Tensor, nn

from userec.batch import Encoded, History, Query, gather_positions, pack, unpack
from userec.capability import Can
from userec.config import Config
from userec.encoder.blocks.dropout import Dropout
from userec.encoder.blocks.heads import Heads
from userec.encoder.contract import Build, Encoder
from userec.schema import FIRST

DAY = 86400
RATING_STEP = 60
CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


class RRNConfig(Config):
    """Widths as published for Netflix; steps for MovieLens."""

    dim: int = Setting(40, ge=1)
    """Of the states, of what goes into them, and of their projections."""
    factors: int = Setting(20, ge=1)
    """Of the stationary factors."""
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    step: int | None = Setting(None, ge=0)
    """Seconds of a user's step; 0 = each event is a step of its own, as always without times; None = 60 for ratings, else 0."""
    item_step: int = Setting(30 * DAY, ge=1)
    """Seconds of an item's step."""
    stationary: bool = True
    """Whether a user has a factor and an offset of his own, read by his id."""
    unknown: float = Setting(0.5, ge=0, le=1)
    """Share of training rows whose user is taken for unknown."""
    item_share: float = Setting(0.1, ge=0, le=1)
    """Share of batches that train the items' recurrence, not the users'."""
    dropout: float = Setting(0.2, ge=0, lt=1)
    """Of what goes into the states, and of the states."""
    window: int = Setting(50, ge=1)
    """Last events used."""


@dataclass(frozen=True)
class Steps:
    """The G steps of many sequences, sequence by sequence, oldest first."""

    row: Tensor  # [G] int64, the sequence
    rank: Tensor  # [G] int64, place in the sequence
    first: Tensor  # [G + 1] int64, where each step's events begin
    last: Tensor  # [G] bool, whether it ends its sequence
    of: Tensor  # [E] int64, the step of each event

    @classmethod
    def of_events(cls, row: Tensor, key: Tensor) -> Steps:
        """Steps of events [E] that lie row by row; a step is a run of one key in a row."""
        new = torch.ones_like(row, dtype=torch.bool)
        new[1:] = (row[1:] != row[:-1]) | (key[1:] != key[:-1])
        start = new.nonzero()[:, 0]
        row = row[start]
        rank, last = places(row)
        return cls(row, rank, torch.cat([start, start.new_full((1,), len(new))]), last, new.cumsum(0) - 1)


def places(row: Tensor) -> tuple[Tensor, Tensor]:
    """Of steps [G] of sequences `row`, ascending: the place of each in its sequence, and whether it is the last."""
    here, opens = torch.arange(len(row), device=row.device), torch.ones_like(row, dtype=torch.bool)
    opens[1:] = row[1:] != row[:-1]
    rank = here - torch.where(opens, here, 0).cummax(0).values
    return rank, opens.roll(-1)


class Recurrence(nn.Module):
    """One layer of `torch.nn` over many sequences of unequal length at once, whose whole state after each step is given."""

    def __init__(self, cell: str, dim: int) -> None:
        super().__init__()
        self.parts, self.step = (2 if cell == "lstm" else 1), {"lstm": lstm, "gru": gru, "rnn": rnn}[cell]
        self.cell = CELLS[cell](dim, dim)

    def forward(self, y: Tensor, row: Tensor, rank: Tensor, start: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Inputs of steps [G, D], place `rank` of sequence `row` [G], states before [B, D] -> (h,) or (h, c) after: [G + B, D],
        the states before last."""
        if not len(y):
            return start
        lengths = torch.bincount(row, minlength=len(start[0]))
        rows = lengths.argsort(descending=True, stable=True)
        place = torch.empty_like(rows).index_copy(0, rows, torch.arange(len(rows), device=rows.device))
        order = (rank * len(rows) + place[row]).argsort()  # all first steps, all second ones, of the longest sequences first
        layer, state, seen = self.cell, tuple(part[rows] for part in start), []
        inputs = nn.functional.linear(y.index_select(0, order), layer.weight_ih_l0, layer.bias_ih_l0)
        weight, bias = layer.weight_hh_l0.T, layer.bias_hh_l0
        for x in inputs.split(torch.bincount(rank).tolist()):
            state = tuple(part[: len(x)] for part in state)
            state = self.step(x, torch.addmm(bias, state[0], weight), state)
            seen.append(state)
        back = order.argsort()
        return tuple(
            torch.cat([torch.cat(part).index_select(0, back), old])
            for part, old in zip(zip(*seen, strict=True), start, strict=True)
        )


def lstm(x: Tensor, hidden: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """One step, from W x + b and W h + b [N, 4 D] in the order of torch.nn: input, forget, cell, output."""
    i, f, g, o = (x + hidden).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(x: Tensor, hidden: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Likewise [N, 3 D]: reset, update, new."""
    (r, z, n), (hr, hz, hn) = x.chunk(3, -1), hidden.chunk(3, -1)
    new = (n + (r + hr).sigmoid() * hn).tanh()
    return (new + (z + hz).sigmoid() * (state[0] - new),)


def rnn(x: Tensor, hidden: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Likewise [N, D]."""
    return ((x + hidden).tanh(),)


class RRN(Encoder):
    """Recurrences over users and over items, for ratings and the next item.

    Tokens [B, L, D]: what the question after each event may know of the user; `user` is the state after all his events.

    The state carried is that before his last step, and what the last step holds so far: it may not be over."""

    name = "rrn"
    fidelity = "variant"
    offers = Can.GRADIENT | Can.SCORE_CATALOG | Can.CAUSAL | Can.ANY_POSITION | Can.EMBED_USER | Can.CARRY_STATE
    Config = RRNConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        "objective": {
            "item": {"name": "next_item", "negatives": 512, "shared": True},
            "click": {"name": "labelled", "price": "bce"},
            "rating": {"name": "labelled", "price": "squared"},
            "label": {"name": "labelled"},
        },
        "train": {"optimizer": "adam", "lr": 1e-3, "epochs": 100, "patience": 8},
        "batch": {"rows": 256, "tokens": 12800, "eval_tokens": 65_536},
    }

    config: RRNConfig
    mean: Tensor  # float64, of the training ratings
    clock: Tensor  # [2] int64: when training begins, and its seconds
    who: Tensor  # [E] int32, the users of the training events, by item and step
    stars: Tensor  # [E] float32, their ratings less the mean, 0 without
    step_item: Tensor  # [S] int64, the item of each step that an item has, ascending
    step_key: Tensor  # [S] int64, the number of the step, ascending within the item
    step_first: Tensor  # [S + 1] int64, where its events begin

    def __init__(self, config: RRNConfig, build: Build) -> None:
        super().__init__(config, build)
        self.schema, dim = build.schema, config.dim
        self.timed, self.starred = "time" in build.schema.fields, "rating" in build.schema.fields
        self.reads = frozenset({"item"}) | ({"time", "asked.time"} if self.timed else set())
        self.reads |= ({"rating"} if self.starred else set()) | ({"user"} if config.stationary else set())
        self.make = lambda space, width: build.table(space, width)
        self.bag = build.op("jagged_embedding_bag")
        self.rated, self.raters = self.make("item", dim), self.make("user", dim)
        self.of_steps = nn.ModuleDict({side: nn.Linear(4, dim) for side in ("user", "item")})
        self.users, self.items = Recurrence(config.cell, dim), Recurrence(config.cell, dim)
        self.project_user, self.project_item = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.own = self.make("item", dim)
        for table in (self.rated, self.raters, self.own):
            table.reset(std=dim**-0.5)  # at a table's usual 0.02 the states hardly move for hundreds of steps
        self.item_offset = zeroed(self.make("item", 1))
        self.user_factor = zeroed(self.make("user", config.factors)) if config.stationary else None
        self.item_factor = self.make("item", config.factors) if config.stationary else None
        self.user_offset: nn.Module | None = None
        self.labels = Heads(build, dim)
        self.drop = Dropout(config.dropout)
        for name, value in history_of_items(build, config.item_step).items():
            self.register_buffer(name, value)
        self._items: tuple[Any, Tensor] | None = None  # (what they were made with, [1 + S, D])

    def begin_task(self, tasks: tuple[str, ...], phase: str) -> None:
        """Label spaces get their table; ratings an offset of each user."""
        self.labels.begin(tasks)
        if self._rates(tasks) and self.config.stationary and self.user_offset is None:
            self.user_offset = zeroed(self.make("user", 1))

    def encode(self, history: History) -> Encoded:
        """The users' states with gradient or, in the items' turn, theirs."""
        items_turn = self.training and bool(torch.rand(()) < self.config.item_share)
        known = torch.ones(len(history.user), 1)
        if self.training:
            known = (torch.rand_like(known) >= self.config.unknown).float()
        rated = self.starred and self._rates(history.tasks)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not items_turn):
            tokens, user, state = self._of_users(history, rated)
        items = self._learning_items(rated) if items_turn else self._fixed_items(rated)
        cache = {"tokens": tokens, "items": items, "known": known.to(tokens)}  # [B, 1 + L, D], [1 + S, D], [B, 1]
        return Encoded(history, tokens[:, 1:], user, state, cache)

    def queries(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, D]: the user's state as each question may know it."""
        return gather_positions(encoded.cache["tokens"], query.at + 1)

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, 1]: of items each as its state was known at the question, whichever ids are asked for."""
        tasks, asked = encoded.history.tasks, self.drop(self.queries(encoded, query))
        if tasks and self.schema.task(tasks[0]).space != "item":
            table = self.labels.table_of(tasks, self.own)
            if query.ids is None:
                return (asked @ table.all().T).unsqueeze(-1)
            return table(query.ids) @ asked.unsqueeze(-1)
        asked, when = self._asking(encoded, asked), self._when(encoded.history, query)  # [B, Q, D + F], [B, Q]
        if query.ids is None or query.ids.shape[:2] == (1, 1):
            ids = torch.arange(self.schema.spaces["item"], device=when.device) if query.ids is None else query.ids[0, 0]
            scores = self._shared(asked.flatten(0, 1), when.flatten(), ids, encoded).unflatten(0, when.shape)
        else:
            weight = self._weight(query.ids, when.unsqueeze(-1), encoded)  # [B, Q, C, D + F]
            scores = (weight @ asked.unsqueeze(-1)).squeeze(-1) + self.item_offset(query.ids).squeeze(-1)
        if self._rates(tasks):
            scores = scores + self.mean.to(scores.dtype)
            if self.user_offset is not None:
                scores = scores + (self.user_offset(encoded.history.user) * encoded.cache["known"]).unsqueeze(-1)
        return scores.unsqueeze(-1)

    def _rates(self, tasks: tuple[str, ...]) -> bool:
        return bool(tasks) and self.schema.task(tasks[0]).kind == "rating"

    def _of_users(self, history: History, rated: bool) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """tokens [B, 1 + L, D], what is known before the row's first event first; the state after all events [B, D]; what is
        carried. One more event leads each row: the open step of the state carried, where there is one."""
        state, count = self._carried(history), len(history.user)
        mask = torch.cat([state["events"][:, None] > 0, history.mask], 1)  # [B, 1 + L]
        key, later, when = (pack(x, mask) for x in self._keys(history, state, rated))
        steps = Steps.of_events(torch.arange(count, device=mask.device)[:, None].expand_as(mask)[mask], key)
        x, events, about = self._sums(history, state, steps, mask, when, rated)
        y = self.drop(self._input("user", x, events, about))
        last = steps.last
        start = tuple(state[name] for name in ("h", "c")[: self.users.parts])
        tables = self.users(y, steps.row, steps.rank, start)  # [G + B, D]: after each step, and before each row's first
        here = torch.arange(len(y) + count, device=mask.device)
        earlier = torch.where(steps.rank > 0, here[: len(y)] - 1, len(y) + steps.row)
        tokens = unpack(tables[0].index_select(0, torch.where(later, steps.of, earlier[steps.of])), mask)
        rows, first = steps.row[last], steps.first[:-1][last]
        user = tables[0][here[len(y) :].index_copy(0, rows, here[: len(y)][last])]
        left = {"x": x[last], "about": about[last], "events": events[last], "key": key[first], "when": when[first]}
        left |= {name: table[earlier[last]] for name, table in zip(("h", "c"), tables, strict=False)}
        return tokens, user, {name: state[name].index_copy(0, rows, value) for name, value in left.items()}

    def _carried(self, history: History) -> dict[str, Tensor]:
        """The state after each user's last whole step, and of the open one: its events' sum, their number, newbie and taus."""
        if history.state is not None:
            return dict(history.state)
        count, weight = len(history.user), self.project_user.weight
        whole = {name: torch.zeros(count, dtype=torch.int64, device=weight.device) for name in ("events", "key", "when")}
        wide = {name: weight.new_zeros(count, self.dim) for name in ("h", "c", "x")[: 1 + self.users.parts] + ("x",)}
        return {**whole, **wide, "about": weight.new_zeros(count, 3)}

    def _keys(self, history: History, state: Mapping[str, Tensor], rated: bool) -> tuple[Tensor, Tensor, Tensor]:
        """[B, 1 + L] each: the number of each event's step, whether the question after it is put in a later step, seconds."""
        size = self.config.step if self.config.step is not None else RATING_STEP if rated else 0
        time = history.events["time"] if self.timed else torch.zeros_like(history.events["item"])
        if not (self.timed and size):
            key = state["key"][:, None] + torch.arange(time.shape[1] + 1, device=time.device)
            return key, torch.ones_like(key, dtype=torch.bool), torch.cat([state["when"][:, None], time], 1)
        step = time // size
        later = nn.functional.pad(history.asked["asked.time"] // size > step, (1, 0))
        return torch.cat([state["key"][:, None], step], 1), later, torch.cat([state["when"][:, None], step * size], 1)

    def _sums(
        self, history: History, state: Mapping[str, Tensor], steps: Steps, mask: Tensor, when: Tensor, rated: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of each step the sum of its events [G, D], their number [G], and newbie, tau and the tau before [G, 3]."""
        item = nn.functional.pad(history.events["item"], (1, 0))[mask]
        worth = nn.functional.pad(self._worth(history.events["rating"]) if rated else history.mask.to(self.mean), (1, 0))[mask]
        x = self.bag(self.rated.weight, item, steps.first, worth.to(state["x"]), mode="sum")
        about, events = self._about(steps.rank, when[steps.first[:-1]]), steps.first.diff()
        if history.state is not None:
            carried = mask[:, 0].nonzero()[:, 0]
            place = steps.of[nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))[carried]]  # the first step of each such row
            x = x.index_add(0, place, state["x"][carried])
            events = events.index_add(0, place, state["events"][carried] - 1)
            about = about.index_copy(0, place, state["about"][carried])
        return x, events, about

    def _about(self, rank: Tensor, seconds: Tensor) -> Tensor:
        """[G, 3] of steps that begin at `seconds`: newbie, tau, and tau of the step before; tau in units of the training span."""
        tau = ((seconds - self.clock[0]).double() / self.clock[1]).clamp(-1, 2).to(self.project_user.weight)
        return torch.stack([(rank == 0).to(tau), tau, torch.where(rank == 0, tau, tau.roll(1))], 1)

    def _worth(self, rating: Tensor) -> Tensor:
        """The rating less the mean; 0 where there is none."""
        return (rating - self.mean).nan_to_num(0.0)

    def _input(self, side: str, x: Tensor, events: Tensor, about: Tensor) -> Tensor:
        """y [G, D] of steps: their events' sums over the root of their number, newbie, taus, and that number's logarithm."""
        number = events.to(x.dtype)[:, None]
        return x / number.sqrt() + self.of_steps[side](torch.cat([about, number.log()], 1))

    def _learning_items(self, rated: bool) -> Tensor:
        """[1 + S, D]: zeros, for an item without a step, then the state after each step of each item; with gradient."""
        item, when = self.step_item, self.step_key * self.config.item_step
        rank, _ = places(item)
        about = self._about(rank, when)
        worth = (self.stars if rated else torch.ones_like(self.stars)).to(about)
        x = self.bag(self.raters.weight, self.who.long(), self.step_first, worth, mode="sum")
        y = self._input("item", x, self.step_first.diff(), about)
        zeros = about.new_zeros(self.schema.spaces["item"], self.dim)
        states = self.items(self.drop(y) if torch.is_grad_enabled() else y, item, rank, (zeros,) * self.items.parts)[0]
        return nn.functional.pad(states[: len(y)], (0, 0, 1, 0))

    @torch.no_grad()
    def _fixed_items(self, rated: bool) -> Tensor:
        """The same without gradient; computed anew where a weight that it is made of has changed, else as it was."""
        parts = (self.raters, self.of_steps["item"], self.items)
        weights = [p for part in parts for p in part.parameters()] + [self.stars, self.step_key]
        norms = torch.stack([torch.linalg.vector_norm(p.double()) for p in weights])  # fused optimizers leave no other trace
        made = (rated, weights[0].dtype, weights[0].device, *norms.tolist())
        if self._items is None or self._items[0] != made:
            self._items = made, self._learning_items(rated)
        return self._items[1]

    def _asking(self, encoded: Encoded, asked: Tensor) -> Tensor:
        """[B, Q, D + F]: the projected state, and the stationary factor; zeros where the user is taken for unknown."""
        asked = self.project_user(asked)
        if self.user_factor is None:
            return asked
        factor = self.user_factor(encoded.history.user) * encoded.cache["known"]  # [B, F]
        return torch.cat([asked, factor[:, None].expand(-1, asked.shape[1], -1)], -1)

    def _when(self, history: History, query: Query) -> Tensor:
        """[B, Q]: the number of the item step in which each question is put; below all where nobody knows the time."""
        if not self.timed:
            return torch.full_like(query.at, 0)
        return gather_positions(history.asked["asked.time"] // self.config.item_step, query.at)

    def _weight(self, ids: Tensor, when: Tensor, encoded: Encoded) -> Tensor:
        """[..., D + F]: what items `ids` [...] are in item step `when` (broadcast): their states after the last step before."""
        place = torch.zeros_like(ids)
        if len(self.step_item):
            low, span = self.step_key.min(), self.step_key.max() - self.step_key.min() + 2
            wanted = ids * span + (when - low).clamp(min=0).minimum(span - 1)
            place = torch.searchsorted(self.step_item * span + (self.step_key - low), wanted)  # steps before, of all items
            place = torch.where(self.step_item[place - 1] == ids, place, 0).masked_fill(place == 0, 0)
        weight = self.project_item(self.drop(encoded.cache["items"][place])) + self.own(ids)
        return weight if self.item_factor is None else torch.cat([weight, self.item_factor(ids)], -1)

    def _shared(self, asked: Tensor, when: Tensor, ids: Tensor, encoded: Encoded) -> Tensor:
        """[N, C]: questions [N, D + F] put in item steps [N] about the same ids [C]: one product for each such step."""
        order, offset = when.argsort(), self.item_offset(ids).squeeze(-1)
        moments, counts = torch.unique(when, return_counts=True)
        parts = asked[order].split(counts.tolist())
        products = [torch.addmm(offset, x, self._weight(ids, t, encoded).T) for t, x in zip(moments, parts, strict=True)]
        return torch.cat(products)[order.argsort()] if products else asked.new_zeros(0, len(ids))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """The items' steps take the lengths that were saved."""
        for name in ("who", "stars", "step_item", "step_key", "step_first"):
            if (saved := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty(saved.shape, dtype=saved.dtype, device=self.mean.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def zeroed(table: Any) -> Any:
    """A table that starts at zero."""
    for weight in table.parameters():
        nn.init.zeros_(weight)
    return table


def history_of_items(build: Build, step: int) -> dict[str, Tensor]:
    """The buffers of `RRN` that tell the training events: of each item by step of so many seconds; empty without times."""
    train, none = build.train, np.zeros(0, np.int64)
    item, time = (none, none) if train is None or "time" not in train.fields else (train.fields["item"], train.fields["time"])
    owner = none if train is None or not len(item) else train.owner
    mean = 0.0
    stars: np.ndarray = np.zeros(len(item), np.float32)
    if train is not None and "rating" in train.fields:
        rating = train.fields["rating"]
        known = rating[~np.isnan(rating)]
        mean = float(known.mean(dtype=np.float64)) if len(known) else 0.0
        stars = np.nan_to_num(rating - mean)[: len(item)] if len(item) else stars
    key = time // step
    order = np.lexsort((time, item))
    item, key = item[order].astype(np.int64), key[order]
    first = np.flatnonzero(np.append(True, (np.diff(item) != 0) | (np.diff(key) != 0))[: len(item)])
    begin, span = (int(time.min()), max(int(time.max() - time.min()), 1)) if len(time) else (0, 1)
    return {
        "mean": torch.tensor(mean, dtype=torch.float64),
        "clock": torch.tensor([begin, span]),
        "who": torch.from_numpy((owner[order] + FIRST).astype(np.int32)),
        "stars": torch.from_numpy(stars[order].astype(np.float32)),
        "step_item": torch.from_numpy(item[first]),
        "step_key": torch.from_numpy(key[first]),
        "step_first": torch.from_numpy(np.append(first, len(item))),
    }
