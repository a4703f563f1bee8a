from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from userec_recurrent.gru4rec import GRU4Rec, GRU4RecConfig, GRULayer

from userec.batch import Batch, Encoded, History, Query
from userec.builtin.kernels import userec_kernels
from userec.builtin.next_item import NextItem
from userec.config import parse
from userec.dataset.events import code
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import NEXT, Field, Schema, Task
from userec.testing import open_session
from userec.testing.tiny import TinyDataset

SCHEMA = Schema({"item": Field("item")}, {"item": 30, "user.age": 5}, ((NEXT,), (Task("age", "label", "user.age"),)))
ROWS = [[2, 3, 4, 5, 6, 7], [], [8, 9, 10], [11]]


def build() -> Builder:
    return Builder({}, SCHEMA, {}, Kernels(userec_kernels()))


def gru4rec(**settings: Any) -> GRU4Rec:
    torch.manual_seed(0)
    encoder = GRU4Rec(GRU4RecConfig(**{"dim": 8} | settings), build()).double().eval()
    for parameter in encoder.parameters():  # large enough that a leak shows
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


def history(rows: list[list[int]], length: int, state: Tensor | None = None) -> History:
    item = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), length)
    carried = None if state is None else {"hidden": state}
    return History(torch.arange(len(rows)) + 2, {"item": item}, item > 0, tasks=("next",), state=carried)


def loop(encoder: GRU4Rec, row: list[int], state: Tensor) -> Tensor:
    """The equations, event by event: states [layers, H] -> the last layer's after each event [n, H]."""
    found = []
    hidden = list(state)
    for item in row:
        x = encoder.items.weight[item]
        for i, layer in enumerate(encoder.layers):
            (wr, wz, wn), (ur, uz, un) = layer.weight_ih.chunk(3), layer.weight_hh.chunk(3)
            (br, bz, bn), (cr, cz, cn) = layer.bias_ih.chunk(3), layer.bias_hh.chunk(3)
            r = torch.sigmoid(wr @ x + br + ur @ hidden[i] + cr)
            z = torch.sigmoid(wz @ x + bz + uz @ hidden[i] + cz)
            n = torch.tanh(wn @ x + bn + r * (un @ hidden[i] + cn))
            x = hidden[i] = z * hidden[i] + (1 - z) * n
        found.append(x)
    return torch.stack(found) if found else state.new_zeros(0, state.shape[1])


def test_the_equations() -> None:
    encoder = gru4rec(layers=2)
    encoded = encoder.encode(history(ROWS, 7))
    for b, row in enumerate(ROWS):
        want = loop(encoder, row, torch.zeros(2, 8).double())
        assert torch.allclose(encoded.tokens[b, : len(row)], want, rtol=0, atol=1e-12)
        assert torch.allclose(encoded.user[b], want[-1] if row else torch.zeros(8).double(), rtol=0, atol=1e-12)
        assert not encoded.tokens[b, len(row) :].any()


def test_the_score_is_the_state_itself_times_the_item_and_its_bias() -> None:
    """No activation after the last state: 0.9 stays 0.9, where tanh makes it 0.72."""
    encoder = gru4rec()
    encoded = encoder.encode(history(ROWS[:1], 6))
    h = loop(encoder, ROWS[0], torch.zeros(1, 8).double())[4]
    want = encoder.items.weight @ h + encoder.bias
    assert torch.allclose(encoder.score(encoded, Query(torch.tensor([[4]])))[0, 0, :, 0], want, rtol=0, atol=1e-12)
    some = torch.tensor([[[4, 9, 2]]])
    assert torch.allclose(
        encoder.score(encoded, Query(torch.tensor([[4]]), some))[0, 0, :, 0], want[some[0, 0]], rtol=0, atol=1e-12
    )


def test_it_is_torchs_own_gru() -> None:
    encoder = gru4rec(layers=2, hidden=6)
    other = nn.GRU(8, 6, 2, batch_first=True).double()
    own = {f"{name}_l{i}": p for i, layer in enumerate(encoder.layers) for name, p in layer.named_parameters()}
    other.load_state_dict(own)
    state = torch.randn(2, 2, 6).double()
    out, last = other(encoder.items(torch.tensor([ROWS[0], ROWS[0][::-1]])), state.transpose(0, 1).contiguous())
    encoded = encoder.encode(history([ROWS[0], ROWS[0][::-1]], 6, state))
    assert torch.allclose(encoded.tokens, encoder.project(out), rtol=0, atol=1e-12)
    assert torch.allclose(encoded.state["hidden"], last.transpose(0, 1), rtol=0, atol=1e-12)


def test_each_row_goes_on_from_its_own_state() -> None:
    """Slots of a session-parallel batch: one goes on, one begins anew, one waits without events."""
    encoder = gru4rec(layers=2)
    state = torch.randn(3, 2, 8).double()
    state[1] = 0
    encoded = encoder.encode(history([[4, 5], [4, 5], []], 2, state))
    for b, row in enumerate([[4, 5], [4, 5]]):
        assert torch.allclose(encoded.tokens[b], loop(encoder, row, state[b]), rtol=0, atol=1e-12)
    assert (encoded.tokens[0] - encoded.tokens[1]).abs().max() > 1e-3
    fresh = encoder.encode(history([[4, 5]], 2))
    assert torch.allclose(encoded.tokens[1], fresh.tokens[0], rtol=0, atol=1e-12)
    assert torch.equal(encoded.state["hidden"][2], state[2])
    assert torch.equal(encoded.user[2], state[2, -1])


def test_event_by_event_is_the_whole() -> None:
    encoder = gru4rec(layers=2, hidden=5)
    whole, state = encoder.encode(history(ROWS, 6)), None
    for t in range(6):
        step = encoder.encode(history([row[t : t + 1] for row in ROWS], 1, state))
        state = step.state["hidden"]
        real = whole.history.mask[:, t]
        assert torch.allclose(step.tokens[real, 0], whole.tokens[real, t], rtol=0, atol=1e-12)
    assert torch.allclose(state, whole.state["hidden"], rtol=0, atol=1e-12)
    assert torch.allclose(step.user, whole.user, rtol=0, atol=1e-12)


def test_rows_longer_than_the_window_are_read_whole() -> None:
    short, long = gru4rec(window=2), gru4rec()
    assert torch.equal(short.encode(history(ROWS, 6)).tokens, long.encode(history(ROWS, 6)).tokens)


def test_before_any_event_the_state_answers() -> None:
    encoder, state = gru4rec(hidden=6), torch.randn(1, 1, 6).double()
    first = encoder.encode(history([[2, 3]], 2))
    rest = encoder.encode(history([[4, 5]], 2, first.state["hidden"]))
    want = encoder.score(first, Query(torch.tensor([[1]])))
    assert torch.allclose(encoder.score(rest, Query(torch.tensor([[-1]]))), want, rtol=0, atol=1e-12)
    nothing = encoder.encode(history([[]], 0, state))
    assert torch.allclose(nothing.user, encoder.project(state[:, 0]), rtol=0, atol=1e-12)
    assert torch.equal(nothing.state["hidden"], state)


def tokens(encoder: GRU4Rec) -> Tensor:
    return encoder.encode(history(ROWS, 6)).tokens


@pytest.mark.parametrize("which", ["dropout_embedding", "dropout_hidden"])
def test_dropout_only_while_training(which: str) -> None:
    settings = {"dropout_embedding": 0.0, "dropout_hidden": 0.0}
    encoder, plain = gru4rec(**settings | {which: 0.5}), gru4rec(**settings)
    assert torch.equal(tokens(encoder), tokens(plain))
    assert not torch.equal(tokens(encoder.train()), tokens(plain.train()))


def test_what_the_next_event_goes_on_from_is_not_dropped() -> None:
    encoder = gru4rec(dropout_embedding=0.0, dropout_hidden=0.5).train()
    encoded: Encoded = encoder.encode(history(ROWS[:1], 6))
    assert torch.allclose(encoded.state["hidden"][0, 0], loop(encoder, ROWS[0], torch.zeros(1, 8).double())[-1])
    assert (encoded.tokens == 0).any()


def test_constrained_embeddings_are_one_table() -> None:
    one, two = gru4rec(), gru4rec(constrained=False)
    assert set(two.state_dict()) - set(one.state_dict()) == {"outputs.weight"}
    assert one.candidates(("next",))[0] is one.items.weight
    assert two.candidates(("next",))[0] is two.outputs.weight


def test_layers_begin_as_the_authors_have_them() -> None:
    layer = GRULayer(50, 30, build().op("augru"))
    for weight, width in ((layer.weight_ih, 50), (layer.weight_hh, 30)):
        bound = (6 / (width + 30)) ** 0.5
        for gate in weight.chunk(3):
            assert 0.9 * bound < gate.abs().max() <= bound
    assert not layer.bias_ih.any()
    assert not layer.bias_hh.any()


def test_label_tasks_have_a_table_of_their_own() -> None:
    encoder = gru4rec()
    before = set(encoder.state_dict())
    encoder.begin_task(("age",), "train")
    assert set(encoder.state_dict()) - before == {"labels.tables.user/age.weight"}
    seen = dataclasses.replace(history(ROWS, 6), tasks=("age",))
    scores = encoder.double().score(encoder.encode(seen), Query(seen.last[:, None]))
    assert scores.shape == (4, 1, 5, 1)


def test_a_misspelt_or_impossible_setting_is_refused() -> None:
    with pytest.raises(UserError, match="layers"):
        parse(GRU4RecConfig, {"layers": 0}, "encoder")
    with pytest.raises(UserError, match="droput"):
        parse(GRU4RecConfig, {"droput": 0.1}, "encoder")


PUBLISHED = {
    "ce": {"negatives": 16, "sampler": "popularity", "alpha": 0.5, "in_batch": 8},
    "bpr_max": {"price": "bpr_max", "elu": 1, "regularisation": 0.9, "negatives": 16, "sampler": "popularity", "in_batch": 8},
}


@pytest.mark.parametrize("price", PUBLISHED)
def test_the_authors_reading_and_losses(price: str) -> None:
    """Sessions side by side, an event a batch, in-batch and popular negatives: the transitions of `tiny` are learnt."""
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    said = {
        "encoder": {"name": "gru4rec", "dim": 16},
        "objective": {"name": "next_item", **PUBLISHED[price]},
        "batch": {"rows": 8, "carry": 1},
        "train": {"optimizer": "adagrad", "lr": 0.3, "schedule": "constant", "warmup": 0, "epochs": 2},
    }
    session = open_session(load().plugins, coded, said)
    model = session.compose(session.run.experiment)
    session.train(model)
    found = session.evaluate(model, [session.evaluator(model, "ranking")])
    ndcg = next(row.metric.value for row in found if (row.metric.metric, row.split) == ("ndcg@10", "test"))
    assert ndcg > 0.4  # at random 0.19


PRICES = [
    {},
    {"negatives": 20, "shared": True},
    {"price": "bpr_max", "negatives": 20, "shared": True, "regularisation": 0.5},
]


@pytest.mark.parametrize("price", PRICES)
def test_it_learns_a_cycle_at_each_price(price: dict[str, Any]) -> None:
    torch.manual_seed(0)
    encoder = GRU4Rec(GRU4RecConfig(dim=16, dropout_embedding=0.0, dropout_hidden=0.0), build())
    ask = NextItem(NextItem.Config(**price), build())
    starts = torch.arange(64) % 28
    item = (starts[:, None] + torch.arange(9)) % 28 + 2  # item i is followed by i + 1
    raw = Batch(History(torch.arange(64), {"item": item}, item > 0, tasks=("next",)))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
    for step in range(150):
        optimizer.zero_grad()
        ask.loss(encoder, ask.prepare(raw, torch.Generator().manual_seed(step))).loss.backward()
        optimizer.step()
    batch = ask.prepare(raw, torch.Generator().manual_seed(0))
    scores = encoder.eval().score(encoder.encode(batch.history), Query(batch.targets.query.at))[..., 2:, 0]
    assert (scores.argmax(-1) + 2 == batch.targets.answer).float().mean() > 0.9
