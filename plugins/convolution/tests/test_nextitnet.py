from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from userec_convolution.nextitnet import NextItNet, NextItNetConfig

from userec.batch import Batch, History, Query
from userec.builtin.kernels import userec_kernels
from userec.builtin.next_item import NextItem
from userec.config import parse
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.schema import NEXT, Field, Schema, Task

SCHEMA = Schema({"item": Field("item")}, {"item": 30, "user.age": 5}, ((NEXT,), (Task("age", "label", "user.age"),)))
BLOCKS = ("one", "two")


def build() -> Builder:
    return Builder({}, SCHEMA, {}, Kernels(userec_kernels()))


def nextitnet(**settings: Any) -> NextItNet:
    torch.manual_seed(0)
    encoder = NextItNet(NextItNetConfig(**{"dim": 8, "dilations": (1, 2)} | settings), build()).double().eval()
    for parameter in encoder.parameters():  # 0.02 is too small for a test of leaks, and biases of zero hide padding
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        encoder.items.weight[:2] = 0
    return encoder


def history(rows: list[list[int]], length: int) -> History:
    item = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), length)
    return History(torch.arange(len(rows)) + 2, {"item": item}, item > 0, tasks=("next",))


def convolved(x: Tensor, layer: Any) -> Tensor:
    """torch's own convolution over one row [L, C], zeros on the left; its last tap is the newest event's."""
    weight = layer.taps.weight.unflatten(1, (layer.kernel, -1)).flip(1).transpose(1, 2)  # [D, C, kernel]
    padded = F.pad(x.T, ((layer.kernel - 1) * layer.dilation, 0))[None]
    return F.conv1d(padded, weight, layer.taps.bias, dilation=layer.dilation)[0].T


def written_out(encoder: NextItNet, row: list[int]) -> Tensor:
    """Figure 3 with torch's own layers, one row [L] -> [L, D]."""
    x = encoder.items.weight[row]
    for block in encoder.blocks:
        if encoder.config.block == "one":
            y = block.narrow(F.relu(block.norms[0](x)))
            y = convolved(F.relu(block.norms[1](y)), block.layers[0])
            x = x + block.widen(F.relu(block.norms[2](y)))
        else:
            y = F.relu(block.norms[0](convolved(x, block.layers[0])))
            x = x + F.relu(block.norms[1](convolved(y, block.layers[1])))
    return F.relu(x)


ROWS = [[2, 3, 4, 5, 6, 7, 8, 9, 10], [8, 9, 10], [], [11]]


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_blocks_of_figure_3(block: str, kernel: int) -> None:
    encoder = nextitnet(block=block, kernel=kernel, dilations=(1, 2, 4))
    encoded = encoder.encode(history(ROWS, 10))
    for b, row in enumerate(ROWS):
        if row:
            assert torch.allclose(encoded.tokens[b, : len(row)], written_out(encoder, row), rtol=0, atol=1e-10)
        assert not encoded.tokens[b, len(row) :].any()
    scores = encoder.score(encoded, Query(torch.tensor([[3], [1], [-1], [0]])))
    want = written_out(encoder, ROWS[0])[3] @ encoder.output.weight.T + encoder.bias
    assert torch.allclose(scores[0, 0, :, 0], want, rtol=0, atol=1e-10)
    assert torch.equal(scores[2, 0, :, 0], encoder.bias)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("dilations", "kernel"), [((1,), 3), ((1, 2), 3), ((2, 1), 2), ((1, 4), 3)])
def test_the_receptive_field_is_what_an_answer_depends_on(block: str, dilations: tuple[int, ...], kernel: int) -> None:
    """Trap: with block `two` each block adds dilation and twice the dilation."""
    encoder = nextitnet(block=block, dilations=dilations, kernel=kernel, dim=16)
    field = encoder.receptive_field
    assert field == 1 + (kernel - 1) * sum(dilations) * (1 if block == "one" else 3)
    item = torch.randint(2, 29, (16, field + 4), generator=torch.Generator().manual_seed(1))
    last = encoder.encode(history(item.tolist(), field + 4)).user
    for back in range(1, field + 5):
        other = item.clone()
        other[:, -back] = 29
        moved = (encoder.encode(history(other.tolist(), field + 4)).user - last).abs().max() > 1e-12
        assert not moved if back > field else moved or back < field, back  # dilations of 1 and 4 leave holes inside


@pytest.mark.parametrize("block", BLOCKS)
def test_a_changed_future_leaves_every_earlier_token(block: str) -> None:
    encoder = nextitnet(block=block)
    before = encoder.encode(history(ROWS[:1], 9)).tokens
    for t in range(8):
        after = encoder.encode(history([ROWS[0][: t + 1] + [29] * (8 - t)], 9)).tokens
        assert torch.allclose(after[:, : t + 1], before[:, : t + 1], rtol=0, atol=1e-12)
        assert (after[:, t + 1] - before[:, t + 1]).abs().max() > 1e-3


@pytest.mark.parametrize("block", BLOCKS)
def test_padding_and_neighbours_are_in_no_convolution(block: str) -> None:
    """Trap: biases and LN make a padded slot speak from the second layer on."""
    encoder = nextitnet(block=block)
    loose = encoder.encode(history(ROWS, 14)).tokens
    for b, row in enumerate(ROWS):
        tight = encoder.encode(history([row], len(row))).tokens[0]
        assert torch.allclose(loose[b, : len(row)], tight, rtol=0, atol=1e-12)


def test_padding_is_in_no_loss() -> None:
    """Trap: the authors' code also trains on label 0 at every pad."""
    encoder, ask = nextitnet(), NextItem(NextItem.Config(), build())
    losses = []
    for length in (9, 14):
        raw = Batch(history([row for row in ROWS if row], length))
        step = ask.loss(encoder, ask.prepare(raw, torch.Generator()))
        losses.append(step.loss)
        assert step.targets == 8 + 2
    assert torch.allclose(losses[0], losses[1], rtol=0, atol=1e-12)
    losses[1].backward()
    assert not encoder.items.weight.grad[0].any()
    assert not encoder.bias.grad[:2].any()


@pytest.mark.parametrize("block", BLOCKS)
def test_layer_norms_are_trained_and_serve(block: str) -> None:
    """Trap: the authors' code leaves gain and offset out of the graph that serves."""
    encoder, seen = nextitnet(block=block), history(ROWS[:1], 9)
    trained = {name for name, _ in encoder.named_parameters() if ".norms." in name}
    assert len(trained) == 2 * (3 if block == "one" else 2) * 2
    before = encoder.encode(seen).tokens
    before.sum().backward()
    for name in trained:
        parameter = encoder.get_parameter(name)
        assert parameter.grad.abs().max() > 0, name
        with torch.no_grad():
            parameter += 0.1
        assert (encoder.encode(seen).tokens - before).abs().max() > 1e-6, name
        with torch.no_grad():
            parameter -= 0.1


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_newest_event_alone_needs_its_receptive_field_alone(block: str, carried: bool) -> None:
    encoder = nextitnet(block=block, dilations=(1, 2) if block == "one" else (1,), kernel=2)
    assert encoder.receptive_field == 4  # of a row of nine
    seen = history(ROWS, 9)
    if carried:
        seen = dataclasses.replace(seen, state=encoder.encode(history([[12], [13, 14], [15, 16, 17], []], 3)).state)
    whole, newest = encoder.encode(seen), encoder.encode(dataclasses.replace(seen, newest=True))
    assert torch.allclose(newest.user, whole.user, rtol=0, atol=1e-12)
    assert torch.allclose(newest.tokens[[0, 1, 3], [8, 2, 0]], whole.tokens[[0, 1, 3], [8, 2, 0]], rtol=0, atol=1e-12)
    assert newest.tokens.abs().sum(-1).count_nonzero() == 3  # no other token, none that is wrong
    for name, value in whole.state.items():
        assert torch.allclose(newest.state[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
def test_event_by_event_equals_at_once(block: str) -> None:
    encoder = nextitnet(block=block, dilations=(1, 3))
    whole, state = encoder.encode(history(ROWS, 9)), None
    for t in range(9):
        now = history([row[t : t + 1] for row in ROWS], 1)
        step = encoder.encode(dataclasses.replace(now, state=state))
        state = step.state
        real = now.mask[:, 0]
        assert torch.allclose(step.tokens[real, 0], whole.tokens[real, t], rtol=0, atol=1e-12)
    assert torch.allclose(step.user, whole.user, rtol=0, atol=1e-12)  # of rows that ended long ago too
    for name, value in whole.state.items():
        assert torch.allclose(state[name], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_state_of_the_past_is_made_of_values_alone(block: str) -> None:
    """Nobody learns through it: `batch.carry` hands it on detached."""
    encoded = nextitnet(block=block).encode(history(ROWS, 9))
    assert encoded.tokens.requires_grad
    assert not encoded.state["inputs"].requires_grad


def test_before_new_events_the_user_is_who_the_state_left() -> None:
    encoder = nextitnet()
    first = encoder.encode(history(ROWS, 9))
    later = encoder.encode(dataclasses.replace(history([[12]] * 4, 1), state=first.state))
    assert torch.equal(encoder.queries(later, Query(torch.full((4, 1), -1)))[:, 0], first.user)
    assert not first.user[2].any()


def test_an_output_table_of_its_own_or_the_items() -> None:
    own, shared = nextitnet(), nextitnet(shared=True)
    weight, bias = own.candidates(("next",))
    assert weight is own.output.weight
    assert bias is own.bias
    weight, bias = own.candidates(("next",), torch.tensor([[4, 5]]))
    assert torch.equal(weight, own.output.weight[[4, 5]][None])
    assert torch.equal(bias, own.bias[[4, 5]][None])
    assert not {"output.weight", "bias"} & set(shared.state_dict())
    weight, bias = shared.candidates(("next",))
    assert weight is shared.items.weight
    assert bias is None


def test_label_tasks_have_a_table_of_their_own() -> None:
    encoder = nextitnet()
    encoder.begin_task(("age",), "train")
    seen = dataclasses.replace(history(ROWS, 9), tasks=("age",))
    encoder.double()
    assert encoder.score(encoder.encode(seen), Query(seen.last[:, None])).shape == (4, 1, 5, 1)
    assert encoder.candidates(("age",))[1] is None


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UserError, match=r"encoder\.block one halves the width, and encoder\.dim 9 is odd: --set encoder\.dim=10"):
        nextitnet(block="one", dim=9)
    for wrong in ({"dilations": []}, {"dilations": [0]}, {"kernel": 1}, {"block": "three"}, {"dilation": [1]}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            parse(NextItNetConfig, wrong, "encoder")


@pytest.mark.parametrize("block", BLOCKS)
def test_it_learns_what_the_last_but_one_item_means(block: str) -> None:
    """Rows alternate between two items: the last one alone does not tell which follows."""
    torch.manual_seed(0)
    config = NextItNetConfig(dim=32, block=block, dilations=(1,), dropout=0.0)
    encoder, ask = NextItNet(config, build()), NextItem(NextItem.Config(), build())
    item = torch.cartesian_prod(torch.arange(6), torch.arange(6)).repeat(1, 3) + 2  # [36, 6]
    raw = Batch(History(torch.arange(36), {"item": item}, item > 0, tasks=("next",)))
    batch = ask.prepare(raw, torch.Generator())
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        ask.loss(encoder, batch).loss.backward()
        optimizer.step()
    scores = encoder.eval().score(encoder.encode(batch.history), Query(batch.targets.query.at))[:, 1:, 2:, 0]
    assert (scores.argmax(-1) + 2 == batch.targets.answer[:, 1:]).float().mean() > 0.95
