from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from userec_lifelong import twin
from userec_lifelong.attention import TargetAttention
from userec_lifelong.features import BUCKETS, log_bucket
from userec_lifelong.twin import TWIN

from userec.batch import History, Query
from userec.builtin.kernels import userec_kernels
from userec.config import parse
from userec.dataset.events import code
from userec.encoder.table import EmbeddingTable
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import NEXT, Field, Schema, Task
from userec.testing import open_session
from userec.testing.tiny import TinyDataset

GROUP = Task("group", "label", "group")
FIELDS = [
    Field("time", "time"),
    Field("rating", "number"),
    Field("action"),
    Field("item.category"),
    Field("item.tags", many=True),
]
CATALOG = {
    "item": {
        "item.category": torch.tensor([0, 0] + [2 + i % 4 for i in range(30)]),
        "item.tags": torch.tensor([[0, 0], [0, 0]] + [[2 + i % 5, 2 + i % 3 if i % 2 else 0] for i in range(30)]),
    }
}


class Build:
    """The least of a Build: tables over a schema."""

    def __init__(self, fields: list[Field], catalog: dict[str, Any]) -> None:
        spaces = {"item": 32, "action": 5, "item.category": 6, "item.tags": 7, "group": 4}
        self.schema = Schema({field.name: field for field in fields}, spaces, ((NEXT,), (GROUP,)))
        self.catalog, self.train, self.dim = catalog, None, None

    def table(self, space: str, dim: int) -> EmbeddingTable:
        table = EmbeddingTable(self.schema.spaces[space], dim)
        table.reset(0.3)
        return table

    def op(self, name: str) -> Callable[..., Tensor]:
        return Kernels(userec_kernels(), use="auto").op(name)


def make(rich: bool = True, **settings: Any) -> TWIN:
    torch.manual_seed(0)
    config = TWIN.Config(**{"dim": 16, "heads": 4, "keep": 3, "recent": 3, "hidden": 8, "window": 12, **settings})
    return TWIN(config, Build(FIELDS, CATALOG) if rich else Build([], {})).eval()  # type: ignore[arg-type]


def history(lengths: tuple[int, ...] = (9, 4, 0), length: int = 9) -> History:
    generator = torch.Generator().manual_seed(1)
    shape = (len(lengths), length)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    events = {
        "item": torch.randint(2, 32, shape, generator=generator),
        "time": torch.randint(1, 10**6, shape, generator=generator).cumsum(1),
        "rating": torch.randint(1, 6, shape, generator=generator).float(),
        "action": torch.randint(2, 5, shape, generator=generator),
    }
    events = {name: values * mask for name, values in events.items()}
    return History(torch.zeros(len(lengths), dtype=torch.long), events, mask, asked={"asked.time": (events["time"] + 60) * mask})


def cut(h: History, length: int) -> History:
    """The history cut after `length` events."""
    return dataclasses.replace(
        h,
        events={name: values[:, :length] for name, values in h.events.items()},
        asked={name: values[:, :length] for name, values in h.asked.items()},
        mask=h.mask[:, :length],
    )


def score(model: TWIN, h: History, at: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
    at = h.last[:, None] if at is None else at
    ids = torch.arange(2, 32).reshape(1, 1, -1) if ids is None else ids
    with torch.no_grad():
        return model.score(model.encode(h), Query(at, ids))


def kept_weights(attention: TargetAttention, keys: Tensor, bias: Tensor, allowed: Tensor, target: Tensor) -> Tensor:
    """What the attention weighs events with, [B, Q, C, H, L]: its context is the identity, so it tells whom it sums."""
    rows, questions, length = allowed.shape
    tell = torch.eye(length).expand(rows, questions, -1, -1)
    nothing = keys[..., :0]
    return attention.attend(attention._split(attention.wq(target)), keys, nothing, bias, allowed, tell, keep=attention.keep)


def test_the_shape_and_the_fields_that_it_found() -> None:
    model = make()
    assert model.reads == {"item", "item.category", "item.tags", "time", "asked.time", "rating", "action"}
    assert make(rich=False).reads == {"item"}
    assert model.long.wc.shape == (5 - 1, 8)  # distance, age, action, rating
    assert make(rich=False).long.wc.shape == (1, 8)
    encoded = model.encode(history())
    assert encoded.tokens.shape == (3, 9, 16)
    assert encoded.user is not None
    assert encoded.user.shape == (3, 16)
    assert score(model, history(), torch.tensor([[3, 8], [0, 3], [-1, -1]]), torch.ones(3, 2, 5).long()).shape == (3, 2, 5, 1)


@pytest.mark.parametrize("rich", [True, False])
def test_the_score_at_t_is_that_of_the_history_cut_after_t(rich: bool) -> None:
    model, h = make(rich), history((9, 9))
    at = torch.arange(-1, 9).expand(2, -1)
    ids = torch.arange(2, 12).reshape(1, 1, -1).expand(2, 10, -1)
    together = score(model, h, at, ids)
    for t in range(-1, 9):
        alone = score(model, cut(h, t + 1), torch.full((2, 1), t), ids[:, :1])
        torch.testing.assert_close(together[:, t + 1 : t + 2], alone, atol=1e-5, rtol=1e-5)


def test_later_events_do_not_move_the_score() -> None:
    model, h = make(), history((9,))
    later = {name: torch.cat([values[:, :5], values[:, 5:].flip(1)], 1) for name, values in h.events.items()}
    changed = dataclasses.replace(h, events=later)
    at = torch.tensor([[4]])
    torch.testing.assert_close(score(model, h, at), score(model, changed, at))
    assert not torch.allclose(score(model, h), score(model, changed))


def test_padding_moves_nothing() -> None:
    model, h = make(), history((4, 2))
    padded = history((4, 2), 9)
    for name in h.events:
        padded.events[name][:, :4] = h.events[name][:, :4]  # type: ignore[index]
    padded.asked["asked.time"][:, :4] = h.asked["asked.time"][:, :4]
    short = cut(padded, 4)
    torch.testing.assert_close(score(model, short), score(model, padded), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode(short).user, model.encode(padded).user, atol=1e-5, rtol=1e-5)


def test_an_empty_history_is_finite_in_value_and_gradient() -> None:
    for h in (history((0, 0)), history((0, 0), 0)):
        model = make()
        encoded = model.encode(h)
        scores = model.score(encoded, Query(h.last[:, None], torch.arange(2, 12).reshape(1, 1, -1)))
        assert encoded.user is not None
        (scores.sum() + encoded.user.sum()).backward()
        assert scores.isfinite().all()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
        torch.testing.assert_close(scores[0], scores[1])


@pytest.mark.parametrize("field", ["time", "action", "rating", "asked.time"])
def test_cross_features_matter(field: str) -> None:
    model, h = make(), history((9, 9))
    values = (h.asked if field == "asked.time" else h.events)[field]
    if field == "time":
        other = (values.float() * 0.5).long()
    elif field == "asked.time":
        other = values + 10**7
    elif field == "action":
        other = values.flip(0)
    else:
        other = 6 - values
    changed = (
        dataclasses.replace(h, asked={field: other})
        if field == "asked.time"
        else dataclasses.replace(h, events={**h.events, field: other})
    )
    assert not torch.allclose(score(model, h), score(model, changed), atol=1e-6)


def test_the_cross_bias_moves_the_choice_of_stage_one() -> None:
    """An overwhelming weight on distance keeps the newest events, or the oldest, whatever the items are."""
    model, h = make(rich=False, keep=2), history((9,))
    with torch.no_grad():
        model.cross.buckets[0].weight.copy_(torch.arange(BUCKETS).float()[:, None].expand(-1, 8))
        for sign, kept in ((-1.0, {7, 8}), (1.0, {0, 1})):
            model.long.wc.fill_(4 * sign)  # overwhelming, yet no weight is too small for a float
            model.long.beta.fill_(1.0)
            seen = model._view(model.encode(h), Query(h.last[:, None])).long
            target = model.inherent(torch.tensor([[[5]]]))
            weights = kept_weights(model.long, seen.keys, seen.bias, seen.allowed, target)
            chosen = set(weights.sum((0, 1, 2, 3)).nonzero().flatten().tolist())
            assert chosen == kept or (sign > 0 and chosen <= {0, 1, 2, 3, 4})  # 5 to 8 ago share a bucket


def test_a_request_time_in_the_query_stands_over_the_history_s() -> None:
    model, h = make(), history((9,))
    ids, at = torch.arange(2, 12).reshape(1, 1, -1), h.last[:, None]
    with torch.no_grad():
        plain = model.score(model.encode(h), Query(at, ids))
        same = model.score(model.encode(h), Query(at, ids, {"asked.time": h.asked["asked.time"][:, -1:]}))
        later = model.score(model.encode(h), Query(at, ids, {"asked.time": h.asked["asked.time"][:, -1:] + 10**8}))
    torch.testing.assert_close(plain, same)
    assert not torch.allclose(plain, later)


def test_chunks_of_candidates_equal_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, h = make(), history()
    whole = score(model, h)
    monkeypatch.setattr(twin, "CELLS", 800)
    torch.testing.assert_close(score(model, h), whole, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        everything = model.score(model.encode(h), Query(h.last[:, None]))
    torch.testing.assert_close(everything[:, :, 2:], whole, atol=1e-5, rtol=1e-5)


def test_the_long_attention_sees_what_the_short_one_does_not() -> None:
    model, h = make(recent=2), history((9,))
    old = {**h.events, "item": h.events["item"].clone()}
    old["item"][:, 0] = 2 + (old["item"][:, 0] - 1) % 30
    changed = dataclasses.replace(h, events=old)
    view, other = (model._view(model.encode(x), Query(x.last[:, None])) for x in (h, changed))
    target = model.inherent(torch.arange(2, 32).reshape(1, 1, -1))
    (twin_, short), (twin_other, short_other) = view.attend(target), other.attend(target)
    torch.testing.assert_close(short, short_other)
    assert not torch.allclose(twin_, twin_other)


def test_side_features_are_read_and_averaged_over_several() -> None:
    model = make()
    ids = torch.tensor([3, 4])
    tags = model.inherent.side_tables[1].weight * 4
    found = model.inherent(ids)[:, -8:]
    torch.testing.assert_close(found[0], (tags[3] + tags[3]) / 2)  # item 3: tags 3 and 3
    torch.testing.assert_close(found[1], tags[4])  # item 4: tag 4 alone
    assert not model.inherent(torch.tensor([0])).any()


def test_a_label_space_has_its_own_table() -> None:
    model = make()
    model.begin_task(("group",), "train")
    h = dataclasses.replace(history(), tasks=("group",))
    scores = score(model, h, ids=torch.arange(4).reshape(1, 1, -1))
    assert scores.shape == (3, 1, 4, 1)
    model.begin_task(("group",), "train")
    assert list(model.labels.tables) == ["group"]
    model.score(model.encode(h), Query(h.last[:, None], torch.tensor([[[2, 3]]]))).sum().backward()
    assert model.labels.tables["group"].weight.grad is not None


def test_it_learns_which_item_follows() -> None:
    model = make(rich=False, dropout=0.0).train()
    items = (torch.arange(9)[None] + torch.arange(16)[:, None]) % 30 + 2
    h = History(torch.zeros(16).long(), {"item": items[:, :-1]}, torch.ones(16, 8, dtype=torch.bool))
    ids = torch.stack([items[:, 1:], (items[:, 1:] + 6) % 30 + 2], -1)
    at = torch.arange(8).expand(16, -1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        scores = model.score(model.encode(h), Query(at, ids))[..., 0]
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), torch.zeros(16 * 8).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_log_buckets_double() -> None:
    assert log_bucket(torch.tensor([-5, 0, 1, 2, 3, 4, 7, 8, 2**62])).tolist() == [0, 0, 1, 2, 2, 3, 3, 4, BUCKETS - 1]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match="dim 10 is not a multiple of heads 4"):
        parse(TWIN.Config, {"dim": 10}, "encoder")


@pytest.mark.parametrize(("task", "price"), [("click", "bce"), ("score", "squared")])
def test_the_recipe_learns_clicks_and_ratings(task: str, price: str) -> None:
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    small = {"name": "twin", "dim": 8, "heads": 2, "keep": 3, "recent": 3, "hidden": 8}
    session = open_session(load().plugins, coded, {"encoder": small, "task": task, "train": {"epochs": 1}})
    model = session.compose(session.run.experiment)
    assert session.run.experiment.objective is not None
    assert session.run.experiment.objective.settings["price"] == price
    session.train(model)
    evaluator = session.evaluator(model, "click" if task == "click" else "rating")
    assert session.refusals(model, evaluator) == []
    found = {row.metric.metric: row.metric.value for row in session.evaluate(model, [evaluator]) if row.split == "test"}
    assert set(found) == ({"auc", "gauc", "logloss", "ece"} if task == "click" else {"rmse", "mae"})
    assert all(value == value for value in found.values())
