from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from userec_markov import newest, weights
from userec_markov.context_tree import ContextTree, ContextTreeConfig
from userec_markov.markov import Markov, MarkovConfig
from userec_markov.newest import Newest

from userec.batch import Batch, History, Query
from userec.builtin.kernels import userec_kernels
from userec.config import parse
from userec.engine.compose import Builder
from userec.errors import UserError
from userec.kernel.dispatch import Kernels
from userec.schema import NEXT, Field, Schema, Task

N = 9  # ids, of which 7 are real
Rows = list[list[int]]


def build(*fields: str) -> Builder:
    kinds = {"time": Field("time", "time"), "session": Field("session")}
    schema = Schema({"item": Field("item")} | {name: kinds[name] for name in fields}, {"item": N, "session": 9})
    return Builder({}, schema, {}, Kernels(userec_kernels()))


def tree(*fields: str, **values: Any) -> ContextTree:
    return ContextTree(ContextTreeConfig(**{"min_count": 1} | values), build(*fields)).eval()


def history(rows: Rows, pads: int = 0, **more: Rows) -> History:
    length = max([len(row) for row in rows] + [0]) + pads

    def block(of: Rows) -> torch.Tensor:
        return torch.tensor([row + [0] * (length - len(row)) for row in of], dtype=torch.int64).reshape(len(of), length)

    item = block(rows)
    events = {"item": item} | {name: block(of) for name, of in more.items()}
    return History(torch.arange(len(rows)) + 2, events, item > 0, tasks=("next",))


def fitted(rows: Rows, *, more: dict[str, Rows] | None = None, **values: Any) -> ContextTree:
    encoder = tree(*(more or {}), **values)
    encoder.partial_fit(Batch(history(rows, **more or {})))
    return encoder


def given_after(encoder: ContextTree | Markov, seen: History, ids: torch.Tensor | None = None) -> torch.Tensor:
    return encoder.score(encoder.encode(seen), Query(seen.last[:, None], ids))[:, 0, :, 0].exp()


def by_hand(
    rows: Rows,
    past: list[int],
    x: int,
    depth: int,
    strength: float,
    left_out: bool = False,
    a: float = 1 / (N - 2),
    root: dict[int, float] | None = None,
) -> float:
    """q_depth(x | past) with dictionaries and event-by-event updates of each weight; `left_out`: without one event (past, x).

    `root`: what the mixture ends in where it is not P_0, over which the weights are judged nonetheless."""
    events = [(row[max(t - depth, 0) : t], row[t]) for row in rows for t in range(len(row))]
    less = int(left_out)
    n0 = [item for _, item in events]
    q = (n0.count(x) - less + a) / (len(n0) - less + a * (N - 2))
    if root is not None:
        q = root[x]
    for k in range(1, min(depth, len(past)) + 1):
        followed = Counter(item for before, item in events if len(before) >= k and before[-k:] == past[-k:])
        if not followed:
            break

        def expert(item: int, shorter: float, out: int, followed: Counter[int] = followed) -> float:
            total = followed.total() - out
            added = strength * (len(followed) - (out and followed[item] == 1))
            return (followed[item] - out + added * shorter) / (total + added) if total else shorter

        weight, skipped = 0.5**k, less
        for item, count in followed.items():
            for _ in range(count):
                if item == x and skipped:
                    skipped = 0
                    continue
                shorter = by_hand(rows, past[-k:], item, k - 1, strength, True, a)
                p = expert(item, shorter, 1)
                weight *= p / (weight * p + (1 - weight) * shorter)
        q = weight * expert(x, q, less) + (1 - weight) * q
    return q


ROWS = [[2, 3, 4, 2, 3, 5], [2, 3, 4, 6], [7, 3, 5], [8], [4, 2, 3, 4]]
PASTS = [[], [2], [2, 3], [7, 3], [6, 8], [8, 3], [4, 2, 3], [5, 4, 2, 3], [6, 2, 3]]
items = st.integers(2, N - 1)
sequences = st.lists(st.lists(items, min_size=1, max_size=8), min_size=1, max_size=6)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_recursion_updated_event_by_event(depth: int) -> None:
    p = given_after(fitted(ROWS, depth=depth, backoff=1.5), history(PASTS))
    for row, past in zip(p, PASTS, strict=True):
        for x in range(2, N):
            assert float(row[x]) == pytest.approx(by_hand(ROWS, past, x, depth, 1.5), rel=1e-4)


def test_smoothing_is_what_each_item_gets() -> None:
    p = given_after(fitted(ROWS, depth=2, backoff=1.5, smoothing=0.25), history(PASTS))
    for row, past in zip(p, PASTS, strict=True):
        for x in range(2, N):
            assert float(row[x]) == pytest.approx(by_hand(ROWS, past, x, 2, 1.5, a=0.25), rel=1e-4)


@dataclass(frozen=True)
class ByHand:
    """The newest 5 of 9 events, (item, whether its user had not met it before): the experts' weights, updated one by one."""

    popular: float  # weight of popularity of late
    fresh: float  # weight of freshness
    root: dict[int, float]  # P_0 and popularity of late


NINE: Rows = [[5, 5, 6], [3, 2, 3, 2], [4, 2]]
TIMES: Rows = [[1, 2, 3], [4, 5, 6, 8], [7, 9]]
LATE = [(2, True), (3, False), (4, True), (2, False), (2, True)]


def nine_by_hand(a: float, popularity: bool, freshness: bool) -> ByHand:
    n0, whole, late = [item for row in NINE for item in row], N - 2, [item for item, _ in LATE]
    ratios, roots = [], []
    for i, (item, _) in enumerate(LATE):
        others = late[:i] + late[i + 1 :]
        p, q = (others.count(item) + a) / (4 + a * whole), (n0.count(item) - 1 + a) / (8 + a * whole)
        ratios.append(p / q)
        roots.append((p, q))

    def updated(weight: float, factors: list[float]) -> float:
        for factor in factors:
            weight = weight * factor / (weight * factor + 1 - weight)
        return weight

    popular, fresh = updated(0.5, ratios) if popularity else 0.0, 0.25
    for i, (item, new) in enumerate(LATE):
        own = updated(0.5, ratios[:i] + ratios[i + 1 :]) if popularity else 0.0
        q = own * roots[i][0] + (1 - own) * roots[i][1]
        others = set(late[:i] + late[i + 1 :])  # the recent set without the event
        fresh = updated(fresh, [((new and item in others) + a) / (len(others) + a * whole) / q])
    root = {
        x: popular * (late.count(x) + a) / (5 + a * whole) + (1 - popular) * (n0.count(x) + a) / (9 + a * whole)
        for x in range(2, N)
    }
    return ByHand(popular, fresh if freshness else 0.0, root)


@pytest.mark.parametrize(("popularity", "freshness"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_experts_of_five_events_and_the_mixture_that_ends_in_them(popularity: bool, freshness: bool, depth: int) -> None:
    a = 0.5
    told = {"popularity": popularity, "freshness": freshness, "smoothing": a, "backoff": 1.5, "depth": depth, "recent": 5}
    encoder, hand = fitted(NINE, more={"time": TIMES}, **told), nine_by_hand(a, popularity, freshness)
    root, _ = encoder._made()
    assert root.freshness == pytest.approx(hand.fresh, rel=1e-5)
    assert root.root[2:].tolist() == pytest.approx(list(hand.root.values()), rel=1e-5)
    assert root.recent.nonzero().flatten().tolist() == [2, 3, 4]
    pasts = [[], [2], [3, 2], [2, 3, 4], [5, 5], [6, 4, 2]]
    p = given_after(encoder, history(pasts, time=pasts))
    for row, past in zip(p, pasts, strict=True):
        unmet = {2, 3, 4} - set(past)
        mixed = {
            x: hand.fresh * ((x in unmet) + a) / (len(unmet) + a * (N - 2)) + (1 - hand.fresh) * q for x, q in hand.root.items()
        }
        for x in range(2, N):
            assert float(row[x]) == pytest.approx(by_hand(NINE, past, x, depth, 1.5, a=a, root=mixed), rel=1e-4)


def test_freshness_without_belief_costs_nothing() -> None:
    """Everybody comes back to the same items: the expert is left out, and the last events of a history are enough."""
    rows = [[2, 3] * 20] * 3
    times = {"time": [[100 * b + t for t in range(40)] for b in range(3)]}
    encoder, off = (fitted(rows, more=times, recent=50, depth=2, freshness=on) for on in (True, False))
    assert encoder.window is None
    encoder.end_task(("next",), "train")
    assert encoder.window == 2
    assert torch.equal(given_after(encoder, history(PASTS)), given_after(off, history(PASTS)))
    newer = [[200 + b, 300 + b] for b in range(60)]  # later counts may bring it back
    encoder.partial_fit(Batch(history([[4, 5], [5, 4], [6, 7], [7, 6]] * 15, time=newer)))
    encoder.end_task(("next",), "train")
    assert encoder.window is None


@settings(derandomize=True, deadline=None, max_examples=20)
@given(sequences, sequences, st.integers(1, 4), st.sampled_from([None, 0.5, 3.0]), st.booleans())
def test_every_distribution_sums_to_one_and_candidates_equal_the_catalogue(
    rows: Rows, pasts: Rows, depth: int, backoff: float | None, timed: bool
) -> None:
    times = {"time": [[10 * b + t for t in range(len(row))] for b, row in enumerate(rows)]} if timed else {}
    encoder, seen = fitted(rows, more=times, depth=depth, backoff=backoff, recent=6), history(pasts)
    whole = given_after(encoder, seen)
    assert torch.allclose(whole[:, 2:].sum(1), torch.ones(len(pasts)), atol=1e-5)
    assert (whole[:, 2:] > 0).all()
    assert (whole[:, :2] < 1e-30).all()
    ids = torch.randint(N, (len(pasts), 1, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(given_after(encoder, seen, ids), whole.gather(1, ids[:, 0]))


@settings(derandomize=True, deadline=None, max_examples=15)
@given(sequences, st.randoms(use_true_random=False), st.integers(1, 3), st.integers(1, 4))
def test_counts_and_weights_do_not_depend_on_batches_or_their_order(rows: Rows, random: Any, size: int, recent: int) -> None:
    times = [[random.randrange(5) + 3 * t for t in range(len(row))] for row in rows]
    once = fitted(rows, more={"time": times}, recent=recent)
    order, encoder = random.sample(range(len(rows)), len(rows)), tree("time", recent=recent)
    for start in range(0, len(rows), size):
        part = order[start : start + size]
        encoder.partial_fit(Batch(history([rows[b] for b in part], pads=2, time=[times[b] for b in part])))
        encoder.state_dict()  # a checkpoint in between changes nothing
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, once.state_dict()[name])
    assert torch.equal(given_after(encoder, history(PASTS)), given_after(once, history(PASTS)))


def test_asking_teaches_it_nothing() -> None:
    encoder, seen = fitted(ROWS), history(PASTS)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    first = given_after(encoder, seen)
    for _ in range(3):
        given_after(encoder, history([[2, 8, 2, 8, 2, 8]]))
    assert torch.equal(given_after(encoder, seen), first)
    assert all(torch.equal(x, before[name]) for name, x in encoder.state_dict().items())


def test_contexts_do_not_cross_users() -> None:
    encoder = fitted([[2, 3], [4, 5]] * 3)
    assert torch.allclose(given_after(encoder, history([[3]])), given_after(encoder, history([[]])))  # nothing ever followed 3
    assert given_after(encoder, history([[4]]))[0, 5] > given_after(encoder, history([[]]))[0, 5]


def test_contexts_do_not_cross_sessions() -> None:
    rows, sessions = [[2, 3, 4, 5]] * 4, [[2, 2, 3, 3]] * 4
    apart, whole = fitted(rows, more={"session": sessions}), fitted(rows)
    assert apart.reads == {"item", "session"}
    nothing = given_after(apart, history([[]], session=[[]]))
    assert torch.allclose(given_after(apart, history([[3]], session=[[2]])), nothing)  # only another session followed 3
    assert given_after(whole, history([[3]]))[0, 4] > nothing[0, 4]
    asked = given_after(apart, history([[2, 3, 4], [4]], session=[[2, 2, 3], [3]]))
    assert torch.equal(asked[0], asked[1])  # the question goes on with the session of 4
    assert asked[0, 5] > nothing[0, 5]


def test_an_event_of_no_session_is_its_own() -> None:
    apart = fitted([[2, 3, 4, 5]] * 4, more={"session": [[1, 1, 3, 3]] * 4})
    nothing = given_after(apart, history([[]], session=[[]]))
    assert torch.allclose(given_after(apart, history([[2]], session=[[1]])), nothing)  # 3 was of no session
    asked = given_after(apart, history([[4, 5, 4], [4]], session=[[1, 1, 1], [1]]))
    assert torch.equal(asked[0], asked[1])
    assert asked[0, 5] > nothing[0, 5]


def test_deep_contexts_do_not_become_uniform() -> None:
    """A context of a large catalogue, seen a few times and always followed by the same item, is believed."""
    schema = Schema({"item": Field("item")}, {"item": 5002})
    encoder = ContextTree(ContextTreeConfig(), Builder({}, schema, {}, Kernels(userec_kernels()))).eval()
    rng = np.random.default_rng(0)
    noise = rng.integers(10, 5002, (300, 6))
    noise[:8, 1:5] = [2, 3, 4, 5]
    encoder.partial_fit(Batch(history(noise.tolist())))
    assert given_after(encoder, history([[2, 3, 4]]))[0, 5] > 0.3


def test_a_context_that_misleads_loses_its_weight() -> None:
    """Item 2 is followed by whatever is popular: its context is believed less than 3's, which decides what follows."""
    rng = np.random.default_rng(1)
    rows = [[2, int(rng.integers(4, 9)), 3, 8] for _ in range(200)]
    encoder = fitted(rows, depth=1, backoff=1.0)
    _, (order,) = encoder._made()
    weight = {
        int(c): float(w * (t + k)) for c, w, t, k in zip(order.contexts, order.worth, order.totals, order.kinds, strict=True)
    }
    assert weight[3] > 0.99
    assert weights.posterior(0.5, np.array([-1e9, 0, 1e9])) == pytest.approx([1e-6, 0.5, 1 - 1e-6])
    assert given_after(encoder, history([[3]]))[0, 8] > 0.95


def test_popularity_of_late_is_believed_where_taste_moves() -> None:
    rows = [[2]] * 60 + [[8]] * 20 + [[7]] * 20
    times = [[t] for t in range(100)]
    late = given_after(fitted(rows, more={"time": times}, recent=40, freshness=False), history([[]]))
    overall = given_after(fitted(rows, more={"time": times}, recent=40, freshness=False, popularity=False), history([[]]))
    assert overall[0].argmax() == 2
    assert late[0, 8] == pytest.approx(0.5, abs=0.02)
    assert late[0, 2] < 0.01


def test_freshness_gives_alike_to_recent_items_not_met() -> None:
    """Newest events are each user's first meeting with one of three items; nobody comes back."""
    rows = [[2, 3]] * 50 + [[6, 7, 8], [7, 8, 6], [8, 6, 7]] * 6
    times = [[b, b + 1] for b in range(50)] + [[100 + b, 130 + b, 160 + b] for b in range(18)]
    encoder = fitted(rows, more={"time": times}, recent=54, popularity=False, depth=1, min_count=1000, smoothing=0.0015)
    assert encoder.window is None
    p = given_after(encoder, history([[], [6], [6, 8], [6, 7, 8]]))
    assert p[0, [6, 7, 8]].tolist() == pytest.approx([1 / 3] * 3, abs=0.02)
    assert p[1, 7] == pytest.approx(0.5, abs=0.02)
    assert p[1, 6] < 0.02
    assert p[2, 7] > 0.9
    assert torch.allclose(p.sum(1), torch.ones(4), atol=1e-5)
    off = fitted(rows, more={"time": times}, recent=54, popularity=False, freshness=False, depth=1, min_count=1000)
    assert off.reads == {"item"}
    assert off.window == 1
    assert given_after(off, history([[]]))[0].argmax() == 2


def test_every_position_is_that_of_the_history_cut_there() -> None:
    times = {"time": [[10 * b + t for t in range(len(row))] for b, row in enumerate(ROWS)]}
    encoder, past = fitted(ROWS, more=times, recent=8), [4, 2, 3, 4, 6]
    encoded, at = encoder.encode(history([past], pads=3)), torch.arange(-1, 5)[None]
    every = encoder.score(encoded, Query(at))[0, :, :, 0].exp()
    assert encoder._made()[0].freshness > 0
    own = torch.tensor([[2, 4, 6], [5, 4, 2], [2, 3, 4], [8, 3, 6], [6, 7, 4], [3, 6, 5]])
    assert torch.equal(encoder.score(encoded, Query(at, own[None]))[0, :, :, 0].exp(), every.gather(1, own))
    for t in range(-1, 5):
        assert torch.allclose(every[t + 1], given_after(encoder, history([past[: t + 1]]))[0])


def test_the_newest_are_the_newest_and_new_is_a_first_meeting() -> None:
    kept = Newest(3)
    item = torch.tensor([[5, 5, 6], [5, 7, 0]])
    kept.add(torch.tensor([[1, 4, 9], [7, 7, 0]]), item, item > 0)
    assert kept.rows.tolist() == [[7, 5, 1], [7, 7, 1], [9, 6, 1]]
    kept.add(torch.tensor([[8, 8]]), torch.tensor([[2, 2]]), torch.ones(1, 2, dtype=torch.bool))
    assert kept.rows.tolist() == [[8, 2, 0], [8, 2, 1], [9, 6, 1]]
    assert newest.first_met(item, item > 0).tolist() == [[True, False, True], [True, True, False]]


def test_never_fitted_is_uniform_and_the_state_survives() -> None:
    assert torch.allclose(given_after(tree(), history([[2, 3], []]))[:, 2:], torch.full((2, N - 2), 1 / (N - 2)))
    times = {"time": [[10 * b + t for t in range(len(row))] for b, row in enumerate(ROWS)]}
    encoder, restored = fitted(ROWS, more=times), tree("time")
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(given_after(restored, history(PASTS)), given_after(encoder, history(PASTS)))
    for one in (encoder, restored):
        one.partial_fit(Batch(history(ROWS, **times)))
    assert torch.equal(given_after(restored, history(PASTS)), given_after(encoder, history(PASTS)))


def test_it_foretells_better_than_the_chain_where_contexts_differ_in_worth() -> None:
    """Half of the items decide what follows, half say nothing; a chain believes both alike."""
    rng = np.random.default_rng(3)

    def walk(length: int) -> list[int]:
        row = [int(rng.integers(2, 9))]
        while len(row) < length:
            row.append({2: 5, 3: 6, 4: 7}.get(row[-1], int(rng.integers(2, 9))))
        return row

    train, test = [walk(12) for _ in range(60)], [walk(12) for _ in range(200)]
    chain = Markov(MarkovConfig(order=3), build())
    chain.partial_fit(Batch(history(train)))
    answer = torch.tensor([row[-1] for row in test])
    seen = history([row[:-1] for row in test])
    own, other = (float(given_after(x, seen)[torch.arange(200), answer].log().mean()) for x in (fitted(train), chain))
    assert own > other + 0.02
    assert math.isfinite(own)


def test_bad_settings_and_labels_are_refused() -> None:
    for wrong in ({"depth": 0}, {"prior": 1.0}, {"smoothing": 0}, {"backoff": 0}, {"recent": 0}, {"order": 2}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            parse(ContextTreeConfig, wrong, "encoder")
    schema = Schema({"item": Field("item")}, {"item": N, "age": 4}, ((NEXT,), (Task("age", "label", "age"),)))
    encoder = ContextTree(ContextTreeConfig(), Builder({}, schema, {}, Kernels(userec_kernels())))
    assert encoder.refuses(("next",)) == []
    assert "context_tree" in encoder.refuses(("age",))[0]
