from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from userec_transformer.bert4rec import BERT4Rec, BERT4RecConfig

from userec.batch import Batch, History, Query
from userec.builtin.cloze import Cloze
from userec.builtin.kernels import userec_kernels
from userec.dataset.events import code
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import NEXT, UNKNOWN, Field, Schema, Task
from userec.testing import open_session
from userec.testing.tiny import TinyDataset

SCHEMA = Schema({"item": Field("item")}, {"item": 30, "user.age": 5}, ((NEXT,), (Task("age", "label", "user.age"),)))
ROWS = [[2, 3, 4, 5, 6, 7], [8, 9, 10], [], [11]]


def build() -> Builder:
    return Builder({}, SCHEMA, {}, Kernels(userec_kernels()))


def bert(**settings: Any) -> BERT4Rec:
    torch.manual_seed(0)
    encoder = BERT4Rec(BERT4RecConfig(**{"dim": 8, "heads": 2, "inner": 12, "window": 12} | settings), build()).double().eval()
    for parameter in encoder.parameters():  # 0.02 is too small for a test of leaks: it would hide them
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        encoder.items.weight[0] = 0
    return encoder


def history(rows: list[list[int]], length: int) -> History:
    item = torch.tensor([row + [0] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(len(rows), length)
    return History(torch.arange(len(rows)) + 2, {"item": item}, item > 0, tasks=("next",))


def oracle(encoder: BERT4Rec, items: list[int]) -> Tensor:
    """[L + 1, D]: every slot of one row, the [MASK] behind its items included, by torch's own post-LN layers."""
    config = encoder.config
    slots = torch.tensor([*items, UNKNOWN])
    x = encoder.norm(encoder.items.weight[slots] + encoder.positions[: len(slots)])[None]
    for block in encoder.blocks:
        layer = torch.nn.TransformerEncoderLayer(config.dim, config.heads, config.inner, 0.0, "gelu", batch_first=True).double()
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
        x = layer.train()(x)  # in train mode with dropout 0 it takes the plain path
    return x[0]


def test_every_slot_is_what_torchs_own_layers_make_of_it() -> None:
    encoder = bert()
    encoded = encoder.encode(history(ROWS, 9))
    for b, row in enumerate(ROWS):
        slots = oracle(encoder, row)
        assert torch.allclose(encoded.tokens[b, : len(row)], slots[:-1], rtol=0, atol=1e-10)
        assert not encoded.tokens[b, len(row) :].any()
        assert torch.allclose(encoded.user[b], slots[-1], rtol=0, atol=1e-10)


def test_the_question_after_the_last_event_is_asked_at_the_slot_behind_it() -> None:
    encoder, seen = bert(), history(ROWS, 6)
    asked = encoder.queries(encoder.encode(seen), Query(seen.last[:, None]))
    scores = encoder.score(encoder.encode(seen), Query(seen.last[:, None]))
    for b, row in enumerate(ROWS):
        want = encoder.head(oracle(encoder, row)[-1])
        assert torch.allclose(asked[b, 0], want, rtol=0, atol=1e-10)
        assert torch.allclose(scores[b, 0, :, 0], encoder.items.weight @ want + encoder.bias, rtol=0, atol=1e-10)


def test_a_hidden_event_is_asked_for_at_its_own_slot() -> None:
    encoder = bert()
    encoded = encoder.encode(history([[2, UNKNOWN, 4, UNKNOWN], [5, 6]], 4))
    asked = encoder.queries(encoded, Query(torch.tensor([[2, 0, 0], [-1, 1, 0]])))
    for b, (row, slots) in enumerate((([2, UNKNOWN, 4, UNKNOWN], [3, 1, 1]), ([5, 6], [0, 2, 1]))):
        assert torch.allclose(asked[b], encoder.head(oracle(encoder, row)[slots]), rtol=0, atol=1e-10)


def test_both_sides_count() -> None:
    encoder = bert()
    one, other = (encoder.encode(history([[2, UNKNOWN, last]], 3)) for last in (4, 5))
    asked = [encoder.queries(encoded, Query(torch.tensor([[0]]))) for encoded in (one, other)]
    assert (asked[0] - asked[1]).abs().max() > 1e-3


def test_padding_changes_nothing() -> None:
    encoder = bert()
    loose = encoder.encode(history(ROWS, 11))
    for b, row in enumerate(ROWS):
        tight = encoder.encode(history([row], len(row)))
        assert torch.allclose(loose.user[b], tight.user[0], rtol=0, atol=1e-12)
        assert torch.allclose(loose.tokens[b, : len(row)], tight.tokens[0], rtol=0, atol=1e-12)


def test_longer_rows_leave_room_for_the_slot() -> None:
    encoder = bert(window=4)
    rows = [[2, 3, 4, 5, 6, 7], [8, 9, 10, 11], [13, 14]]
    seen = history(rows, 7)
    encoded = encoder.encode(seen)
    asked = encoder.queries(encoded, Query(seen.last[:, None]))
    for b, row in enumerate(rows):
        slots = oracle(encoder, row[-4:])
        assert torch.allclose(asked[b, 0], encoder.head(slots[-1]), rtol=0, atol=1e-10)
        start = max(len(row) - 4, 0)
        assert torch.allclose(encoded.tokens[b, start : len(row)], slots[:-1], rtol=0, atol=1e-10)
        assert not encoded.tokens[b, :start].any()
    assert torch.isfinite(encoder.queries(encoded, Query(torch.tensor([[-1, 0, 1]] * 3)))).all()


def test_cloze_hides_other_events_each_time_and_tells_none_of_the_answers() -> None:
    ask, batch = Cloze(Cloze.Config(mask=0.5, alone=0.0), build()), Batch(history([list(range(2, 14))] * 8, 12))
    first, second = (ask.prepare(batch, torch.Generator().manual_seed(step)) for step in (1, 2))
    assert not torch.equal(first.targets.weight, second.targets.weight)
    asked, items = first.targets.weight > 0, batch.history.events["item"]
    changed = torch.where(asked, items + 14, items)  # another answer to every question, and nothing else
    other = dataclasses.replace(batch, history=dataclasses.replace(batch.history, events={"item": changed}))
    other = ask.prepare(other, torch.Generator().manual_seed(1))
    assert torch.equal(other.targets.answer[asked], first.targets.answer[asked] + 14)
    encoder = bert()
    one, two = (encoder.queries(encoder.encode(x.history), x.targets.query)[asked] for x in (first, other))
    assert torch.equal(one, two)


def test_the_head_sees_each_asked_slot_once() -> None:
    encoder, seen = bert(), history([[2, 3, 4, 5]], 4)
    widths: list[int] = []
    encoder.head.register_forward_hook(lambda module, args, out: widths.append(len(args[0])))
    encoder.queries(encoder.encode(seen), Query(torch.tensor([[3, -1, -1, -1, 1]])))
    assert widths == [3]


def test_the_reserved_ids_are_neither_trained_against_nor_ranked() -> None:
    torch.manual_seed(0)
    encoder, ask = BERT4Rec(BERT4RecConfig(dim=8), build()), Cloze(Cloze.Config(), build())
    batch = ask.prepare(Batch(history([list(range(2, 14))] * 8, 12)), torch.Generator().manual_seed(0))
    ask.loss(encoder, batch).loss.backward()
    assert not encoder.bias.grad[:2].any()
    assert encoder.bias.grad[2:].all()
    assert not encoder.items.weight.grad[0].any()
    assert encoder.items.weight.grad[UNKNOWN].any(), "the slot's own embedding learns"


def test_a_mask_of_high_bias_changes_no_rank() -> None:
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    session = open_session(load().plugins, coded, {"encoder": {"name": "bert4rec", "dim": 8}, "train": {"epochs": 1}})
    model = session.compose(session.run.experiment)
    session.train(model)
    found = []
    for _ in range(2):
        rows = session.evaluate(model, [session.evaluator(model, "ranking")])
        found.append({(row.split, row.metric.metric): row.metric.value for row in rows})
        with torch.no_grad():
            model.encoder.bias[:2] += 1e4
    assert found[0] == found[1]
    assert any(metric == "ndcg@10" for _, metric in found[0])


def test_label_tasks_have_a_table_of_their_own() -> None:
    encoder = bert()
    encoder.begin_task(("age",), "train")
    seen = dataclasses.replace(history(ROWS, 6), tasks=("age",))
    scores = encoder.double().score(encoder.encode(seen), Query(seen.last[:, None]))
    assert scores.shape == (4, 1, 5, 1)
    restored = bert()
    restored.begin_task(("age",), "train")
    restored.double().load_state_dict(encoder.state_dict())
    assert torch.equal(restored.score(restored.encode(seen), Query(seen.last[:, None])), scores)


def test_dropout_only_while_training() -> None:
    encoder, seen = bert(dropout=0.5, attention_dropout=0.5), history(ROWS, 6)
    assert torch.equal(encoder.encode(seen).tokens, encoder.encode(seen).tokens)
    encoder.train()
    assert not torch.equal(encoder.encode(seen).tokens, encoder.encode(seen).tokens)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(UserError, match=r"encoder\.dim 8 is not a multiple of encoder\.heads 3"):
        bert(heads=3)


def test_it_learns_a_cycle_by_cloze() -> None:
    torch.manual_seed(0)
    encoder = BERT4Rec(BERT4RecConfig(dim=16, layers=1, window=12, dropout=0.0), build())
    ask = Cloze(Cloze.Config(mask=0.3), build())
    item = (torch.arange(28)[:, None] + torch.arange(9)) % 28 + 2  # item i is followed by i + 1
    raw = Batch(History(torch.arange(28), {"item": item}, item > 0, tasks=("next",)))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    before = copy.deepcopy(encoder.state_dict())
    for step in range(200):
        optimizer.zero_grad()
        ask.loss(encoder, ask.prepare(raw, torch.Generator().manual_seed(step))).loss.backward()
        optimizer.step()
    seen = dataclasses.replace(raw.history, events={"item": item[:, :8]}, mask=item[:, :8] > 0)

    def right(model: BERT4Rec) -> float:
        scores = model.eval().score(model.encode(seen), Query(seen.last[:, None]))[:, 0, 2:, 0]
        return float((scores.argmax(-1) + 2 == item[:, 8]).double().mean())

    assert right(encoder) > 0.5
    encoder.load_state_dict(before)
    assert right(encoder) < 0.2
