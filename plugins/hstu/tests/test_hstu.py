from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from userec_hstu.hstu import BUCKETS, HSTU, Block, HSTUConfig, HSTULarge, HSTULargeConfig, time_edges

from userec.batch import Batch, Encoded, History, Query, gather_positions
from userec.builtin.kernels import userec_kernels
from userec.builtin.next_item import NextItem
from userec.dataset.events import code
from userec.dataset.loader import Rows
from userec.engine.compose import Builder
from userec.engine.experiment import read_settings
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import NEXT, Field, Schema, Task
from userec.testing import open_session
from userec.testing.tiny import TinyDataset

TASKS = ((NEXT,), (Task("age", "label", "user.age"),))
SPACES = {"item": 30, "user.age": 5}
SCHEMA = Schema({"item": Field("item"), "time": Field("time", "time")}, SPACES, TASKS)
UNTIMED = Schema({"item": Field("item")}, SPACES, TASKS)
ITEMS = [[2, 3, 4, 5, 6, 7], [8, 9, 10], [11]]
TIMES = [[100, 101, 160, 160, 4000, 90000], [5, 5, 70], [1000]]
ASKED = [[101, 160, 160, 4000, 90000, 91000], [5, 70, 4_000_000], [1300]]


def build(schema: Schema = SCHEMA) -> Builder:
    return Builder({}, schema, {}, Kernels(userec_kernels()))


def hstu(schema: Schema = SCHEMA, **settings: Any) -> HSTU:
    """Small, its weights so great that nothing hides, norms and biases too."""
    torch.manual_seed(0)
    small = {"dim": 8, "heads": 2, "query_dim": 3, "value_dim": 5, "window": 12}
    encoder = HSTU(HSTUConfig(**small | settings), build(schema)).double().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    with torch.no_grad():
        encoder.items.weight[:2] = 0
    return encoder


def history(items: list[list[int]], times: list[list[int]], asked: list[list[int]], length: int | None = None) -> History:
    length = max(map(len, items)) if length is None else length

    def block(rows: list[list[int]]) -> Tensor:
        return torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), length)

    events = {"item": block(items), "time": block(times)}
    user = torch.arange(len(items)) + 2
    return History(user, events, events["item"] > 0, tasks=("next",), asked={"asked.time": block(asked)})


@torch.no_grad()
def by_hand(encoder: HSTU, items: list[int], times: list[int], asked: list[int]) -> list[list[float]]:
    """Equations 1 to 3, number by number: one user's tokens."""
    config, dim = encoder.config, encoder.dim
    divisor = config.window + 11

    def silu(number: float) -> float:
        return number / (1 + math.exp(-number))

    def norm(row: list[float]) -> list[float]:
        mean = sum(row) / len(row)
        variance = sum((a - mean) ** 2 for a in row) / len(row)
        return [(a - mean) / math.sqrt(variance + 1e-6) for a in row]

    def times_matrix(row: list[float], weight: Tensor) -> list[float]:
        return [sum(a * b for a, b in zip(row, column, strict=True)) for column in weight.tolist()]

    def bias(block: Any, i: int, j: int) -> float:
        found = float(block.position[i - j]) if config.position_bias else 0.0
        if config.time != "off":
            gap = max(asked[i] - times[j], 1)
            found += float(block.time[min(int(math.log(gap) / 0.301), 128)])
        return found

    x = [
        [math.sqrt(dim) * float(e) + float(p) for e, p in zip(encoder.items.weight[item], encoder.positions[place], strict=True)]
        for place, item in enumerate(items)
    ]
    h, wide, narrow = config.heads, config.value_dim, config.query_dim
    for block in encoder.blocks:
        made = [[silu(a) for a in times_matrix(norm(row), block.project.weight)] for row in x]
        added = []
        for i, mine in enumerate(made):
            y = [0.0] * (h * wide)
            for head in range(h):
                queries, keys = 2 * h * wide + head * narrow, 2 * h * wide + h * narrow + head * narrow
                for j in range(i + 1):
                    dot = sum(mine[queries + a] * made[j][keys + a] for a in range(narrow))
                    weight = silu(dot + bias(block, i, j)) / divisor
                    for a in range(wide):
                        y[head * wide + a] += weight * made[j][h * wide + head * wide + a]
            gated = [gate * a for gate, a in zip(mine[: h * wide], norm(y), strict=True)]
            added.append([a + float(b) for a, b in zip(times_matrix(gated, block.merge.weight), block.merge.bias, strict=True)])
        x = [[a + b for a, b in zip(row, more, strict=True)] for row, more in zip(x, added, strict=True)]
    return [[a / math.sqrt(sum(b * b for b in row)) for a in row] for row in x]


@pytest.mark.parametrize("settings", [{}, {"heads": 1, "layers": 3}, {"position_bias": False}, {"time": "off"}])
def test_the_equations(settings: dict[str, Any]) -> None:
    encoder = hstu(**settings)
    tokens = encoder.encode(history(ITEMS, TIMES, ASKED)).tokens
    for b, row in enumerate(zip(ITEMS, TIMES, ASKED, strict=True)):
        want = torch.tensor(by_hand(encoder, *row), dtype=torch.float64)
        assert torch.allclose(tokens[b, : len(want)], want, rtol=0, atol=1e-9)


def test_the_score_is_the_cosine_over_the_temperature() -> None:
    encoder = hstu(temperature=0.1)
    encoded = encoder.encode(history(ITEMS, TIMES, ASKED))
    scores = encoder.score(encoded, Query(torch.tensor([[1], [2], [0]])))[0, 0, 2:, 0]
    weight, token = encoder.items.weight[2:], encoded.tokens[0, 1]
    want = torch.nn.functional.cosine_similarity(weight, token[None]) / 0.1
    assert torch.allclose(scores, want, rtol=0, atol=1e-9)
    assert torch.allclose(encoded.tokens[0].norm(dim=-1), torch.ones(6).double())
    given = encoder.score(encoded, Query(torch.tensor([[1], [2], [0]]), torch.tensor([[[5, 9]]])))[0, 0, :, 0]
    assert torch.allclose(given, want[[3, 7]], rtol=0, atol=1e-9)


def test_the_buckets_are_those_of_the_logarithm() -> None:
    """floor(ln(max(|dt|, 1)) / 0.301), at most 128, on both sides of every edge (below 2^40 seconds, where float64 can tell)."""
    edges = time_edges()
    around = torch.cat([edges + step for step in (-2, -1, 0, 1, 2)])
    gaps = torch.cat([torch.arange(20_000), around[around < 2**40]])
    want = torch.tensor([min(int(math.log(max(int(gap), 1)) / 0.301), 128) for gap in gaps])
    assert torch.equal(torch.bucketize(gaps, edges, right=True), want)
    assert torch.bucketize(torch.tensor([2**62]), edges, right=True) == BUCKETS - 1
    assert len(edges) == BUCKETS - 1


def test_each_block_has_biases_of_its_own() -> None:
    encoder = hstu(layers=3)
    tables = [table for block in encoder.blocks for table in (block.position, block.time)]
    assert len({id(table) for table in tables}) == 6
    assert {name for name in encoder.state_dict() if name.endswith((".position", ".time"))} == {
        f"blocks.{layer}.{name}" for layer in range(3) for name in ("position", "time")
    }
    assert not torch.equal(encoder.blocks[0].time, encoder.blocks[1].time)


def test_weights_are_divided_by_a_constant() -> None:
    """Seen without the norm behind it: an attended value does not depend on how long rows are, and follows `divisor`."""
    for config, divisor in ((HSTUConfig(), 211), (HSTUConfig(window=50), 61), (HSTUConfig(divisor=7), 7)):
        block = Block(config, build())
        seen: list[tuple[int, float]] = []
        attend = block.attend
        block.attend = lambda *args, attend=attend, seen=seen, **more: (
            seen.append((more["max_len"], more["divisor"])) or attend(*args, **more)
        )
        for length in (1, 5):
            times = {"time": torch.arange(length), "asked": torch.arange(length) + 1, "edges": time_edges()}
            block(torch.randn(length, 50), torch.tensor([0, length]), length, times)
        assert seen == [(1, divisor), (5, divisor)]


def test_the_request_time_counts_and_the_time_of_later_events_does_not() -> None:
    encoder = hstu()
    before = encoder.encode(history(ITEMS[:1], TIMES[:1], ASKED[:1])).tokens[0]
    for t in range(6):
        other = [ASKED[0][:t] + [ASKED[0][t] + 5_000_000] + ASKED[0][t + 1 :]]
        after = encoder.encode(history(ITEMS[:1], TIMES[:1], other)).tokens[0]
        assert torch.equal(after[:t], before[:t])
        assert (after[t] - before[t]).abs().max() > 1e-3
        late = [TIMES[0][: t + 1] + [10**9 + s for s in TIMES[0][t + 1 :]]]
        after = encoder.encode(history(ITEMS[:1], late, ASKED[:1])).tokens[0]
        assert torch.equal(after[: t + 1], before[: t + 1])


def test_an_evaluation_question_scores_as_the_same_position_in_training() -> None:
    """A user's whole events as one training row, and the question that the test split puts before his last event."""
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    said = {"encoder": {"name": "hstu", "dim": 8, "window": 40}, "split": {"name": "leave_last"}}
    session = open_session(load().plugins, coded, said)
    model = session.compose(session.run.experiment)
    encoder = model.encoder.eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    view = session.view(model, session.evaluator(model, "ranking"))
    ask = NextItem(NextItem.Config(positions="last"), model.build)
    checked = 0
    with torch.no_grad():
        for batch in view.batches("test", "next"):
            assert batch.users is not None
            assert batch.targets is not None
            users = batch.users.numpy()
            rows = Rows(users, coded.events.offsets[users + 1], 41)
            raw = Batch(view.data._collator.history(rows, "next"))
            trained = ask.prepare(raw, torch.Generator())
            assert trained.targets is not None
            want = encoder.score(encoder.encode(trained.history), Query(trained.targets.query.at))
            found = encoder.score(encoder.encode(batch.history), Query(batch.targets.query.at))
            assert torch.allclose(found, want, rtol=0, atol=1e-4)
            own = gather_positions(batch.history.events["time"], batch.history.last[:, None])
            asked = batch.history.asked["asked.time"].scatter(1, batch.history.last[:, None], own)
            forgotten = dataclasses.replace(batch.history, asked={"asked.time": asked})
            without = encoder.score(encoder.encode(forgotten), Query(batch.targets.query.at))
            assert (without - want).abs().max() > 0.1
            checked += len(users)
    assert checked >= 10


def test_equal_times_are_the_ablation_without_times() -> None:
    timed, untimed = hstu(), hstu(UNTIMED, time="off")
    with torch.no_grad():
        for block in timed.blocks:
            block.time[0] = 0
    untimed.load_state_dict({name: x for name, x in timed.state_dict().items() if not name.endswith(".time")})
    same = [[77] * len(row) for row in ITEMS]
    with_times = timed.encode(history(ITEMS, same, same)).tokens
    without = untimed.encode(dataclasses.replace(history(ITEMS, TIMES, ASKED), asked={})).tokens
    assert torch.allclose(with_times, without, rtol=0, atol=1e-12)
    assert (timed.encode(history(ITEMS, TIMES, ASKED)).tokens - without).abs().max() > 1e-3


def test_what_is_read_follows_from_time() -> None:
    assert HSTU.reads == hstu().reads == {"item", "time", "asked.time"}
    assert hstu(time="events").reads == {"item", "time"}
    assert hstu(time="off").reads == {"item"}
    of_events = hstu(time="events")
    asked_otherwise = [[time + 999 for time in row] for row in ASKED]
    first, second = (of_events.encode(history(ITEMS, TIMES, asked)).tokens for asked in (ASKED, asked_otherwise))
    assert torch.equal(first, second)
    assert torch.allclose(first, hstu().encode(history(ITEMS, TIMES, TIMES)).tokens, rtol=0, atol=1e-12)


@pytest.mark.parametrize("time", ["request", "events"])
def test_data_without_times_is_refused_with_the_way_out(time: str) -> None:
    with pytest.raises(UserError, match=r"'hstu' reads the times of events.*none.*encoder\.time=off"):
        hstu(UNTIMED, time=time)
    said = read_settings(["encoder.time=off"])["encoder"]  # the way out, as one types it
    assert not any(name.endswith(".time") for name in hstu(UNTIMED, **said).state_dict())


def test_longer_rows_are_encoded_by_their_last_window_from_position_0() -> None:
    encoder = hstu(window=4)
    encoded = encoder.encode(history(ITEMS, TIMES, ASKED))
    newest = encoder.encode(history([ITEMS[0][-4:]], [TIMES[0][-4:]], [ASKED[0][-4:]]))
    assert torch.allclose(encoded.user[0], newest.user[0], rtol=0, atol=1e-12)
    assert torch.allclose(encoded.tokens[0, 2:], newest.tokens[0], rtol=0, atol=1e-12)
    assert not encoded.tokens[0, :2].any()


@pytest.mark.parametrize("length", [0, 3, 20])
def test_an_empty_history_is_finite_and_its_user_zero(length: int) -> None:
    encoder = hstu()
    encoded = encoder.encode(history([[], []], [[], []], [[], []], length))
    assert torch.equal(encoded.user, torch.zeros(2, 8).double())
    assert not encoder.score(encoded, Query(torch.full((2, 1), -1))).any()


def test_dropout_only_while_training() -> None:
    for settings in ({"dropout": 0.5, "linear_dropout": 0.0}, {"dropout": 0.0, "linear_dropout": 0.5}):
        encoder, seen = hstu(**settings), history(ITEMS, TIMES, ASKED)
        assert torch.equal(encoder.encode(seen).tokens, encoder.encode(seen).tokens)
        encoder.train()
        assert not torch.equal(encoder.encode(seen).tokens, encoder.encode(seen).tokens)


def test_label_tasks_have_a_table_of_their_own() -> None:
    encoder = hstu()
    before = set(encoder.state_dict())
    encoder.begin_task(("next",), "train")
    assert set(encoder.state_dict()) == before
    encoder.begin_task(("age",), "train")
    assert set(encoder.state_dict()) - before == {"labels.tables.user/age.weight"}
    seen = dataclasses.replace(history(ITEMS, TIMES, ASKED), tasks=("age",))
    encoded: Encoded = encoder.double().encode(seen)
    assert encoder.score(encoded, Query(seen.last[:, None])).shape == (3, 1, 5, 1)


def test_the_settings_are_the_authors() -> None:
    small, large = HSTUConfig(), HSTULargeConfig()
    assert (small.layers, small.heads, small.dim, small.query_dim, small.value_dim) == (2, 1, 50, 50, 50)
    assert (large.layers, large.heads, large.dim, large.query_dim, large.value_dim) == (8, 2, 50, 25, 25)
    assert {name for name in large.model_dump() if getattr(large, name) != getattr(small, name)} == {
        *("layers", "heads", "query_dim", "value_dim")
    }
    assert len(HSTULarge(large, build()).blocks) == 8


def told_by_time(seed: int) -> Batch:
    """Rows in which a gap of a second is followed by the next item, one of a day by the next but one."""
    rng = torch.Generator().manual_seed(seed)
    late = torch.randint(0, 2, (32, 9), generator=rng)
    item = (torch.randint(0, 28, (32, 1), generator=rng) + late.cumsum(1) + torch.arange(9)) % 28 + 2
    times = torch.where(late > 0, 86400, 1).cumsum(1)
    asked = {"asked.time": torch.cat([times[:, 1:], times[:, -1:]], 1)}
    return Batch(History(torch.arange(32), {"item": item, "time": times}, item > 0, tasks=("next",), asked=asked))


def taught(time: str, price: dict[str, Any]) -> float:
    """Share of right answers in new rows after training on others."""
    torch.manual_seed(0)
    config = HSTUConfig(dim=16, query_dim=16, value_dim=16, window=12, dropout=0.0, linear_dropout=0.0, time=time)
    encoder, ask = HSTU(config, build()), NextItem(NextItem.Config(**price), build())
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02)
    for step in range(100):
        optimizer.zero_grad()
        ask.loss(encoder, ask.prepare(told_by_time(step), torch.Generator().manual_seed(step))).loss.backward()
        optimizer.step()
    batch = ask.prepare(told_by_time(1000), torch.Generator().manual_seed(0))
    assert batch.targets is not None
    scores = encoder.eval().score(encoder.encode(batch.history), Query(batch.targets.query.at))[..., 2:, 0]
    return float((scores.argmax(-1) + 2 == batch.targets.answer).float().mean())


@pytest.mark.parametrize("price", [{}, {"negatives": 20}, {"negatives": 60, "shared": True}])
def test_it_learns_what_the_request_time_tells(price: dict[str, Any]) -> None:
    assert taught("request", price) > 0.95


@pytest.mark.parametrize("time", ["events", "off"])
def test_without_request_time_it_cannot_know(time: str) -> None:
    assert 0.4 < taught(time, {}) < 0.65


@pytest.mark.parametrize("task", ["next", "click", "group"])
def test_the_recipe_learns_every_kind_of_task(task: str) -> None:
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    said = {"encoder": {"name": "hstu", "dim": 8}, "task": task, "train": {"epochs": 1}}
    session = open_session(load().plugins, coded, said)
    model = session.compose(session.run.experiment)
    session.train(model)
    name, metric = {"next": ("ranking", "ndcg@10"), "click": ("click", "auc"), "group": ("classification", "accuracy")}[task]
    found = [row.metric for row in session.evaluate(model, [session.evaluator(model, name)])]
    assert metric in {each.metric for each in found}
    assert all(math.isfinite(each.value) for each in found)
