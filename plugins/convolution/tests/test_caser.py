from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from userec_convolution.caser import Caser, CaserConfig

from userec.batch import Batch, History, Query
from userec.builtin.future import Future
from userec.builtin.kernels import userec_kernels
from userec.config import parse
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.schema import NEXT, Field, Schema, Task

SPACES = {"item": 30, "user": 40, "user.age": 5}
SCHEMA = Schema({"item": Field("item")}, SPACES, ((NEXT,), (Task("age", "label", "user.age"),)))


def build() -> Builder:
    return Builder({}, SCHEMA, {}, Kernels(userec_kernels()))


def caser(**settings: Any) -> Caser:
    torch.manual_seed(0)
    encoder = Caser(CaserConfig(**{"embedding": 6, "horizontal": 3, "vertical": 2} | settings), build()).double().eval()
    for parameter in encoder.parameters():  # 0.02 is too small for a test of leaks, and biases of zero hide padding
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        encoder.items.weight[:2] = 0
    return encoder


def history(rows: list[list[int]], length: int) -> History:
    item = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), length)
    return History(torch.arange(len(rows)) + 2, {"item": item}, item > 0, tasks=("next",))


def asked() -> Any:
    """The recipe's objective."""
    said = {key: value for key, value in Caser.recipe["objective"]["item"].items() if key != "name"}
    return parse(Future.Config, said, "objective")


ROWS = [[2, 3, 4, 5, 6, 7, 8, 9, 10], [8, 9, 10], [], [11]]


def written_out(encoder: Caser, before: list[int]) -> Tensor:
    """z of one window, the paper's image [L, d] filter by filter, with torch's own two-dimensional convolutions."""
    length, dim = encoder.config.length, encoder.config.embedding
    window = ([0] * length + before)[-length:]
    image = encoder.items.weight[window][None, None]  # [1, 1, L, d]
    found = []
    for height, filters in enumerate(encoder.filters.heights, 1):
        weight = filters.weight.unflatten(1, (height, dim)).flip(1).unsqueeze(1)  # [n_h, 1, h, d], the oldest row first
        found.append(F.relu(F.conv2d(image, weight, filters.bias)).squeeze(3).amax(2)[0])
    columns = encoder.filters.columns
    found.append(F.conv2d(image, columns.weight.flip(1)[:, None, :, None], columns.bias)[0, :, 0].flatten())
    return F.relu(F.linear(torch.cat(found), encoder.join.weight, encoder.join.bias))


@pytest.mark.parametrize("length", [1, 3, 5])
def test_every_window_is_the_image_of_its_last_items(length: int) -> None:
    encoder = caser(length=length)
    encoded = encoder.encode(history(ROWS, 10))
    for b, row in enumerate(ROWS):
        for t in range(len(row)):
            want = torch.cat([written_out(encoder, row[: t + 1]), encoder.users.weight[b + 2]])
            assert torch.allclose(encoded.tokens[b, t], want, rtol=0, atol=1e-10)
        assert not encoded.tokens[b, len(row) :].any()
    scores = encoder.score(encoded, Query(torch.tensor([[7], [1], [-1], [0]])))
    assert torch.allclose(scores[0, 0, :, 0], encoder.output.weight @ encoded.tokens[0, 7] + encoder.bias, rtol=0, atol=1e-10)
    assert torch.equal(scores[2, 0, :, 0], encoder.bias)


def test_an_answer_depends_on_the_last_items_alone() -> None:
    """Trap: L raised in silence; it is `length`, whatever the window of a row."""
    encoder = caser(user=False)
    row = list(range(2, 14))
    last = encoder.encode(history([row], 12)).user[0]
    for back in range(1, 13):
        changed = encoder.encode(history([row[:-back] + [29] + row[12 - back + 1 :]], 12)).user[0]
        assert bool((changed - last).abs().max() > 1e-12) == (back <= 5), back


def test_users_of_their_own_are_told_and_can_be_left_out() -> None:
    """Trap: the user embedding makes the model transductive."""
    with_users, without = caser(), caser(user=False)
    assert with_users.reads == {"item", "user"}
    assert without.reads == {"item"}
    assert (with_users.dim, without.dim) == (12, 6)
    assert not any(name.startswith("users") for name in without.state_dict())
    seen = history([[2, 3, 4]], 3)
    other = dataclasses.replace(seen, user=seen.user + 5)
    assert torch.equal(without.encode(seen).user, without.encode(other).user)
    one, two = with_users.encode(seen).user[0], with_users.encode(other).user[0]
    assert torch.equal(one[:6], two[:6])
    assert (one[6:] - two[6:]).abs().max() > 0.1


def test_the_order_of_items_counts() -> None:
    encoder = caser(user=False)
    one, other = encoder.encode(history([[2, 3, 4, 5, 6], [2, 4, 3, 5, 6]], 5)).user
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("carried", [False, True])
def test_the_newest_event_alone_needs_its_window_alone(carried: bool) -> None:
    encoder = caser(length=3)
    seen = history(ROWS, 9)
    if carried:
        seen = dataclasses.replace(seen, state=encoder.encode(history([[12], [13, 14], [15, 16, 17], []], 3)).state)
    whole, newest = encoder.encode(seen), encoder.encode(dataclasses.replace(seen, newest=True))
    assert torch.allclose(newest.user, whole.user, rtol=0, atol=1e-12)
    assert newest.tokens.abs().sum(-1).count_nonzero() == 3  # no other token, none that is wrong
    for name, value in whole.state.items():
        assert torch.allclose(newest.state[name].double(), value.double(), rtol=0, atol=1e-12)


def test_event_by_event_equals_at_once() -> None:
    encoder = caser()
    whole, state = encoder.encode(history(ROWS, 9)), None
    for t in range(9):
        now = history([row[t : t + 1] for row in ROWS], 1)
        step = encoder.encode(dataclasses.replace(now, state=state))
        state = step.state
        real = now.mask[:, 0]
        assert torch.allclose(step.tokens[real, 0], whole.tokens[real, t], rtol=0, atol=1e-12)
    assert torch.allclose(step.user, whole.user, rtol=0, atol=1e-12)  # of rows that ended long ago too
    assert torch.equal(state["items"], whole.state["items"])


def test_a_price_far_out_stays_a_number() -> None:
    """Trap: -log(sigmoid(x)) underflows; the price is made of logits."""
    encoder = caser().float()
    with torch.no_grad():
        encoder.output.weight.mul_(1e3)
    ask = Future(asked(), build())
    raw = Batch(history([ROWS[0]], 9))
    loss = ask.loss(encoder, ask.prepare(raw, torch.Generator().manual_seed(0))).loss
    loss.backward()
    assert loss > 100
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


def test_each_window_is_asked_for_its_next_three_items() -> None:
    ask = Future(asked(), build())
    batch = ask.prepare(Batch(history([ROWS[0]], 9)), torch.Generator().manual_seed(0))
    assert batch.targets.query.at[0].tolist() == [t for t in range(6) for _ in range(3)]
    assert batch.targets.answer[0].tolist() == [ROWS[0][t + k] for t in range(6) for k in (1, 2, 3)]
    assert batch.targets.query.ids.shape == (1, 18, 1 + 3)


def test_dropout_is_of_the_filters_and_only_while_training() -> None:
    encoder, seen = caser(user=False), history(ROWS[:1], 9)
    assert torch.equal(encoder.encode(seen).tokens, encoder.encode(seen).tokens)
    encoder.train()
    assert not torch.equal(encoder.encode(seen).tokens, encoder.encode(seen).tokens)


def test_label_tasks_have_a_table_of_their_own() -> None:
    encoder = caser()
    encoder.begin_task(("age",), "train")
    seen = dataclasses.replace(history(ROWS, 9), tasks=("age",))
    encoder.double()
    assert encoder.score(encoder.encode(seen), Query(seen.last[:, None])).shape == (4, 1, 5, 1)
    assert encoder.candidates(("age",))[1] is None


@pytest.mark.parametrize("wrong", [{"length": 0}, {"horizontal": 0}, {"vertical": 0}, {"dropout": 1.0}, {"heights": 5}])
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        parse(CaserConfig, wrong, "encoder")


def test_a_window_shorter_than_the_image_is_refused() -> None:
    with pytest.raises(UserError, match=r"encoder\.window 4 is less than encoder\.length 5"):
        caser(window=4)


def test_a_user_beyond_the_table_is_unknown() -> None:
    encoder, seen = caser(), history(ROWS[:1], 9)
    unknown, beyond = (encoder.encode(dataclasses.replace(seen, user=torch.tensor([user]))) for user in (1, 4000))
    assert torch.equal(beyond.tokens, unknown.tokens)


def test_the_output_table_begins_as_the_authors_have_it() -> None:
    encoder = Caser(CaserConfig(embedding=5), build())
    assert 0.08 < encoder.output.weight[2:].std() < 0.12
    assert not encoder.output.weight[:2].any()


def test_it_learns_what_the_last_but_one_item_means() -> None:
    """Rows alternate between two items: the last one alone does not tell which follows."""
    torch.manual_seed(0)
    encoder = Caser(CaserConfig(embedding=24, length=3, dropout=0.0, user=False), build())
    ask = Future(Future.Config(window=1, question="each", price="bce", negatives=8), build())
    item = torch.cartesian_prod(torch.arange(6), torch.arange(6)).repeat(1, 3) + 2  # [36, 6]
    raw = Batch(History(torch.arange(36), {"item": item}, item > 0, tasks=("next",)))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    for step in range(150):
        batch = ask.prepare(raw, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        ask.loss(encoder, batch).loss.backward()
        optimizer.step()
    scores = encoder.eval().score(encoder.encode(batch.history), Query(batch.targets.query.at))[:, 1:, 2:, 0]
    assert (scores.argmax(-1) + 2 == batch.targets.answer[:, 1:]).float().mean() > 0.95
