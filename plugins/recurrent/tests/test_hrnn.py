from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from userec_recurrent.gru4rec import GRU4Rec, GRU4RecConfig
from userec_recurrent.hrnn import HRNN, HRNNConfig, Sessions

from userec.batch import Batch, History, Query
from userec.builtin.kernels import userec_kernels
from userec.builtin.next_item import NextItem
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.schema import NEXT, Field, Schema
from userec.testing.tiny import span

TIME, SESSION = Field("time", "time"), Field("session")
GAP = 100
ROWS = [
    [(2, 1000), (3, 1050), (4, 2000), (5, 2100), (6, 2201), (7, 3000), (8, 3001)],  # sessions of 2, 2, 1, 2: 100 s are no gap
    [],
    [(9, 0), (10, 500), (11, 1000)],  # three of one event; a time of 0 is a time
    [(12, 70)],
]
QUESTIONS = [[1050, 2000, 2101, 2201, 3000, 3001, 3050], [], [0, 900, 1200], [70]]


def schema(*fields: Field) -> Schema:
    spaces = {"item": 30} | {field.space: 20 for field in fields if field.kind == "id"}
    return Schema({"item": Field("item"), **{field.name: field for field in fields}}, spaces, ((NEXT,),))


def build(*fields: Field) -> Builder:
    return Builder({}, schema(*fields), {}, Kernels(userec_kernels()))


def hrnn(*fields: Field, **settings: Any) -> HRNN:
    torch.manual_seed(0)
    encoder = HRNN(HRNNConfig(**{"dim": 8, "user_dim": 5, "gap": GAP} | settings), build(*(fields or (TIME,)))).double().eval()
    for parameter in encoder.parameters():  # large enough that a leak shows
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


def block(rows: list[list[int]], length: int) -> Tensor:
    return torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), length)


def history(
    rows: list[list[tuple[int, int]]] = ROWS, length: int = 8, by: str = "time", asked: list[list[int]] = QUESTIONS
) -> History:
    item, when = (block([[event[i] for event in row] for row in rows], length) for i in (0, 1))
    known = {"asked.time": block([row[: len(rows[b])] for b, row in enumerate(asked)], length)} if by == "time" else {}
    return History(torch.arange(len(rows)) + 2, {"item": item, by: when}, item > 0, tasks=("next",), asked=known)


def step(cell: torch.nn.GRUCell, x: Tensor, h: Tensor) -> Tensor:
    """One step of `torch.nn.GRUCell`'s formula, on vectors."""
    (r_x, z_x, n_x), (r_h, z_h, n_h) = (cell.weight_ih @ x + cell.bias_ih).chunk(3), (cell.weight_hh @ h + cell.bias_hh).chunk(3)
    r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
    return (1 - z) * torch.tanh(n_x + r * n_h) + z * h


def loop(encoder: HRNN, row: list[tuple[int, int]], asked: list[int] | None) -> tuple[list[Tensor], Tensor, Tensor]:
    """The model event by event, as one reads it: tokens, and both states in the end."""
    h, c, tokens = torch.zeros(8).double(), torch.zeros(encoder.user_dim).double(), []

    def next_session(h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        c = step(encoder.user, h, c)
        return torch.tanh(encoder.init.weight @ c + encoder.init.bias), c

    def read(h: Tensor, c: Tensor) -> Tensor:
        return h if encoder.output is None else h + encoder.output.weight @ c

    for t, (item, when) in enumerate(row):
        if t and (when - row[t - 1][1] > GAP if asked is not None else when != row[t - 1][1]):
            h, c = next_session(h, c)
        x = encoder.items.weight[item]
        h = step(encoder.session, torch.cat([x, c]) if encoder.config.variant == "all" else x, h)
        opens = asked is not None and asked[t] - when > GAP
        tokens.append(read(*(next_session(h, c) if opens else (h, c))))
    return tokens, h, c


VARIANTS = [{}, {"user_to_output": True}, {"variant": "all"}, {"variant": "all", "user_to_output": True}]


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_loop_over_events(settings: dict[str, Any]) -> None:
    encoder = hrnn(**settings)
    encoded = encoder.encode(history())
    for b, row in enumerate(ROWS):
        tokens, h, c = loop(encoder, row, QUESTIONS[b])
        for t, want in enumerate(tokens):
            assert torch.allclose(encoded.tokens[b, t], want, rtol=0, atol=1e-12), (b, t)
        assert not encoded.tokens[b, len(row) :].any()
        assert torch.allclose(encoded.user[b], tokens[-1] if tokens else 0 * encoded.user[b], rtol=0, atol=1e-12)
        assert torch.allclose(encoded.state["hidden"][b], h, rtol=0, atol=1e-12)
        assert torch.allclose(encoded.state["user"][b], c, rtol=0, atol=1e-12)
    assert encoded.state["last"].tolist() == [3001, 0, 1000, 70]
    assert encoded.state["seen"].tolist() == [1, 0, 1, 1]


def test_sessions_by_the_field() -> None:
    """Also with times: the field says it, whatever the gaps."""
    rows = [[(2, 7), (3, 7), (4, 3), (5, 9), (6, 9)], [], [(7, 7)]]
    encoder = hrnn(SESSION, TIME, variant="all")
    assert encoder.reads == {"item", "session"}
    encoded = encoder.encode(history(rows, 6, "session"))
    for b, row in enumerate(rows):
        tokens, _, c = loop(encoder, row, None)
        assert all(torch.allclose(encoded.tokens[b, t], want, rtol=0, atol=1e-12) for t, want in enumerate(tokens))
        assert torch.allclose(encoded.state["user"][b], c, rtol=0, atol=1e-12)


def test_an_event_of_no_session_is_its_own() -> None:
    """Session 1 says that the event has none: neighbours without one are no session together, as in the core."""
    rows, alone = ([[(2, a), (3, b), (4, 1), (5, c), (6, 9)]] for a, b, c in ((1, 1, 1), (11, 12, 13)))
    rows[0][2], alone[0][2] = (4, 7), (4, 7)
    rows, alone = [*rows, [(7, 1), (8, 1)]], [*alone, [(7, 11), (8, 12)]]
    encoder = hrnn(SESSION, variant="all")
    found, want = (encoder.encode(history(each, 6, "session")) for each in (rows, alone))
    assert torch.equal(found.tokens, want.tokens)
    assert torch.equal(found.state["user"], want.state["user"])
    one = encoder.encode(history([[(7, 1)]], 1, "session"))
    two = encoder.encode(dataclasses.replace(history([[(8, 1)]], 1, "session"), state=one.state))
    assert torch.allclose(two.user[0], want.user[1], rtol=0, atol=1e-12)


def test_the_rounds_of_sessions() -> None:
    """User 0 opens one with his first event (his state says so), user 1 has none, user 2 goes on and opens two."""
    opens = torch.tensor([True, False, False, True, False, True])
    found = Sessions.of(opens, torch.tensor([0, 0, 2, 2, 2, 2]), 3)
    assert found.order.tolist() == [2, 0, 1]
    assert found.rounds == [0, 3, 5, 6]  # users 2, 0, 1, then 2 and 0, then 2 alone
    assert found.of_event.tolist() == [4, 4, 0, 3, 3, 5]
    assert found.events.tolist() == [2, 3, 4, 0, 1, 5]
    assert found.offsets.tolist() == [0, 1, 1, 1, 3, 5, 6]
    span, offsets, longest = found.within(3, 5)
    assert (span, offsets.tolist(), longest) == (slice(1, 5), [0, 2, 4], 2)


def test_what_no_score_reads_is_not_dropped_for_it() -> None:
    """Without `user_to_output` the user's state is read where sessions begin alone."""
    encoder, seen = hrnn(), []
    encoder.drop_user.register_forward_hook(lambda _, given, found: seen.append(len(given[0])))
    encoder.encode(history(ROWS[:1], 7, asked=[[time for _, time in ROWS[0]]]))
    assert seen == [1, 1, 1, 0]  # three sessions begin, no question comes late


@pytest.mark.parametrize("settings", VARIANTS)
def test_without_the_time_of_the_question(settings: dict[str, Any]) -> None:
    """question=events: each answer is given within the session at hand, whenever it is asked for."""
    encoder = hrnn(question="events", **settings)
    assert encoder.reads == {"item", "time"}
    assert hrnn().reads == {"item", "time", "asked.time"}
    encoded = encoder.encode(dataclasses.replace(history(), asked={}))
    for b, row in enumerate(ROWS):
        at_once = [time for _, time in row]
        tokens, _, _ = loop(encoder, row, at_once)
        for t, want in enumerate(tokens):
            assert torch.allclose(encoded.tokens[b, t], want, rtol=0, atol=1e-12), (b, t)


def test_a_question_in_a_new_session_is_answered_from_its_start() -> None:
    """c moves before the first prediction of a session: the token is tanh(W c + b), not the old session's state."""
    encoder = hrnn()
    same, later = (encoder.encode(history(ROWS[:1], 7, asked=[QUESTIONS[0][:6] + [at]])) for at in (3101, 3102))
    _, h, c = loop(encoder, ROWS[0], QUESTIONS[0])
    assert torch.allclose(same.user[0], h, rtol=0, atol=1e-12)
    want = torch.tanh(encoder.init(step(encoder.user, h, c)))
    assert torch.allclose(later.user[0], want, rtol=0, atol=1e-12)
    assert torch.equal(same.tokens[0, :6], later.tokens[0, :6])
    for name, value in same.state.items():  # asking changes no state
        assert torch.equal(later.state[name], value)


def test_sessions_of_one_event_move_the_user() -> None:
    encoder = hrnn()
    one, other = (encoder.encode(history([[(item, 0), (3, 500), (4, 1000)]], 3, asked=[[500, 1000, 1000]])) for item in (2, 9))
    assert (one.state["user"] - other.state["user"]).abs().max() > 1e-3
    assert (one.tokens[0, 2] - other.tokens[0, 2]).abs().max() > 1e-3


def test_a_first_session_is_gru4recs() -> None:
    """Both states begin at zero: tanh(b) is no first state."""
    encoder, other = hrnn(), GRU4Rec(GRU4RecConfig(dim=8), build()).double().eval()
    other.layers[0].load_state_dict(encoder.session.state_dict())
    other.items.load_state_dict(encoder.items.state_dict())
    rows = [[(item, t) for t, item in enumerate(range(2, 9))]]
    seen = history(rows, 7, asked=[[t + 1 for t in range(7)]])
    assert torch.allclose(encoder.encode(seen).tokens, other.encode(seen).tokens, rtol=0, atol=1e-12)


@pytest.mark.parametrize("settings", VARIANTS)
@pytest.mark.parametrize("by", ["time", "session"])
def test_event_by_event_is_the_whole(settings: dict[str, Any], by: str) -> None:
    encoder = hrnn(TIME if by == "time" else SESSION, **settings)
    seen, state = history(by=by), None
    whole = encoder.encode(seen)
    for t in range(7):
        here = torch.full_like(seen.lengths, t)
        one = encoder.encode(dataclasses.replace(span(seen, here, here + 1), state=state))
        state, real = one.state, seen.mask[:, t]
        assert torch.allclose(one.tokens[real, 0], whole.tokens[real, t], rtol=0, atol=1e-12), t
    for name, value in whole.state.items():
        assert torch.allclose(state[name], value, rtol=0, atol=1e-12), name


def test_before_any_event_the_state_answers() -> None:
    encoder = hrnn(user_to_output=True)
    first = encoder.encode(history(asked=[[time for _, time in row] for row in ROWS]))  # asked at once: no session opens
    nothing = dataclasses.replace(history([[]] * 4, 0, asked=[[]] * 4), state=first.state)
    rest = encoder.encode(nothing)
    assert torch.allclose(rest.user, first.user, rtol=0, atol=1e-12)
    before, last = Query(torch.full((4, 1), -1)), Query(first.history.last[:, None])
    assert torch.allclose(encoder.score(rest, before), encoder.score(first, last), rtol=0, atol=1e-12)
    for name, value in first.state.items():
        assert torch.equal(rest.state[name], value)


def test_rows_longer_than_the_window_are_read_whole() -> None:
    assert torch.equal(hrnn(window=2).encode(history()).tokens, hrnn().encode(history()).tokens)


@pytest.mark.parametrize("which", ["dropout_embedding", "dropout_hidden", "dropout_user", "dropout_init"])
def test_dropout_only_while_training(which: str) -> None:
    settings: dict[str, Any] = dict.fromkeys(("dropout_embedding", "dropout_hidden", "dropout_user", "dropout_init"), 0.0)
    encoder, plain = hrnn(**settings | {which: 0.5}), hrnn(**settings)
    assert torch.equal(encoder.encode(history()).tokens, plain.encode(history()).tokens)
    dropped = encoder.train().encode(history())
    assert not torch.equal(dropped.tokens, plain.train().encode(history()).tokens)


def test_data_without_sessions_and_times_is_refused() -> None:
    with pytest.raises(UserError, match="a field 'session' or 'time'; the data set has neither"):
        HRNN(HRNNConfig(), build())


@pytest.mark.parametrize("variant", ["init", "all"])
def test_it_learns_what_only_the_sessions_before_tell(variant: str) -> None:
    """A session is a user's own item, then one of twenty at random: what opens a session is known from the sessions before."""
    torch.manual_seed(0)
    config = HRNNConfig(dim=16, gap=GAP, variant=variant, dropout_hidden=0.0)
    encoder, ask = HRNN(config, build(TIME)), NextItem(NextItem.Config(), build(TIME))
    encoder.items.reset(std=0.5)  # so that few steps do
    rng = torch.Generator().manual_seed(0)
    noise = torch.randint(10, 30, (64, 6), generator=rng)
    own = (2 + torch.arange(64) % 8)[:, None].expand(64, 6)
    item = torch.stack([own, noise], 2).flatten(1)  # [64, 12]
    time = (torch.arange(6)[:, None] * 1000 + torch.tensor([0, 10])).flatten().expand(64, 12)
    following = torch.cat([time[:, 1:], time[:, -1:]], 1)
    raw = Batch(
        History(torch.arange(64), {"item": item, "time": time}, item > 0, tasks=("next",), asked={"asked.time": following})
    )
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
    for number in range(60):
        optimizer.zero_grad()
        ask.loss(encoder, ask.prepare(raw, torch.Generator().manual_seed(number))).loss.backward()
        optimizer.step()
    batch = ask.prepare(raw, torch.Generator().manual_seed(0))
    scores = encoder.eval().score(encoder.encode(batch.history), Query(batch.targets.query.at))[..., 2:, 0]
    right = scores.argmax(-1) + 2 == batch.targets.answer
    assert right[:, 1::2].float().mean() > 0.95
    assert F.cross_entropy(scores[:, ::2].flatten(0, 1), batch.targets.answer[:, ::2].flatten() - 2) < 3.3
