from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from userec_markov.prme import PRME, PRMEConfig

from userec.batch import Batch, History, Query
from userec.builtin.kernels import userec_kernels
from userec.builtin.next_item import NextItem
from userec.config import parse
from userec.dataset.events import Events, code
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import NEXT, Field, Schema
from userec.testing import open_session
from userec.testing.tiny import TinyDataset

N, U = 30, 10
TIMED = Schema({"item": Field("item"), "time": Field("time", "time")}, {"item": N, "user": U}, ((NEXT,),))
UNTIMED = Schema({"item": Field("item")}, {"item": N, "user": U}, ((NEXT,),))


def prme(schema: Schema = TIMED, train: Events | None = None, **settings: Any) -> PRME:
    torch.manual_seed(0)
    build = Builder({}, schema, {}, Kernels(userec_kernels()), train)
    return PRME(PRMEConfig(**{"dim": 5, "spread": 0.5} | settings), build).double().eval()


def history(rows: list[list[int]], users: list[int], gap: list[list[int]] | None = None) -> History:
    """Events a second apart; `gap`: seconds from each to its question."""
    length = max(map(len, rows))
    item = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    time = torch.arange(length).expand_as(item) * (item > 0)
    waits = torch.ones_like(item) if gap is None else torch.tensor([row + [0] * (length - len(row)) for row in gap])
    events = {"item": item, "time": time}
    return History(torch.tensor(users), events, item > 0, tasks=("next",), asked={"asked.time": (time + waits) * (item > 0)})


@torch.no_grad()
def scores(encoder: PRME, seen: History, at: Tensor, ids: Tensor | None = None) -> Tensor:
    return encoder.score(encoder.encode(seen), Query(at, ids))[..., 0]


@torch.no_grad()
def distance(encoder: PRME, user: int, current: int | None, item: int, alpha: float) -> float:
    """The definition, point by point."""
    p, s = encoder.preference.weight, encoder.sequence.weight
    liked = float((encoder.users.weight[user] - p[item]).square().sum())
    return liked if current is None else alpha * liked + (1 - alpha) * float((s[current] - s[item]).square().sum())


def ranked_alike(found: Tensor, distances: list[float]) -> None:
    """Scores are minus the distances, but for one constant a question."""
    sums = found + torch.tensor(distances, dtype=torch.float64)
    assert torch.allclose(sums, sums[:1].expand_as(sums), rtol=0, atol=1e-8)


ROWS, USERS = [[2, 7, 4], [9, 3]], [3, 5]


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_scores_are_the_negative_distances(alpha: float) -> None:
    encoder, seen = prme(alpha=alpha), history(ROWS, USERS)
    found = scores(encoder, seen, torch.tensor([[0, 1, 2], [0, 1, 1]]))
    for b, row in enumerate(ROWS):
        for t, current in enumerate(row):
            wanted = [distance(encoder, USERS[b], current, item, alpha) for item in range(2, N)]
            ranked_alike(found[b, t, 2:], wanted)
            assert found[b, t, 2:].argmax() == int(np.argmin(wanted))
    ids = torch.randint(2, N, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    some = scores(encoder, seen, torch.tensor([[0, 1, 2], [0, 1, 1]]), ids)
    assert torch.allclose(some, found.gather(2, ids), rtol=0, atol=1e-10)


def test_after_a_gap_preference_alone_counts() -> None:
    encoder = prme(tau=2.0)
    assert encoder.reads == {"user", "item", "time", "asked.time"}
    seen = history(ROWS, USERS, [[7200, 7201, 5], [90_000, 0]])
    found = scores(encoder, seen, torch.tensor([[0, 1, 2], [0, 1, 1]]))
    for b, t, apart in ((0, 0, False), (0, 1, True), (0, 2, False), (1, 0, True), (1, 1, False)):
        wanted = [distance(encoder, USERS[b], None if apart else ROWS[b][t], item, 0.2) for item in range(2, N)]
        ranked_alike(found[b, t, 2:], wanted)


def test_without_a_threshold_times_are_not_read() -> None:
    encoder, seen = prme(schema=UNTIMED), history(ROWS, USERS)
    assert encoder.reads == {"user", "item"}
    bare = History(seen.user, {"item": seen.events["item"]}, seen.mask, tasks=("next",))
    at = seen.last[:, None]
    assert torch.equal(scores(encoder, bare, at), scores(prme(), history(ROWS, USERS, [[10**9] * 3, [10**9] * 2]), at))


def test_the_two_spaces_share_nothing() -> None:
    """Sequence moves no preference: with alpha 1 the last item and its table do not count, with alpha 0 the user does not."""
    for alpha, moved in ((1.0, "sequence"), (0.0, "preference"), (0.0, "users")):
        encoder, seen = prme(alpha=alpha), history(ROWS, USERS)
        before = scores(encoder, seen, seen.last[:, None])[..., 2:]
        with torch.no_grad():
            getattr(encoder, moved).weight.normal_()
        after = scores(encoder, seen, seen.last[:, None])[..., 2:]
        assert torch.allclose(after - after[..., :1], before - before[..., :1], rtol=0, atol=1e-10)
    assert encoder.preference.weight.data_ptr() != encoder.sequence.weight.data_ptr()


def test_gradients_after_a_gap_leave_the_sequence() -> None:
    encoder, seen = prme(tau=1.0), history([[2]], [3], [[3601]])
    found = encoder.score(encoder.encode(seen), Query(torch.tensor([[0]])))[0, 0, :, 0]
    (found[5] - found[6]).backward()
    assert encoder.sequence.weight.grad is None or not encoder.sequence.weight.grad.any()
    user, p = encoder.users.weight, encoder.preference.weight
    assert torch.allclose(user.grad[3], (2 * (p[5] - p[6])).detach())
    assert torch.allclose(p.grad[6], (2 * (p[6] - user[3])).detach())
    assert torch.allclose(p.grad[5], (-2 * (p[5] - user[3])).detach())


def test_of_a_user_unknown_to_training_the_sequence_alone_counts() -> None:
    train = Events(np.array([0, 0, 3, 3, 3, 3, 3, 3, 3]), {"item": np.array([2, 3, 4])})
    encoder = prme(train=train)
    seen = history([[4]] * 4, [0, 1, 2, 999])  # nobody, unknown, a user without training events, one beyond the table
    found = scores(encoder, seen, seen.last[:, None])
    assert torch.equal(found, found[:1].expand_as(found))
    s = encoder.sequence.weight.detach()
    ranked_alike(found[0, 0, 2:], [0.8 * float((s[4] - s[item]).square().sum()) for item in range(2, N)])
    assert not scores(encoder, seen, torch.full((4, 1), -1)).any()  # before any event no item is nearer than another
    gone = prme(train=train, tau=1.0)
    long_ago = history([[4]] * 2, [2, 3], [[3601]] * 2)
    late = scores(gone, long_ago, long_ago.last[:, None])
    assert not late[0].any()
    assert late[1, 0, 2:].unique().numel() > 1
    known = history([[4]], [3])
    assert not torch.allclose(scores(encoder, known, known.last[:, None]), found[:1])
    restored = prme()
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(scores(restored, seen, seen.last[:, None]), found)


def test_before_any_event_preference_alone_counts() -> None:
    encoder = prme()
    found = scores(encoder, history(ROWS, USERS), torch.tensor([[-1], [-1]]))
    for b, user in enumerate(USERS):
        ranked_alike(found[b, 0, 2:], [distance(encoder, user, None, item, 0.2) for item in range(2, N)])


def test_bad_settings_are_refused() -> None:
    for wrong in ({"alpha": 1.5}, {"tau": 0}, {"dim": 0}, {"width": 3}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            parse(PRMEConfig, wrong, "encoder")
    with pytest.raises(UserError, match=r"encoder\.tau needs times"):
        prme(schema=UNTIMED, tau=6.0)


def test_it_learns_taste_and_sequence() -> None:
    """After item 2 a user's own item follows; items 10 to 29 follow each other in pairs, whoever the user is."""
    torch.manual_seed(0)
    build = Builder({}, UNTIMED, {}, Kernels(userec_kernels()))
    encoder = PRME(PRMEConfig(dim=16, alpha=0.5), build)
    ask = NextItem(NextItem.Config(negatives=12, shared=True, price="bpr"), build)
    pairs = torch.arange(10, 30)
    item = torch.cat([torch.tensor([[2, 3]] * 8), torch.stack([pairs, pairs ^ 1], 1).repeat(2, 1)])  # [48, 2]
    users = torch.cat([torch.arange(8) + 2, torch.arange(40) % 8 + 2])
    item[:8, 1] += torch.arange(8) % 4
    raw = Batch(History(users, {"item": item}, item > 0, tasks=("next",)))
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.03)
    for step in range(120):
        optimizer.zero_grad()
        ask.loss(encoder, ask.prepare(raw, torch.Generator().manual_seed(step))).loss.backward()
        optimizer.step()
    found = scores(
        encoder.eval(), History(users, {"item": item[:, :1]}, item[:, :1] > 0, tasks=("next",)), torch.zeros(48, 1).long()
    )
    found = found[:, 0].scatter(1, item[:, :1], -torch.inf)  # an item is nearest to itself
    assert (found[:, 2:].argmax(1) + 2 == item[:, 1]).float().mean() > 0.9


def test_the_recipe_learns_labels_too() -> None:
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    said = {"encoder": {"name": "prme", "dim": 4}, "task": "click", "train": {"epochs": 1}}
    session = open_session(load().plugins, coded, said)
    model = session.compose(session.run.experiment)
    session.train(model)
    found = session.evaluate(model, [session.evaluator(model, "click")])
    assert {row.metric.metric for row in found} == {"auc", "gauc", "logloss", "ece"}
