from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from userec_target_attention import din, network
from userec_target_attention.activations import Dice
from userec_target_attention.din import DIN
from userec_target_attention.embedding_mlp import EmbeddingMLP

from userec.batch import History, Query
from userec.builtin.kernels import userec_kernels
from userec.encoder.table import EmbeddingTable
from userec.kernel.dispatch import Kernels
from userec.schema import NEXT, Field, Schema, Task

GROUP = Task("group", "label", "group")
CATALOG = {
    "item": {
        "item.category": torch.tensor([0, 0] + [2 + i % 4 for i in range(30)]),
        "item.tags": torch.tensor([[0, 0], [0, 0]] + [[2 + i % 5, 2 + i % 3 if i % 2 else 0] for i in range(30)]),
    }
}


class Build:
    """The least of a Build: tables over a schema."""

    def __init__(self, rich: bool, events: tuple[int, ...] = ()) -> None:
        fields = [Field("item.category"), Field("item.tags", many=True)] if rich else []
        spaces = {"item": 32, "item.category": 6, "item.tags": 7, "group": 4}
        self.schema = Schema({field.name: field for field in fields}, spaces, ((NEXT,), (GROUP,)))
        self.catalog, self.dim = CATALOG if rich else {}, None
        self.train = SimpleNamespace(fields={"item": torch.tensor(events).long().numpy()})

    def table(self, space: str, dim: int) -> EmbeddingTable:
        table = EmbeddingTable(self.schema.spaces[space], dim)
        table.reset(0.3)
        return table

    def op(self, name: str) -> Callable[..., Tensor]:
        return Kernels(userec_kernels(), use="auto").op(name)


def make(rich: bool = True, model: Any = DIN, events: tuple[int, ...] = (), **settings: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"dim": 8, "side": 4, "hidden": (8, 6), **({"attention": (7, 5)} if model is DIN else {}), **settings}
    encoder = model(model.Config(**sizes), Build(rich, events)).eval()
    for part in encoder.modules():
        if isinstance(part, Dice):
            nn.init.normal_(part.alpha)
            nn.init.normal_(part.mean)
    return encoder


def history(lengths: tuple[int, ...] = (9, 4, 0), length: int = 9) -> History:
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    items = torch.randint(2, 32, (len(lengths), 9), generator=torch.Generator().manual_seed(1))
    items = torch.nn.functional.pad(items, (0, max(length - 9, 0)))[:, :length] * mask
    return History(torch.zeros(len(lengths)).long(), {"item": items}, mask)


def score(model: Any, h: History, at: Tensor | None = None, ids: Tensor | None = None) -> Tensor:
    ids = torch.arange(1, 32).reshape(1, 1, -1) if ids is None else ids
    with torch.no_grad():
        return model.score(model.encode(h), Query(h.last[:, None] if at is None else at, ids))


@pytest.mark.parametrize("softmax", [False, True])
def test_the_score_is_the_paper_s_formula(softmax: bool) -> None:
    """u = sum_j a(e_j, v) e_j over events 0..at, then the head on [u, v, u * v]: one (row, question, candidate) at a time."""
    model, h = make(softmax=softmax), history()
    at, ids = torch.tensor([[3, 8], [0, 3], [-1, -1]]), torch.randint(2, 32, (3, 2, 5))
    found, unit = score(model, h, at, ids), model.interest.network
    with torch.no_grad():
        for b, q, c in ((b, q, c) for b in range(3) for q in range(2) for c in range(5)):
            v = model.items(ids[b, q, c])
            events = model.items(h.events["item"][b, : at[b, q] + 1])  # [n, D]
            target = v.expand_as(events)
            a = unit.rest(unit.first(torch.cat([target, events, target - events, target * events], -1))).squeeze(-1)
            a = (a / model.dim**0.5).softmax(0) if softmax else a
            u = (a[:, None] * events).sum(0)
            want = model.head.rest(model.head.first(torch.cat([v, u, v * u])[None]))
            torch.testing.assert_close(found[b, q, c], want[0], atol=1e-5, rtol=1e-5)


def test_the_base_model_is_the_mean_and_an_mlp() -> None:
    model, h = make(model=EmbeddingMLP), history()
    found = score(model, h, torch.tensor([[4], [3], [-1]]), torch.full((3, 1, 1), 7))
    with torch.no_grad():
        for b, n in enumerate((5, 4, 0)):
            v, events = model.items(torch.tensor(7)), model.items(h.events["item"][b, :n])
            u = events.mean(0) if n else torch.zeros_like(v)
            want = model.head.rest(model.head.first(torch.cat([v, u, v * u])[None]))
            torch.testing.assert_close(found[b, 0, 0], want[0], atol=1e-5, rtol=1e-5)


def test_the_weights_are_not_normalised() -> None:
    """Twice the events wake twice the interest; a softmax forgets how many there were."""
    once = history((4,), 4)
    twice = History(once.user, {"item": once.events["item"].repeat(1, 2)}, once.mask.repeat(1, 2))
    target = torch.tensor([[[7]]])
    for softmax, times in ((False, 2), (True, 1)):
        model = make(softmax=softmax)
        with torch.no_grad():
            few, many = (
                model.interest(model.items(h.events["item"]), h.mask[:, None], model.items(target), target > 0)
                for h in (once, twice)
            )
        torch.testing.assert_close(many, times * few, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"softmax": True}, {"model": EmbeddingMLP}])
def test_padding_is_masked_after_the_unit(settings: dict[str, Any]) -> None:
    """Of zeros the unit makes something; more of them, longer blocks, move neither score nor user, nor what Dice learns."""
    model = make(**settings)
    if "model" not in settings:
        nn.init.constant_(model.interest.network.rest[-1].bias, 5.0)
    short, long = history((4, 2), 4), history((4, 2), 30)
    own = torch.tensor([[[5, 6, 0]], [[9, 9, 2]]])
    for ids in (None, own):
        torch.testing.assert_close(score(model, short, ids=ids), score(model, long, ids=ids), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode(short).user, model.encode(long).user, atol=1e-5, rtol=1e-5)
    learnt = []
    for h, ids in ((short, own), (long, torch.cat([own, torch.zeros(2, 1, 4).long()], 2))):
        model = make(**settings).train()
        model.score(model.encode(h), Query(h.last[:, None], ids))
        learnt.append([part.mean for part in model.modules() if isinstance(part, Dice)])
    assert learnt[0]
    torch.testing.assert_close(*learnt, atol=1e-6, rtol=1e-5)


def test_a_target_later_in_the_history_is_not_seen() -> None:
    """The question after event 4 is about item 7; whether 7 follows in the row must not show."""
    model, h = make(), history((9,))
    following = {"item": torch.cat([h.events["item"][:, :5], torch.full((1, 4), 7)], 1)}
    changed = dataclasses.replace(h, events=following)
    for ids in (torch.tensor([[[7, 8]]]), torch.arange(2, 32).reshape(1, 1, -1)):
        torch.testing.assert_close(score(model, h, torch.tensor([[4]]), ids), score(model, changed, torch.tensor([[4]]), ids))
    assert not torch.allclose(score(model, h), score(model, changed))


@pytest.mark.parametrize("settings", [{}, {"softmax": True}, {"attention_activation": "sigmoid"}, {"model": EmbeddingMLP}])
@pytest.mark.parametrize("cells", [1, 300, 2**22])
@pytest.mark.parametrize("block", [3, 1024])
def test_shared_candidates_score_as_one_by_one(
    settings: dict[str, Any], cells: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of ranking, against the way of training (with a gradient asked for), whatever the chunks; several questions too."""
    model, h = make(**settings), history()
    ids = torch.arange(32).reshape(1, 1, -1)  # padding and unknown among them
    for at in (h.last[:, None], torch.tensor([[3, 8], [0, 3], [-1, -1]])):
        plain = model.score(model.encode(h), Query(at, ids))
        assert plain.requires_grad
        monkeypatch.setattr(din, "CELLS", cells)
        monkeypatch.setattr(network, "BLOCK", block)
        torch.testing.assert_close(score(model, h, at, ids), plain.detach(), atol=1e-5, rtol=1e-5)
        own = ids.expand(*at.shape, -1)
        torch.testing.assert_close(score(model, h, at, own), plain.detach(), atol=1e-5, rtol=1e-5)


def test_a_pair_of_items_is_computed_once_for_all_users(monkeypatch: pytest.MonkeyPatch) -> None:
    model, h = make(), history((9,) * 3)
    again = dataclasses.replace(h, events={"item": h.events["item"][:1].expand(3, -1).contiguous()})
    seen: list[tuple[int, int]] = []
    across = model.interest.network.across
    monkeypatch.setattr(model.interest.network, "across", lambda v, x: seen.append((len(v), len(x))) or across(v, x))
    score(model, again)
    assert seen == [(31, len(again.events["item"].unique()))]
    monkeypatch.setattr(din, "CELLS", 10 * 3 * 16)
    score(model, again)
    assert [count for count, _ in seen[1:]] == [10, 10, 10, 1]


def test_a_model_in_training_never_takes_the_way_of_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients but in train mode Dice still counts the cells of its batch."""
    model, h = make().train(), history()
    monkeypatch.setattr(model.interest.network, "across", None)
    monkeypatch.setattr(model.head, "across", None)
    score(model, h)
    model.eval()
    encoded = model.encode(h)
    assert "which" not in encoded.cache
    model.score(encoded, Query(h.last[:, None], torch.arange(2, 12).reshape(1, 1, -1))).sum().backward()


def test_the_user_is_what_his_last_event_wakes_and_the_mean() -> None:
    model, h = make(), history()
    encoded = model.encode(h)
    for row, n in enumerate((9, 4)):
        events = model.items(h.events["item"][row : row + 1, :n])
        everything = torch.ones(1, 1, n, dtype=torch.bool)
        woken = model.interest(events, everything, events[:, -1:, None], everything[..., :1])
        torch.testing.assert_close(encoded.user[row], woken[0, 0, 0] + events[0].mean(0), atol=1e-5, rtol=1e-5)
    assert not encoded.user[2].any()


def test_the_user_s_own_question_moves_no_statistics() -> None:
    """Its target always stands in the history, which no trained question's need to."""
    model = make().train()
    before = [part.mean.clone() for part in model.interest.modules() if isinstance(part, Dice)]
    model.encode(history())
    assert before
    assert all(
        torch.equal(a, part.mean)
        for a, part in zip(before, [m for m in model.interest.modules() if isinstance(m, Dice)], strict=True)
    )


def test_side_features_are_read_and_averaged_over_several() -> None:
    model = make()
    assert model.reads == {"item", "item.category", "item.tags"}
    assert make(rich=False).reads == {"item"}
    tags = model.items.side_tables[1].weight * 8**0.5
    found = model.items(torch.tensor([3, 4]))[:, -4:]
    torch.testing.assert_close(found[0], tags[3])  # item 3: tags 3 and 3
    torch.testing.assert_close(found[1], tags[4])  # item 4: tag 4 alone
    assert not model.items(torch.tensor([0])).any()


@pytest.mark.parametrize("model", [DIN, EmbeddingMLP])
def test_a_label_space_has_its_own_table(model: Any) -> None:
    encoder = make(model=model)
    encoder.begin_task(("group",), "train")
    h = dataclasses.replace(history(), tasks=("group",))
    assert score(encoder, h, ids=torch.arange(4).reshape(1, 1, -1)).shape == (3, 1, 4, 1)
    encoder.score(encoder.encode(h), Query(h.last[:, None], torch.tensor([[[2, 3]]]))).sum().backward()
    assert encoder.labels.tables["group"].weight.grad is not None


def test_l2_shrinks_what_the_batch_touches_by_how_often_it_occurs() -> None:
    events = (5, 5, 5, 5, 6)  # item 5 four times, item 6 once, item 9 never
    model = make(events=events, l2=0.5)
    h = History(torch.zeros(1).long(), {"item": torch.tensor([[5, 6, 5, 0]])}, torch.tensor([[True, True, True, False]]))
    found = model.auxiliary(model.encode(h), Query(torch.tensor([[2]]), torch.tensor([[[9, 5]]])))["l2"]
    found.backward()
    weight = model.items.items.weight
    want = torch.zeros_like(weight)
    want[5], want[6], want[9] = 0.5 * weight[5] / 4, 0.5 * weight[6], 0.5 * weight[9]
    torch.testing.assert_close(weight.grad, want.detach())  # lambda w / n_j, once a batch
    tags, category = model.items.side_tables[1].weight, model.items.side_tables[0].weight
    torch.testing.assert_close(category.grad[5], 0.5 * category[5].detach() / 4)  # of item 5 alone
    torch.testing.assert_close(tags.grad[5], 0.5 * tags[5].detach() / 4)  # of item 5 alone
    assert not category.grad[4].any()
    assert model.items.occurs[5] == 4


def test_l2_touches_no_item_by_the_id_of_a_class() -> None:
    model = make(l2=1.0)
    h = dataclasses.replace(history((2,), 2), tasks=("group",))
    query = Query(torch.tensor([[1]]), torch.tensor([[[2, 3]]]))
    torch.testing.assert_close(model.auxiliary(model.encode(h), query)["l2"], model.auxiliary(model.encode(h), None)["l2"])
    assert not make().auxiliary(model.encode(h), query)


@pytest.mark.parametrize("model", [DIN, EmbeddingMLP])
def test_it_learns_which_item_follows(model: Any) -> None:
    encoder = make(rich=False, model=model, dim=16, hidden=(16,)).train()
    items = (torch.arange(4)[None] + torch.arange(30)[:, None]) % 30 + 2
    h = History(torch.zeros(30).long(), {"item": items[:, :-1]}, torch.ones(30, 3, dtype=torch.bool))
    ids = torch.stack([items[:, -1:], (items[:, -1:] + 6) % 30 + 2], -1)
    optimizer = torch.optim.Adam(encoder.parameters(), 2e-2)
    losses = []
    for _ in range(60):
        scores = encoder.score(encoder.encode(h), Query(h.last[:, None], ids))[:, 0, :, 0]
        loss = torch.nn.functional.cross_entropy(scores, torch.zeros(30).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
