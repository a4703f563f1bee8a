from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from userec_recurrent.rrn import DAY, RRN, Recurrence, RRNConfig

from userec.batch import History, Query, gather_positions
from userec.builtin.kernels import userec_kernels
from userec.config import parse
from userec.dataset.events import Events
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.schema import NEXT, Field, Schema, Task

FIELDS = {"item": Field("item"), "time": Field("time", "time"), "rating": Field("rating", "number")}
SCHEMA = Schema(FIELDS, {"item": 12, "user": 9}, ((NEXT,), (Task("rating", "rating", "item"),)))
START = 1_000 * DAY
# of users 2, 3, 4 (others have none): item, day, rating
TRAIN = [[(2, 0, 5.0), (3, 0, 1.0), (4, 3, 2.0)], [(3, 1, 4.0), (2, 40, 3.0)], [(2, 0, 1.0), (5, 70, 5.0)]]


def events(rows: list[list[tuple[int, int, float]]] = TRAIN) -> Events:
    flat = [event for row in rows for event in row]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows]), np.full(4, len(flat))])
    item, day, rating = (np.array(column) for column in zip(*flat, strict=True))
    return Events(offsets, {"item": item, "time": START + day * DAY, "rating": rating.astype(np.float32)})


def rrn(train: Events | None = None, schema: Schema = SCHEMA, task: str = "rating", **settings: Any) -> RRN:
    torch.manual_seed(0)
    build = Builder({}, schema, {}, Kernels(userec_kernels()), events() if train is None else train)
    encoder = RRN(RRNConfig(**{"dim": 5, "factors": 3, "step": DAY, "dropout": 0.0} | settings), build)
    encoder.begin_task((task,), "train")
    encoder.double().eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if not name.startswith(("user_factor", "user_offset")):  # 0.02 would hide a leak
                parameter[:] = torch.randn_like(parameter) * 0.5
    return encoder


def history(rows: list[list[tuple[int, int, float]]], asked: list[int], task: str = "rating", user: int = 2) -> History:
    """Rows of (item, seconds since the start, rating), and the second at which each row's last question is put."""
    length = max(len(row) for row in rows)
    mask = torch.tensor([[place < len(row) for place in range(length)] for row in rows])
    full = [row + [(0, 0, 0.0)] * (length - len(row)) for row in rows]
    item, time, rating = (torch.tensor([[event[i] for event in row] for row in full]) for i in range(3))
    time = (time + START) * mask
    after = torch.cat([time[:, 1:], time[:, :1]], 1)
    last = mask.sum(1, keepdim=True) - 1
    after = after.scatter(1, last, START + torch.tensor(asked)[:, None]) * mask
    fields = {"item": item, "time": time, "rating": rating.double()}
    return History(torch.full((len(rows),), user), fields, mask, tasks=(task,), asked={"asked.time": after})


def ask(seen: History, ids: Tensor) -> Query:
    at = seen.last[:, None]
    return Query(at, ids, {"asked.time": gather_positions(seen.asked["asked.time"], at)})


def score(encoder: RRN, seen: History, item: int = 2) -> float:
    return float(encoder.score(encoder.encode(seen), ask(seen, torch.tensor([[[item]]])))[0, 0, 0, 0].detach())


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_recurrence_is_that_of_torch(cell: str) -> None:
    torch.manual_seed(1)
    made = Recurrence(cell, 4).double()
    lengths = [3, 0, 5, 1]
    row = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    rank = torch.cat([torch.arange(n) for n in lengths])
    y, start = torch.randn(9, 4).double(), tuple(torch.randn(4, 4).double() for _ in range(made.parts))
    found = made(y, row, rank, start)
    for b, n in enumerate(lengths):
        begin = tuple(part[None, b : b + 1] for part in start)
        for k in range(n):
            out, end = made.cell(y[row == b][: k + 1, None], begin if made.parts == 2 else begin[0])
            ends = end if made.parts == 2 else (end,)
            for part, want in zip(found, ends, strict=True):
                assert torch.allclose(part[:9][row == b][k], want[0, 0], atol=1e-12)
            assert torch.allclose(out[-1, 0], ends[0][0, 0])
    for part, old in zip(found, start, strict=True):
        assert torch.equal(part[9:], old)


def unrolled(encoder: RRN, side: str, steps: list[tuple[list[tuple[int, float]], int]]) -> Tensor:
    """The state after steps of ([(other side's id, rating)], day), written as one reads the formula."""
    table, cell = (encoder.rated, encoder.users) if side == "user" else (encoder.raters, encoder.items)
    span, mean = 70 * DAY, np.mean([event[2] for row in TRAIN for event in row])
    h = c = torch.zeros(1, 1, 5).double()
    before = None
    for entries, day in steps:
        x = sum((rating - mean) * table.weight[entry] for entry, rating in entries) / np.sqrt(len(entries))
        tau = day * DAY / span
        about = torch.tensor([float(before is None), tau, tau if before is None else before, np.log(len(entries))]).double()
        _, (h, c) = cell.cell((x + encoder.of_steps[side](about)).reshape(1, 1, 5), (h, c))
        before = tau
    return h[0, 0]


def test_the_formula() -> None:
    """Two user steps before the question, one of the item's; its later steps and the question's own are not seen."""
    encoder = rrn(item_step=DAY)
    with torch.no_grad():
        encoder.user_factor.weight[2], encoder.user_offset.weight[2] = torch.tensor([0.3, -0.2, 0.7]), 0.4
    seen = history([[(3, 0, 4.0), (4, 60, 2.0), (5, 2 * DAY, 5.0), (6, 40 * DAY + 5, 1.0)]], [40 * DAY + 50])
    u = unrolled(encoder, "user", [([(3, 4.0), (4, 2.0)], 0), ([(5, 5.0)], 2)])
    m = unrolled(encoder, "item", [([(2, 5.0), (4, 1.0)], 0)])
    want = encoder.project_user(u) @ (encoder.project_item(m) + encoder.own.weight[2])
    want = want + encoder.user_factor.weight[2] @ encoder.item_factor.weight[2]
    want = want + encoder.item_offset.weight[2, 0] + 0.4 + encoder.mean
    assert score(encoder, seen) == pytest.approx(float(want.detach()), abs=1e-9)
    later = dataclasses.replace(seen, asked={"asked.time": seen.asked["asked.time"] + DAY})  # day 41 knows day 40 of the item
    u = unrolled(encoder, "user", [([(3, 4.0), (4, 2.0)], 0), ([(5, 5.0)], 2), ([(6, 1.0)], 40)])
    m = unrolled(encoder, "item", [([(2, 5.0), (4, 1.0)], 0), ([(3, 3.0)], 40)])
    want = encoder.project_user(u) @ (encoder.project_item(m) + encoder.own.weight[2])
    want = want + encoder.user_factor.weight[2] @ encoder.item_factor.weight[2] + encoder.item_offset.weight[2, 0] + 0.4
    assert score(encoder, later) == pytest.approx(float((want + encoder.mean).detach()), abs=1e-9)


def test_what_happens_in_the_question_s_own_step_is_not_seen() -> None:
    encoder = rrn()
    one = score(encoder, history([[(3, 0, 4.0), (4, 2 * DAY, 5.0)]], [2 * DAY + 9]))
    other = score(encoder, history([[(3, 0, 4.0), (6, 2 * DAY, 1.0)]], [2 * DAY + 9]))
    assert one == pytest.approx(other, abs=1e-12)
    next_day = score(encoder, history([[(3, 0, 4.0), (4, 2 * DAY, 5.0)]], [3 * DAY + 9]))
    assert abs(next_day - one) > 1e-3


def test_item_states_see_no_step_of_the_question_or_later() -> None:
    changed = [list(TRAIN[0]), [TRAIN[1][0], (2, 40, 5.0)], list(TRAIN[2])]
    changed[0][0] = (2, 0, 3.0)  # the mean stays as it was
    kept = [TRAIN[0], [TRAIN[1][0], (2, 40, 5.0)], [(2, 0, 1.0), (5, 70, 3.0)]]  # so does this one's
    seen = history([[(3, 0, 4.0)]], [35 * DAY])
    one, other = rrn(), rrn(events(kept))
    assert float(one.mean) == pytest.approx(float(other.mean))
    assert score(one, seen) == pytest.approx(score(other, seen), abs=1e-9)  # day 40 is of the question's item step, 30 to 60
    assert abs(score(rrn(events(changed)), seen) - score(one, seen)) > 1e-3
    after = history([[(3, 0, 4.0)]], [75 * DAY])
    assert abs(score(one, after) - score(other, after)) > 1e-3


def test_the_mean_and_the_clock_are_those_of_training() -> None:
    encoder = rrn()
    assert float(encoder.mean) == pytest.approx(21 / 7)
    assert encoder.clock.tolist() == [START, 70 * DAY]
    score(encoder, history([[(3, 0, 1.0), (4, 200 * DAY, 1.0)]], [300 * DAY]))  # ratings of a test user
    assert float(encoder.mean) == pytest.approx(21 / 7)


def test_a_user_whom_training_never_saw_has_no_factor() -> None:
    encoder, rows = rrn(), [[(3, 0, 4.0)], [(2, 0, 2.0)], [(5, 0, 1.0)]]
    seen = dataclasses.replace(history(rows, [DAY * 5] * 3), user=torch.tensor([2, 3, 4]))
    optimizer = torch.optim.AdamW(encoder.train().parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        scores = encoder.score(encoder.encode(seen), ask(seen, torch.tensor([[[2, 3, 4]]])))[:, 0, :, 0]
        ((scores - torch.tensor([[5.0, 1.0, 2.0], [2.0, 5.0, 1.0], [1.0, 1.0, 5.0]])) ** 2).mean().backward()
        optimizer.step()
    for table in (encoder.user_factor, encoder.user_offset):
        assert table.weight[2:5].abs().min() > 0
        assert not table.weight[5:].any()
        assert not table.weight[:2].any()


def test_without_stationary_factors_no_user_is_read() -> None:
    encoder = rrn(stationary=False)
    assert "user" not in encoder.reads
    assert not [name for name in encoder.state_dict() if name.startswith(("user_", "item_factor"))]
    assert score(encoder, history([[(3, 0, 4.0)]], [DAY], user=2)) == score(encoder, history([[(3, 0, 4.0)]], [DAY], user=3))


def test_each_side_is_trained_while_the_other_stands() -> None:
    for share, moved, fixed in ((0.0, "users.", "items."), (1.0, "items.", "users.")):
        encoder, seen = rrn(item_share=share).train(), history([[(3, 0, 4.0), (4, DAY, 5.0)]], [DAY * 50])
        encoder.score(encoder.encode(seen), ask(seen, torch.tensor([[[2]]]))).sum().backward()
        grads = {name for name, p in encoder.named_parameters() if p.grad is not None and p.grad.any()}
        assert any(name.startswith(moved) for name in grads)
        assert not any(name.startswith(fixed) for name in grads)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_item_states_follow_the_weights(optimizer: Any) -> None:
    """What is kept of them is thrown away as soon as an optimizer's step, also a fused one, or a load changes them."""
    encoder, seen = rrn(item_share=1.0).float(), history([[(3, 0, 4.0)]], [DAY * 50])
    before, kept = score(encoder, seen), encoder._items[1]
    assert score(encoder, seen) == before
    assert encoder._items[1] is kept
    step = optimizer(encoder.parameters(), lr=0.1, fused=True)
    encoder.train().score(encoder.encode(seen), ask(seen, torch.tensor([[[2]]]))).sum().backward()
    step.step()
    after = score(encoder.eval(), seen)
    encoder._items = None
    assert score(encoder, seen) == after != before


def test_it_is_restored_without_the_training_events() -> None:
    encoder, seen = rrn(), history([[(3, 0, 4.0), (4, DAY, 5.0)]], [DAY * 50])
    blank = RRN(encoder.config, Builder({}, SCHEMA, {}, Kernels(userec_kernels())))
    blank.begin_task(("rating",), "train")
    blank.double().load_state_dict(encoder.state_dict())
    assert score(blank.eval(), seen) == score(encoder, seen)


def test_without_times_every_event_is_a_step() -> None:
    schema = dataclasses.replace(SCHEMA, fields={"item": Field("item")}, tasks=((NEXT,),))
    bare = Events(events().offsets, {"item": events().fields["item"]})
    encoder = rrn(bare, schema, "next", step=None)
    assert encoder.reads == {"item", "user"}
    item = torch.tensor([[3, 4, 5]])
    seen = History(torch.tensor([2]), {"item": item}, item > 0, tasks=("next",))
    tokens = encoder.encode(seen).tokens[0]
    for k in range(3):
        cut = History(seen.user, {"item": item[:, : k + 1]}, item[:, : k + 1] > 0, tasks=("next",))
        assert torch.allclose(encoder.encode(cut).user[0], tokens[k])
    assert (tokens[1] - tokens[0]).abs().max() > 1e-3


def test_a_catalogue_is_scored_at_each_question_s_step() -> None:
    encoder = rrn(item_step=DAY, task="next", step=0)
    rows = [[(3, 0, 4.0)], [(3, 0, 4.0)], [(4, 2, 1.0)]]
    seen = history(rows, [DAY // 2, 50 * DAY, 90 * DAY], "next")
    encoded = encoder.encode(seen)
    whole = encoder.score(encoded, ask(seen, None))
    each = encoder.score(encoded, ask(seen, torch.arange(12).expand(3, 1, 12)))
    assert torch.allclose(whole, each, atol=1e-12)
    assert (whole[0] - whole[1]).abs().max() > 1e-3  # the same history, asked later


def test_settings() -> None:
    with pytest.raises(UserError, match=r"encoder\.cell"):
        parse(RRNConfig, {"cell": "mlp"}, "encoder")
    with pytest.raises(UserError, match=r"encoder\.item_step"):
        parse(RRNConfig, {"item_step": 0}, "encoder")
