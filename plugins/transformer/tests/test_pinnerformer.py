from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from userec_transformer.pinnerformer import ABSOLUTE, LEAST_TAU, RELATIVE, Cycles, PinnerFormer, PinnerFormerConfig

from userec.batch import Batch, History, Query
from userec.builtin.future import Future
from userec.builtin.kernels import userec_kernels
from userec.capability import Can
from userec.dataset.events import code
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import NEXT, Field, Schema, Task
from userec.testing import open_session
from userec.testing.tiny import TinyDataset

FIELDS = {"item": Field("item"), "time": Field("time", "time"), "action": Field("action")}
SPACES = {"item": 30, "action": 5, "user.age": 5}
TASKS = ((NEXT,), (Task("age", "label", "user.age"),))
ROWS = [[2, 3, 4, 5, 6, 7], [8, 9, 10], [11]]
START = 1_600_000_000


def build(*fields: str) -> Builder:
    schema = Schema({name: FIELDS[name] for name in ("item", *fields)}, SPACES, TASKS)
    return Builder({}, schema, {}, Kernels(userec_kernels()))


def pinner(*fields: str, **settings: Any) -> PinnerFormer:
    torch.manual_seed(0)
    said = {"dim": 6, "hidden": 8, "inner": 12, "action_dim": 4, "window": 12, "time": "time" in fields} | settings
    encoder = PinnerFormer(PinnerFormerConfig(**said), build(*fields)).double().eval()
    for parameter in encoder.parameters():  # 0.02 is too small for a test of leaks: it would hide them
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        encoder.items.weight[0] = 0
    return encoder


def history(rows: list[list[int]], length: int) -> History:
    """Each event is an hour and as many minutes as its item later than the one before; its action is odd or even."""
    item = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), length)
    time = (START + (3600 + 60 * item).cumsum(1)).masked_fill(item == 0, 0)
    events = {"item": item, "time": time, "action": (2 + item % 2).masked_fill(item == 0, 0)}
    return History(torch.arange(len(rows)) + 2, events, item > 0, tasks=("next",))


def told(seconds: int, periods: tuple[float, ...], cycles: Cycles) -> list[float]:
    angles = [2 * math.pi * seconds / period + phase for period, phase in zip(periods, cycles.phases.tolist(), strict=True)]
    scale = len(periods) ** -0.5
    waves = [math.cos(a) * scale for a in angles] + [math.sin(a) * scale for a in angles]
    return [*waves, math.log(1 + seconds) / math.log(28 * 86_400)]


def oracle(encoder: PinnerFormer, items: list[int], times: list[int], actions: list[int], latest: bool) -> Tensor:
    """[L, D]: sections 3.3 and 3.4 event by event, the blocks torch's own pre-LN layers under a causal mask."""
    config, rows = encoder.config, []
    for i, item in enumerate(items):
        gap = times[i] - times[i - 1] if i else 0
        row = (encoder.items.weight[item] * math.sqrt(config.dim)).tolist() + (encoder.actions.weight[actions[i]] * 2).tolist()
        row += told(times[i], ABSOLUTE, encoder.cycles[0]) + told(gap, RELATIVE, encoder.cycles[1])
        rows.append(row + (told(times[-1] - times[i], RELATIVE, encoder.cycles[2]) if latest else []))
    x = encoder.enter(torch.tensor(rows).double()) + encoder.positions[: len(items)].flip(0)
    later = torch.ones(len(items), len(items)).triu(1).bool()
    for block in encoder.blocks:
        layer = torch.nn.TransformerEncoderLayer(
            config.hidden, config.heads, config.inner, 0.0, "gelu", batch_first=True, norm_first=True
        ).double()
        ours = {
            "self_attn.in_proj_weight": block.project.weight,
            "self_attn.in_proj_bias": block.project.bias,
            "self_attn.out_proj.weight": block.merge.weight,
            "self_attn.out_proj.bias": block.merge.bias,
        }
        pairs = (("linear1", block.widen), ("linear2", block.narrow), ("norm1", block.norm_attention), ("norm2", block.norm_feed))
        for name, module in pairs:
            ours |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        layer.load_state_dict(ours)
        x = layer.train()(x[None], src_mask=later)[0]
    tokens = encoder.user_tower(encoder.norm(x))
    return tokens / tokens.square().sum(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("latest", [False, True])
def test_the_equations(latest: bool) -> None:
    encoder, seen = pinner("time", "action", since_latest=latest), history(ROWS, 8)
    encoded = encoder.encode(seen)
    for b, row in enumerate(ROWS):
        time, action = (seen.events[name][b, : len(row)].tolist() for name in ("time", "action"))
        want = oracle(encoder, row, time, action, latest)
        assert torch.allclose(encoded.tokens[b, : len(row)], want, rtol=0, atol=1e-7)
        assert torch.allclose(encoded.user[b], want[-1], rtol=0, atol=1e-7)
    items = encoder.item_tower(encoder.items.weight * math.sqrt(6))
    items = items / items.square().sum(-1, keepdim=True).sqrt()
    scores = encoder.score(encoded, Query(torch.tensor([[1]] * 3)))[:2, 0, :, 0]
    assert torch.allclose(scores, encoded.tokens[:2, 1] @ items.T / (LEAST_TAU + encoder.log_tau.exp()), rtol=0, atol=1e-9)


def test_users_and_items_have_length_one() -> None:
    encoder = pinner("time")
    encoded = encoder.encode(history(ROWS, 6))
    assert torch.allclose(encoded.user.norm(dim=-1), torch.ones(3).double())
    assert torch.allclose(encoder.candidates(("next",))[0].norm(dim=-1), torch.ones(30).double())


def test_tau_is_learned_and_never_below_its_floor() -> None:
    encoder = PinnerFormer(PinnerFormerConfig(dim=6, hidden=8, time=False), build()).eval()
    encoded, query = encoder.encode(history(ROWS, 6)), Query(torch.tensor([[0]] * 3))
    assert torch.allclose(encoder.queries(encoded, query).norm(dim=-1), torch.full((3, 1), 10.0))
    encoder.score(encoded, query)[..., 2, 0].sum().backward()
    assert encoder.log_tau.grad.abs() > 0
    with torch.no_grad():
        encoder.log_tau.fill_(-50)
    assert encoder.queries(encoded, query).norm(dim=-1).max() <= 1 / LEAST_TAU * 1.001


def test_positions_count_from_the_newest() -> None:
    """The newest event is always position 1; so a token is not that of the history cut there, and nothing claims that it were."""
    encoder = pinner()
    long, short = (encoder.encode(history([row], 6)) for row in (ROWS[0], ROWS[0][:3]))
    assert (long.tokens[0, 2] - short.user[0]).abs().max() > 1e-3
    assert Can.CAUSAL in encoder.offers
    assert Can.ANY_POSITION not in encoder.offers
    with torch.no_grad():
        encoder.positions[1:] = 0
        encoder.enter.weight[:] = 0
        for block in encoder.blocks:
            block.merge.weight[:] = 0
    one, two = encoder.encode(history([[2, 3, 4]], 3)).tokens[0], encoder.encode(history([[9, 8, 7, 6, 5]], 5)).tokens[0]
    assert torch.allclose(one[-1], two[-1]), "both end with position 1, which alone is told"
    assert torch.allclose(one[0], two[0])
    assert (one[-1] - one[0]).abs().max() > 1e-3


def test_who_knows_the_latest_time_is_not_causal() -> None:
    causal, knowing = pinner("time"), pinner("time", since_latest=True)
    seen = history(ROWS[:1], 6)
    later = dataclasses.replace(seen, events={**seen.events, "time": seen.events["time"] + 5000 * (torch.arange(6) == 5)})
    changed = [(x.encode(seen).tokens[:, :5] - x.encode(later).tokens[:, :5]).abs().max() for x in (causal, knowing)]
    assert changed[0] < 1e-12
    assert changed[1] > 1e-4
    assert Can.CAUSAL not in knowing.offers
    assert Can.CAUSAL in PinnerFormer.offers, "the class keeps its claim"


def test_a_minute_is_told_in_float32() -> None:
    """Seconds since 1970 in float32 are 128 apart: shares of a period taken there would tell neither minutes nor quarters."""
    cycles = Cycles(ABSOLUTE)
    at = torch.tensor([START, START + 60, START + 900])
    found = cycles(at)
    assert found.dtype == torch.float32
    want = 2 * np.pi * (at.numpy()[:, None] / np.array(ABSOLUTE) % 1)
    assert np.allclose(found[:, :12].detach().numpy(), np.cos(want) / math.sqrt(12), atol=1e-5)
    assert (found[0, :1] - found[1, :1]).abs() > 0.01
    assert torch.allclose(found[0, :1], found[2, :1], atol=1e-5), "the first period is a quarter of an hour"


def test_longer_rows_are_encoded_by_their_last_window() -> None:
    encoder, rows = pinner("time", "action", window=4), [[2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12], [13, 14]]
    whole = history(rows, 7)
    encoded = encoder.encode(whole)
    for b, row in enumerate(rows):
        start = max(len(row) - 4, 0)
        events = {name: x[b : b + 1, start : len(row)] for name, x in whole.events.items()}
        newest = encoder.encode(dataclasses.replace(whole, user=whole.user[:1], events=events, mask=events["item"] > 0))
        assert torch.allclose(encoded.user[b], newest.user[0], rtol=0, atol=1e-12)
        assert torch.allclose(encoded.tokens[b, start : len(row)], newest.tokens[0], rtol=0, atol=1e-12)
        assert not encoded.tokens[b, :start].any()


def future(**settings: Any) -> Future:
    return Future(Future.Config(**{"window": 3} | settings), build("time"))


def test_no_answer_is_in_the_input_and_none_is_before_its_question() -> None:
    """Rows count up, so an item tells where it stood: answers lie behind every event of the input."""
    rows = [list(range(2, 2 + n)) for n in (9, 7, 4, 2)]
    batch = future().prepare(Batch(history(rows, 9)), torch.Generator().manual_seed(0))
    asked, answer = batch.targets.weight > 0, batch.targets.answer
    newest = batch.history.events["item"].amax(1, keepdim=True)
    assert asked.any(1).all()
    assert torch.equal(asked, batch.history.mask), "every position of the input is asked"
    assert (answer > newest)[asked].all()
    assert (answer > newest + 1)[asked].any(), "not the next item alone"
    encoder = pinner("time")
    changed = [row[: int(n)] + [29] * (len(row) - int(n)) for row, n in zip(rows, batch.history.lengths, strict=True)]
    other = future().prepare(Batch(history(changed, 9)), torch.Generator().manual_seed(0))
    assert torch.equal(encoder.encode(batch.history).tokens, encoder.encode(other.history).tokens)


def test_log_q_of_the_mixture_is_taken_from_the_positive_too() -> None:
    counts = np.bincount(np.concatenate([np.full(3 * n, n) for n in range(2, 12)]), minlength=30)
    made = build("time")
    made.train = type("Train", (), {"fields": {"item": np.repeat(np.arange(30), counts)}})()  # type: ignore[assignment]
    said = {"window": 3, "negatives": 6, "shared": True, "in_batch": 5}
    ask = Future(Future.Config(**said), made)
    encoder = pinner("time")
    batch = ask.prepare(Batch(history([list(range(2, 2 + n)) for n in (9, 7, 8, 2)], 9)), torch.Generator().manual_seed(3))
    tokens, pool = encoder.encode(batch.history).tokens, batch.targets.query.ids[0, 0].tolist()
    p = counts.clip(min=counts[counts > 0].min()) / counts.sum()
    q = [math.log(5 / 11 * p[i] + 6 / 11 / 28) for i in range(30)]
    items, _ = encoder.candidates(("next",))
    asked, answer, losses = batch.targets.weight > 0, batch.targets.answer, []
    for b, at in asked.nonzero().tolist():
        logits = [(tokens[b, at] @ items[i] / (LEAST_TAU + encoder.log_tau.exp())).item() - q[i] for i in range(30)]
        own, mine = int(answer[b, at]), set(answer[b][asked[b]].tolist())
        rivals = [i for i in pool[:5] if i not in mine] + [i for i in pool[5:] if i != own]
        losses.append(math.log(sum(math.exp(logits[i]) for i in [own, *rivals])) - logits[own])
    assert math.isclose(ask.loss(encoder, batch).loss.item(), sum(losses) / len(losses), rel_tol=1e-4)


@pytest.mark.parametrize("action", [False, True])
def test_it_reads_what_the_data_have(action: bool) -> None:
    encoder = pinner("time", *(["action"] if action else []))
    assert encoder.reads == frozenset({"item", "time"} | ({"action"} if action else set()))
    assert pinner().reads == frozenset({"item"})
    seen = history(ROWS, 6)
    other = dataclasses.replace(seen, events={**seen.events, "action": 5 - seen.events["action"]})
    moved = (encoder.encode(seen).user - encoder.encode(other).user).abs().max() > 1e-3
    assert bool(moved) == action


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"time": True}, r"the data set has none; set encoder\.time=false"),
        ({"heads": 3}, r"encoder\.hidden 8 is not a multiple of encoder\.heads 3"),
        ({"since_latest": True}, r"set encoder\.time=true too"),
    ],
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        pinner(**settings)


def test_it_learns_what_comes_and_not_only_next() -> None:
    """Held-out users of four tastes, six items each: what they meet is mostly among their ten best. By chance 0.42 would be."""
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    said = {
        "encoder": {"name": "pinnerformer", "dim": 32, "hidden": 32, "layers": 1},
        "objective": {"name": "future", "window": 3, "negatives": 16, "shared": True, "in_batch": 16},
        "split": {"name": "by_user", "target": "all"},
        "train": {"epochs": 100, "lr": 0.01, "warmup": 5, "validate_every": 50},
    }
    session = open_session(load().plugins, coded, said)
    model = session.compose(session.run.experiment)
    session.train(model)
    rows = session.evaluate(model, [session.evaluator(model, "ranking")])
    found = {row.metric.metric: row.metric.value for row in rows if row.split == "test" and row.metric.slice == ""}
    assert found["recall@10"] > 0.6
    assert found["hr@10"] >= found["recall@10"]


def test_a_model_that_knows_the_latest_is_refused_the_dense_question() -> None:
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    said: dict[str, Any] = {"encoder": {"name": "pinnerformer", "dim": 8, "hidden": 8, "since_latest": True}}
    with pytest.raises(UserError, match="needs CAUSAL"):
        open_session(load().plugins, coded, said).compose(open_session(load().plugins, coded, said).run.experiment)
    last = {**said, "objective": {"name": "future", "question": "last", "negatives": 8, "window": 3}, "train": {"epochs": 1}}
    session = open_session(load().plugins, coded, last)
    session.train(session.compose(session.run.experiment))


def test_label_tasks_have_a_table_of_their_own() -> None:
    encoder = pinner("time")
    encoder.begin_task(("age",), "train")
    seen = dataclasses.replace(history(ROWS, 6), tasks=("age",))
    scores = encoder.double().score(encoder.encode(seen), Query(seen.last[:, None]))
    assert scores.shape == (3, 1, 5, 1)
    want = F.normalize(encoder.encode(seen).user, dim=-1) @ encoder.labels.tables["user/age"].weight.T
    assert torch.allclose(scores[:, 0, :, 0], want / (LEAST_TAU + encoder.log_tau.exp()))
