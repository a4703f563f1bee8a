"""The evaluator `ranking` over a small fake data set: every kind of encoder, every invariance, every trap."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from userec.batch import Batch, Encoded, History, Query, Targets
from userec.builtin import ranking
from userec.builtin.ranking import Ranking, round_down
from userec.capability import Can
from userec.config import parse
from userec.encoder.contract import Encoder, NoConfig
from userec.errors import DivergedError, UserError
from userec.evaluator import scorer
from userec.evaluator.contract import Metric
from userec.evaluator.metrics import information
from userec.evaluator.scorer import draw
from userec.schema import NEXT, Schema, Task

USERS, SIZE, LENGTH = 150, 42, 6


@dataclass
class Fake:
    """Queries of `USERS` users, two of some, cut into batches of `rows` in the order `order`."""

    rows: int = 32
    order: np.ndarray | None = None
    relabel: np.ndarray | None = None
    trained: tuple[str, ...] = ("next",)
    together: tuple[str, ...] = ()
    empty: bool = False
    size: int = SIZE
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(7)
        other = (Task("song", "item", "song"),)  # as many ids as items, and none of them means the same
        tasks = ((NEXT,), (Task("age", "label", "age"), Task("buy")), other)
        self.schema = Schema({}, {"item": self.size, "age": 5, "song": self.size}, tasks)
        self.users = np.concatenate([np.arange(USERS), np.arange(0, USERS, 3)])
        self.items = rng.integers(2, SIZE, (len(self.users), LENGTH))
        self.targets = rng.integers(2, SIZE, (len(self.users), 3))
        self.targets[:, 1:] *= rng.random((len(self.users), 2)) < 0.5
        self.targets[rng.random(len(self.users)) < 0.1, 0] = 1  # never seen in training
        self.targets[::5, 0] = self.items[::5, 0]  # a target that stands in the history
        if self.relabel is not None:
            self.items, self.targets = self.relabel[self.items], self.relabel[self.targets]
        self.repeats = 0.0
        self.popularity = torch.from_numpy(np.bincount(self.items.reshape(-1), minlength=self.size))
        self.asked: list[int | None] = []

    def batches(self, split: str, task: str, users: int | None = None) -> Iterator[Batch]:
        self.asked.append(users)
        order = np.arange(len(self.users)) if self.order is None else self.order
        kept = order if users is None else order[self.users[order] < users]
        for start in range(0, 0 if self.empty else len(kept), self.rows):
            some = kept[start : start + self.rows]
            items, ids = torch.from_numpy(self.items[some]), torch.from_numpy(self.targets[some])[:, None]
            at = torch.full((len(some), 1), LENGTH - 1)
            labels = torch.where(ids > 0, 1.0, torch.nan).unsqueeze(-1)
            owner = torch.from_numpy(self.users[some])
            history = History(owner + 2, {"item": items}, items > 0, tasks=self.together or (task,))
            yield Batch(history, Targets(Query(at, ids), labels=labels), users=owner)

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return torch.arange(len(batch.history.user)).repeat_interleave(LENGTH), batch.history.events["item"].reshape(-1)

    def questions(self, split: str, task: str) -> int:
        return len(self.users)


class Dot(Encoder):
    """Small whole numbers, so that every product is exact and ties abound."""

    name = "dot"
    offers = Can.SCORE_CATALOG | Can.DOT_SCORE | Can.ANY_POSITION | Can.CAUSAL
    asked = 0

    def __init__(self, relabel: np.ndarray | None = None, spread: int = 3, bias: bool = True) -> None:
        super().__init__(NoConfig(), None)  # type: ignore[arg-type]
        self.dim = 4
        rng = np.random.default_rng(1)
        weight, shift = rng.integers(0, spread, (SIZE, 4)), rng.integers(0, spread, SIZE)
        weight[0], shift[:2] = 0, 99  # reserved ids would come first if they were ranked
        if relabel is not None:
            weight[relabel], shift[relabel] = weight.copy(), shift.copy()
        self.weight = torch.nn.Parameter(torch.from_numpy(weight).float())
        self.bias = torch.nn.Parameter(torch.from_numpy(shift).float()) if bias else None

    def encode(self, history: History) -> Encoded:
        return Encoded(history, self.weight[history.events["item"]].cumsum(1))

    def candidates(self, tasks: tuple[str, ...], ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        self.asked += ids is None
        if ids is None:
            return self.weight, self.bias
        return self.weight[ids], None if self.bias is None else self.bias[ids]


class Rows(Dot):
    name = "rows"
    offers = Can.SCORE_CATALOG


class Walks(Dot):
    name = "walks"
    offers = Can.CAUSAL
    encoded = 0

    def encode(self, history: History) -> Encoded:
        self.encoded += 1
        return super().encode(history)

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        assert query.ids is not None, "it cannot score the whole catalogue at once"
        return super().score(encoded, query)


class Heads(Dot):
    """Scores of two tasks at once; ours is the second."""

    name = "heads"
    offers = Can.SCORE_CATALOG | Can.MANY_TASKS

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        return torch.cat([torch.zeros(len(query.at), 1, SIZE, 1), super().score(encoded, query)], -1)


def judge(encoder: Encoder, data: Fake | None = None, **settings: Any) -> dict[str, Metric]:
    found = Ranking(parse(Ranking.Config, settings, "evaluator.ranking"), None).evaluate(encoder, data or Fake(), "test")
    return {metric.metric: metric for metric in found}


def same(a: dict[str, Metric], b: dict[str, Metric], but: tuple[str, ...] = ()) -> None:
    assert a.keys() == b.keys()
    for name, metric in a.items():
        if name.split("@")[0] in but:
            continue
        other = b[name]
        assert (metric.definition, metric.n, metric.better) == (other.definition, other.n, other.better)
        for x, y in ((metric.value, other.value), (metric.low, other.low), (metric.high, other.high)):
            assert x == pytest.approx(y, abs=1e-12, nan_ok=True), name
        if metric.users is not None:
            assert np.array_equal(metric.users, other.users)
            assert metric.values == pytest.approx(other.values, abs=1e-12)


def test_by_hand() -> None:
    """HR@5 of every query by sorting; the mean over users."""
    encoder, data = Dot(spread=1000), Fake()
    hits: dict[int, list[float]] = {}
    for u, items, targets in zip(data.users, data.items, data.targets, strict=True):
        scores = (encoder.weight[items].sum(0) @ encoder.weight.T + encoder.bias).tolist()
        relevant = {int(t) for t in targets if t >= 2}
        pool = [i for i in range(2, SIZE) if i in relevant or i not in items]
        top = sorted(pool, key=lambda i: -scores[i])[:5]
        hits.setdefault(int(u), []).append(float(bool(relevant & set(top))))
    found = judge(encoder, data)["hr@5"]
    assert found.value == pytest.approx(np.mean([np.mean(h) for h in hits.values()]))
    assert found.n == USERS
    assert found.low < found.value < found.high
    assert found.values is not None
    assert found.values == pytest.approx([np.mean(hits[u]) for u in range(USERS)])
    assert (
        found.definition == "hr@5[hit=any,ties=expected,seen=dropped,unknown=missed,empty=skipped,catalogue=full(40),mean=users]"
    )


def test_names_and_kinds() -> None:
    found = judge(Dot(), ks=(3,))
    assert set(found) == {"hr@3", "recall@3", "precision@3", "ndcg@3", "map@3", "mrr", "coverage@10", "gini@10", "novelty@10"}
    assert found["gini@10"].better == "lower"
    assert np.isnan(found["coverage@10"].low)
    assert found["novelty@10"].low < found["novelty@10"].high
    assert "ties=lower-id" in found["coverage@10"].definition
    assert set(judge(Dot(), ks=(3,), beyond=())) == {"hr@3", "recall@3", "precision@3", "ndcg@3", "map@3", "mrr"}


@pytest.mark.parametrize("kind", [Dot, Rows, Walks, Heads])
@pytest.mark.parametrize("chunk", [None, 1, 7, 40])
def test_every_kind_of_scoring_and_every_chunk_agree(kind: type[Dot], chunk: int | None) -> None:
    same(judge(Dot()), judge(kind(), Fake(together=("buy", "next")), chunk=chunk))


def test_batch_size_and_order_do_not_matter() -> None:
    whole = judge(Dot())
    same(whole, judge(Dot(), Fake(rows=1)))
    same(whole, judge(Dot(), Fake(rows=1000, order=np.random.default_rng(3).permutation(200))))
    sampled = judge(Dot(), candidates=9)
    same(sampled, judge(Dot(), Fake(rows=11, order=np.random.default_rng(3).permutation(200)), candidates=9))


def test_names_of_items_do_not_matter() -> None:
    relabel = np.concatenate([[0, 1], 2 + np.random.default_rng(5).permutation(SIZE - 2)])
    same(judge(Dot()), judge(Dot(relabel), Fake(relabel=relabel)), but=("coverage", "gini", "novelty"))  # lower-id ties
    far = judge(Dot(spread=1000))
    same(far, judge(Dot(relabel, spread=1000), Fake(relabel=relabel)))  # no ties: all of them


def test_a_constant_scorer_is_random() -> None:
    encoder, data = Dot(spread=1), Fake()
    torch.nn.init.zeros_(encoder.weight)
    assert encoder.bias is not None
    torch.nn.init.zeros_(encoder.bias)
    data.targets = np.full((len(data.users), 1), 5)
    found = judge(encoder, data)
    free = np.array([SIZE - 2 - len(set(items.tolist()) - {5}) for items in data.items])
    per_user = [np.mean(10 / free[data.users == u]) for u in range(USERS)]
    assert found["hr@10"].value == pytest.approx(np.mean(per_user), abs=1e-12)
    for kind in (Rows, Walks):
        same(found, judge(kind(spread=1, bias=False), data), but=())


@pytest.mark.parametrize("kind", [Dot, Rows, Walks])
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("chunk", [None, 1, 7, 13, 39])
def test_items_alike_are_tied_to_the_last_bit(kind: type[Dot], rows: int, chunk: int | None) -> None:
    """Every item has a twin of the same weights: whatever product scores it, a twin ranked apart would move each metric."""
    encoder, data = wide(kind), Fake(rows=rows)
    data.targets = data.targets[:, :1]
    assert judge(encoder, data, filter_seen=False, chunk=chunk, ks=(1,))["hr@1"].value == pytest.approx(
        judge(encoder, data, filter_seen=False, chunk=chunk, ks=(2,))["hr@2"].value / 2, abs=1e-12
    )
    few = {"candidates": 39, "filter_seen": False, "beyond": ()}
    assert judge(encoder, data, chunk=chunk, ks=(1,), **few)["hr@1~uniform39"].value == pytest.approx(
        judge(encoder, data, chunk=chunk, ks=(2,), **few)["hr@2~uniform39"].value / 2, abs=1e-12
    )


def wide(kind: type[Dot]) -> Dot:
    """An encoder of random numbers of width 50, item i and i + 20 alike."""
    encoder = kind()
    rng = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(SIZE, 50, generator=rng), torch.randn(SIZE, generator=rng)
    weight[22:], bias[22:] = weight[2:22], bias[2:22]
    encoder.weight, encoder.bias, encoder.dim = torch.nn.Parameter(weight), torch.nn.Parameter(bias), 50
    return encoder


def test_an_encoder_that_scores_whole_rows_holds_no_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judge(Rows())
    held: list[int] = []

    def score(self: Rows, encoded: Encoded, query: Query) -> Tensor:
        found = Dot.score(self, encoded, query)
        held.append(found.numel())
        return found

    monkeypatch.setattr(Rows, "score", score, raising=False)
    monkeypatch.setattr(scorer, "BUDGET", 5 * SIZE)
    same(whole, judge(Rows()))
    assert held
    assert max(held) <= 5 * SIZE
    held.clear()
    judge(Rows(), candidates=3)
    assert max(held) <= 16 * 6 * 32, "sampled candidates need no row of the catalogue"


def test_candidates_are_computed_once_and_a_batch_encoded_once() -> None:
    encoder = Dot()
    judge(encoder)
    assert encoder.asked == 1
    walks = Walks()
    judge(walks, chunk=5)
    assert walks.encoded == 7 + 1  # 200 queries in batches of 32, and the one that was timed


@pytest.mark.parametrize("kept", [0, scorer.KEPT])
def test_a_walk_asks_for_no_score_twice_where_its_scores_are_kept(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of 32 rows: the targets' scores stand in the walk; where the walk cannot be kept they are asked for before it."""
    monkeypatch.setattr(scorer, "KEPT", kept)
    walks, told = Walks(), []
    score = walks.score
    walks.score = lambda encoded, query: told.append(query.ids.numel()) or score(encoded, query)  # type: ignore[method-assign]
    found = judge(walks, chunk=16)
    chunks = -(-(SIZE - 2) // 16)
    assert set(told) == {16}
    once = 7 * chunks + min(2, chunks)  # 7 batches, and the two chunks that were timed
    assert len(told) == once if kept else len(told) > once
    same(found, judge(Walks(), chunk=16))


def test_seen_items_may_stay() -> None:
    kept, dropped = judge(Dot(), filter_seen=False), judge(Dot())
    assert "seen=kept" in kept["mrr"].definition
    assert kept["mrr"].value < dropped["mrr"].value


def test_seen_items_stay_by_default_where_people_return() -> None:
    for repeats, word in ((0.009, "dropped"), (0.01, "kept")):
        data = Fake()
        data.repeats = repeats
        assert f"seen={word}" in judge(Dot(), data)["mrr"].definition
        assert "seen=dropped" in judge(Dot(), data, filter_seen=True)["mrr"].definition


def test_what_is_seen_says_nothing_about_another_space() -> None:
    data = Fake(trained=("song",), together=("song",))
    for settings in ({}, {"candidates": 12}, {"chunk": 7}):
        found = judge(Dot(), data, filter_seen=True, **settings)
        same(found, judge(Dot(), data, filter_seen=False, **settings))
        assert all("seen=kept" in metric.definition for metric in found.values())
    data.seen = lambda batch: (torch.arange(len(batch.history.user)), torch.full_like(batch.history.user, SIZE + 9))  # type: ignore[method-assign]
    judge(Dot(), data)  # an item's id may be none of the space
    judge(Dot(), data, candidates=12)


@pytest.mark.parametrize("kind", [Dot, Rows, Walks])
@pytest.mark.parametrize("chunk", [None, 7])
def test_a_repeated_target_is_ranked_though_seen(kind: type[Dot], chunk: int | None) -> None:
    data, encoder = Fake(), kind(spread=1000)
    data.targets = data.items[:, :1].copy()
    assert encoder.bias is not None
    reciprocal: dict[int, list[float]] = {}
    for u, items, (target,) in zip(data.users, data.items, data.targets, strict=True):
        scores = encoder.weight[items].sum(0) @ encoder.weight.T + encoder.bias
        rivals = [i for i in range(2, SIZE) if i not in items]
        reciprocal.setdefault(int(u), []).append(1 / (1 + int((scores[rivals] > scores[target]).sum())))
    expected = np.mean([np.mean(values) for values in reciprocal.values()])
    assert 0.1 < expected < 0.9
    assert judge(encoder, data, chunk=chunk)["mrr"].value == pytest.approx(expected, abs=1e-9)


def test_a_repeated_target_may_be_recommended() -> None:
    data, encoder = Fake(), Dot()
    data.items[:], data.targets[:], data.popularity[9] = 9, [9, 0, 0], 1000  # a share that no other item has
    assert encoder.bias is not None
    with torch.no_grad():
        encoder.bias[9] = 1000.0
    bits = information(data.popularity[2:].numpy())
    assert judge(encoder, data, beyond=(1,))["novelty@1"].value == pytest.approx(bits[7], abs=1e-12)


def test_an_unknown_target_is_missed_and_counted() -> None:
    data = Fake()
    data.targets = np.ones((len(data.users), 1), np.int64)
    found = judge(Dot(), data)
    assert (found["mrr"].value, found["recall@20"].value, found["mrr"].n) == (0.0, 0.0, USERS)
    same(found, judge(Walks(), data, chunk=3))


def test_scores_that_are_not_numbers_are_an_error() -> None:
    for kind in (Dot, Rows, Walks):
        for settings in ({}, {"candidates": 20}, {"chunk": 3}):
            encoder = kind()
            with torch.no_grad():
                encoder.weight[9] = torch.nan
            with pytest.raises(DivergedError, match=rf"encoder '{kind.name}'.*task 'next'.*lower train.lr"):
                judge(encoder, **settings)


def test_infinite_scores_are_ordinary() -> None:
    data = Fake()
    data.targets = np.full((len(data.users), 1), 9)
    data.items[:] = 3
    for sign, expected in ((1.0, 1.0), (-1.0, 1 / 39)):
        encoder = Dot()
        assert encoder.bias is not None
        with torch.no_grad():
            encoder.bias[9] = sign * torch.inf
        assert judge(encoder, data)["mrr"].value == pytest.approx(expected)
        assert judge(encoder, data, chunk=4)["mrr"].value == pytest.approx(expected)


def test_sampled_candidates_are_marked_and_the_same_for_every_model() -> None:
    found = judge(Dot(), candidates=12)
    assert set(judge(Dot(), ks=(10,), candidates=12)) == {
        f"{name}~uniform12" for name in ("hr@10", "recall@10", "precision@10", "ndcg@10", "map@10", "mrr")
    }
    assert "catalogue=uniform(12 of 40,seed=0)" in found["mrr~uniform12"].definition
    for kind in (Rows, Walks):
        same(found, judge(kind(), candidates=12))
    assert judge(Dot(), candidates=12, seed=1)["mrr~uniform12"].value != found["mrr~uniform12"].value
    everything = judge(Dot(), candidates=1000)  # more than there are: the whole catalogue
    assert everything["mrr~uniform1000"].value == pytest.approx(judge(Dot())["mrr"].value)


def test_draws_are_distinct_uniform_and_never_barred() -> None:
    users = np.arange(3000)
    barred = np.repeat(users, 2), np.tile([4, 7], 3000)
    drawn = draw(5, 22, users, barred, seed=3)
    assert drawn.shape == (3000, 5)
    assert all(len(set(row)) == 5 for row in drawn.tolist())
    counts = np.bincount(drawn.reshape(-1), minlength=22)
    assert counts[[0, 1, 4, 7]].tolist() == [0, 0, 0, 0]
    free = np.delete(counts, [0, 1, 4, 7])
    assert ((free - 15000 / 18) ** 2 / (15000 / 18)).sum() < 40  # chi-squared, 17 degrees: p = 0.001
    assert np.array_equal(draw(5, 22, users[5:9], (np.repeat(np.arange(4), 2), np.tile([4, 7], 4)), 3), drawn[5:9])


def test_draws_of_nearly_all_hold_no_more_than_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    original = scorer._hash
    monkeypatch.setattr(scorer, "_hash", lambda seed, users, draws: (widths.append(draws.size), original(seed, users, draws))[1])
    users = np.arange(40)
    for count, seen in ((190, 5), (198, 0), (20, 180), (20, 195)):
        barred = np.repeat(users, seen), np.concatenate([2 + np.random.default_rng(u).permutation(198)[:seen] for u in users])
        drawn = draw(count, 200, users, barred, seed=3)
        wanted = min(count, 198 - seen)
        assert ((drawn >= 2).sum(1) == wanted).all()
        assert all(len(set(row[:wanted])) == wanted for row in drawn.tolist())
        assert not np.isin(users[:, None] * 200 + drawn, barred[0] * 200 + barred[1]).any()
        alone = barred[1][seen * 7 : seen * 8]
        assert np.array_equal(draw(count, 200, users[7:8], (np.zeros(seen, np.int64), alone), 3), drawn[7:8])
    assert max(widths) <= 2 * 200
    counts = np.bincount(draw(150, 200, np.arange(2000), (np.zeros(0, np.int64),) * 2, 5).reshape(-1), minlength=200)[2:]
    expected = 2000 * 150 / 198
    assert ((counts - expected) ** 2 / expected).sum() < 260  # chi-squared, 197 degrees: p = 0.002; less as none is drawn twice


def test_a_slow_encoder_ranks_a_sample_and_says_so() -> None:
    data = Fake()
    found = judge(Walks(), data, minutes=1e-9)
    assert data.asked == [None, 100]
    assert found["mrr"].n == 100
    assert found["mrr"].definition.endswith("mean=users,users=sample(100 of 150)]")
    patient = Fake()
    assert judge(Walks(), patient)["mrr"].n == USERS
    assert judge(Dot(), minutes=1e-9)["mrr"].n == USERS


def test_the_sample_follows_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "FEWEST", 10)
    times = iter([0.0, 1.0, 3.0])  # one second to encode, two for 10 of 40 items: 9 s a batch of 32 of 200 queries
    monkeypatch.setattr("userec.builtin.ranking.time.perf_counter", lambda: next(times))
    assert judge(Walks(), minutes=0.4, chunk=5)["mrr"].n == 50  # 24 s of 56 s: 64 of 150 users, rounded down


def test_round_down() -> None:
    assert [round_down(n) for n in (0, 1, 3, 19, 20, 64, 999, 1000, 6040)] == [0, 1, 2, 10, 20, 50, 500, 1000, 5000]


def test_only_trained_item_tasks() -> None:
    evaluator = Ranking(Ranking.Config(), None)
    assert evaluator.refuses(Dot(), Fake()) == []  # type: ignore[arg-type]
    assert "no item task" in evaluator.refuses(Dot(), Fake(trained=("age",)))[0]  # type: ignore[arg-type]
    both = list(evaluator.evaluate(Dot(), Fake(trained=("next", "age", "buy")), "valid"))  # type: ignore[arg-type]
    assert {metric.task for metric in both} == {"next", "buy"}


def test_no_queries_no_metrics() -> None:
    for settings in ({}, {"candidates": 3}):
        found = judge(Walks(), Fake(empty=True), **settings)
        assert not any(np.isfinite(metric.value) for metric in found.values() if metric.metric != "coverage@10")


def test_bad_settings_are_told() -> None:
    with pytest.raises(UserError, match="minutes"):
        judge(Dot(), minutes=0)
    with pytest.raises(UserError, match=r"evaluator\.ranking\.ks"):
        judge(Dot(), ks=(0,))
