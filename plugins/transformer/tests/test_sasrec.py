from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from userec_transformer.sasrec import SASRec, SASRecConfig

from userec.batch import Batch, History, Query
from userec.builtin.kernels import userec_kernels
from userec.builtin.next_item import NextItem
from userec.dataset.events import code
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import NEXT, Field, Schema, Task
from userec.testing import open_session
from userec.testing.tiny import TinyDataset

SCHEMA = Schema({"item": Field("item")}, {"item": 30, "user.age": 5}, ((NEXT,), (Task("age", "label", "user.age"),)))


def build() -> Builder:
    return Builder({}, SCHEMA, {}, Kernels(userec_kernels()))


def sasrec(**settings: Any) -> SASRec:
    torch.manual_seed(0)
    encoder = SASRec(SASRecConfig(**{"dim": 8, "heads": 2, "window": 12} | settings), build()).double().eval()
    for parameter in encoder.parameters():  # 0.02 is too small for a test of leaks: it would hide them
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        encoder.items.weight[:2] = 0
    return encoder


def history(rows: list[list[int]], length: int) -> History:
    item = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), length)
    return History(torch.arange(len(rows)) + 2, {"item": item}, item > 0, tasks=("next",))


ROWS = [[2, 3, 4, 5, 6, 7], [8, 9, 10], [11]]


def test_the_equations() -> None:
    """Section 3 of the paper written out for one head and one row, parameter by parameter."""
    encoder = sasrec(heads=1, layers=1)
    block = encoder.blocks[0]
    items = torch.tensor([5, 9, 7])

    def norm(x: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, unbiased=False, keepdim=True) + 1e-5
        ).sqrt() * layer.weight + layer.bias

    x = encoder.items.weight[items] * math.sqrt(8) + encoder.positions[:3]
    q, k, v = (norm(x, block.norm_attention) @ block.project.weight.T + block.project.bias).split(8, -1)
    weights = torch.zeros(3, 3).double()
    for i in range(3):
        weights[i, : i + 1] = torch.softmax(q[i] @ k[: i + 1].T / math.sqrt(8), -1)
    x = x + weights @ v @ block.merge.weight.T + block.merge.bias
    inner = F.relu(norm(x, block.norm_feed) @ block.widen.weight.T + block.widen.bias)
    x = norm(x + inner @ block.narrow.weight.T + block.narrow.bias, encoder.norm)
    encoded = encoder.encode(history([[5, 9, 7]], 3))
    assert torch.allclose(encoded.tokens[0], x, rtol=0, atol=1e-10)
    assert torch.allclose(encoded.user[0], x[2], rtol=0, atol=1e-10)
    scores = encoder.score(encoded, Query(torch.tensor([[1]])))
    assert torch.allclose(scores[0, 0, :, 0], encoder.items.weight @ x[1], rtol=0, atol=1e-10)


def test_a_changed_future_leaves_every_earlier_token() -> None:
    encoder = sasrec()
    before = encoder.encode(history(ROWS[:1], 6)).tokens
    for t in range(5):
        after = encoder.encode(history([ROWS[0][: t + 1] + [29] * (5 - t)], 6)).tokens
        assert torch.allclose(after[:, : t + 1], before[:, : t + 1], rtol=0, atol=1e-12)
        assert (after[:, t + 1] - before[:, t + 1]).abs().max() > 1e-3


def test_a_token_is_that_of_the_history_cut_there() -> None:
    encoder = sasrec()
    tokens = encoder.encode(history(ROWS[:1], 6)).tokens
    for t in range(6):
        cut = encoder.encode(history([ROWS[0][: t + 1]], t + 1))
        assert torch.allclose(cut.user, tokens[:, t], rtol=0, atol=1e-12)


def test_padding_changes_nothing() -> None:
    encoder = sasrec()
    tight = [encoder.encode(history([row], len(row))) for row in ROWS]
    loose = encoder.encode(history(ROWS, 11))
    for b, one in enumerate(tight):
        assert torch.allclose(loose.tokens[b, : len(ROWS[b])], one.tokens[0], rtol=0, atol=1e-12)
        assert torch.allclose(loose.user[b], one.user[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [0, 3, 20])
def test_an_empty_history_is_finite_and_its_user_zero(length: int) -> None:
    encoder = sasrec()
    encoded = encoder.encode(history([[], []], length))
    assert encoded.tokens.shape == (2, length, 8)
    assert torch.equal(encoded.user, torch.zeros(2, 8).double())
    assert torch.isfinite(encoder.score(encoded, Query(torch.full((2, 1), -1)))).all()


def test_longer_rows_are_encoded_by_their_last_window() -> None:
    encoder = sasrec(window=4)
    rows = [[2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]
    encoded = encoder.encode(history(rows, 7))
    for b, row in enumerate(rows):
        newest = encoder.encode(history([row[-4:]], min(len(row), 4)))
        assert torch.allclose(encoded.user[b], newest.user[0], rtol=0, atol=1e-12)
        start = max(len(row) - 4, 0)
        assert torch.allclose(encoded.tokens[b, start : len(row)], newest.tokens[0], rtol=0, atol=1e-12)
        assert not encoded.tokens[b, :start].any()


def test_order_counts() -> None:
    encoder = sasrec()
    one, other = encoder.encode(history([[2, 3, 4, 5], [3, 2, 4, 5]], 4)).user
    assert (one - other).abs().max() > 1e-3


def test_dropout_only_while_training() -> None:
    encoder, seen = sasrec(dropout=0.5, attention_dropout=0.5), history(ROWS, 6)
    assert torch.equal(encoder.encode(seen).tokens, encoder.encode(seen).tokens)
    encoder.train()
    assert not torch.equal(encoder.encode(seen).tokens, encoder.encode(seen).tokens)


def test_label_tasks_have_a_table_of_their_own() -> None:
    encoder = sasrec()
    before = set(encoder.state_dict())
    encoder.begin_task(("next",), "train")
    assert set(encoder.state_dict()) == before
    encoder.begin_task(("age",), "train")
    assert set(encoder.state_dict()) - before == {"labels.tables.user/age.weight"}
    seen = dataclasses.replace(history(ROWS, 6), tasks=("age",))
    scores = encoder.double().score(encoder.encode(seen), Query(seen.last[:, None]))
    assert scores.shape == (3, 1, 5, 1)
    restored = sasrec()
    restored.begin_task(("age",), "train")
    restored.double().load_state_dict(encoder.state_dict())
    assert torch.equal(restored.score(restored.encode(seen), Query(seen.last[:, None])), scores)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"encoder\.dim 8 is not a multiple of encoder\.heads 3"):
        sasrec(heads=3)


@pytest.mark.parametrize(
    "price", [{}, {"negatives": 20, "shared": True}, {"price": "bce", "negatives": 1}, {"price": "gbce", "negatives": 8}]
)
def test_it_learns_a_cycle_at_each_price(price: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder, ask = SASRec(SASRecConfig(dim=16, window=12, dropout=0.0), build()), NextItem(NextItem.Config(**price), build())
    starts = torch.arange(64) % 28
    item = (starts[:, None] + torch.arange(9)) % 28 + 2  # item i is followed by i + 1
    raw = Batch(History(torch.arange(64), {"item": item}, item > 0, tasks=("next",)))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    losses = []
    for step in range(240):
        optimizer.zero_grad()
        loss = ask.loss(encoder, ask.prepare(raw, torch.Generator().manual_seed(step))).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
    batch = ask.prepare(raw, torch.Generator().manual_seed(0))
    scores = encoder.eval().score(encoder.encode(batch.history), Query(batch.targets.query.at))[..., 2:, 0]
    assert (scores.argmax(-1) + 2 == batch.targets.answer).float().mean() > 0.9


def test_the_recipe_learns_clicks_and_has_none_for_ratings() -> None:
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    said = {"encoder": {"name": "sasrec", "dim": 8}, "task": "click", "train": {"epochs": 1}}
    session = open_session(load().plugins, coded, said)
    model = session.compose(session.run.experiment)
    session.train(model)
    found = session.evaluate(model, [session.evaluator(model, "click")])
    assert {row.metric.metric for row in found} == {"auc", "gauc", "logloss", "ece"}
    session = open_session(load().plugins, coded, {**said, "task": "score"})
    with pytest.raises(UserError, match="names no objective for this task"):
        session.compose(session.run.experiment)
