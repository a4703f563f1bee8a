"""The evaluator `reid`: by hand, against brute force and scikit-learn, every invariance, and no leak between the pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from userec.batch import Batch, Encoded, History
from userec.builtin.reid import ReID, ReIDConfig
from userec.capability import Can
from userec.dataset.data import SplitData
from userec.dataset.events import Coded, Events, Vocabulary, code
from userec.dataset.loader import BatchConfig
from userec.dataset.split import SplitConfig, divide
from userec.encoder.contract import Encoder, NoConfig
from userec.engine.compose import misfits
from userec.evaluator.contract import Metric
from userec.evaluator.slices import Slice, restrict
from userec.schema import NEXT, Field, Schema
from userec.testing import Check, TinyDataset, contract, tiny_schema
from userec.testing.toys import UserId


@pytest.mark.parametrize("check", [*contract(ReID), *contract(ReID, gallery=20, events=5)])
def test_contract(check: Check) -> None:
    check()


class Toy(Encoder):
    """A user is whatever `vectors` says of his event there: an item's vector, summed over the piece."""

    name = "toy"
    offers = Can.EMBED_USER
    Config = NoConfig

    def __init__(self, vectors: torch.Tensor) -> None:
        super().__init__(NoConfig(), None)  # type: ignore[arg-type]
        self.vectors, self.dim = vectors, vectors.shape[1]

    def encode(self, history: History) -> Encoded:
        """tokens = the vectors; user = their sum."""
        tokens = self.vectors[history.events["item"]] * history.mask[..., None]
        return Encoded(history, tokens, tokens.sum(1))


class Bag(Toy):
    """A bag of items."""

    def __init__(self, size: int) -> None:
        super().__init__(torch.eye(size))


@dataclass
class Fake:
    """Pieces of one event a user: item `own[back][user]`; batches of `rows` in the order `order`."""

    own: np.ndarray  # [1 + S, U]
    rows: int = 64
    order: np.ndarray | None = None
    trained: tuple[str, ...] = ()
    schema: Schema = field(default_factory=tiny_schema)

    def pieces(self, split: str, back: int, *, events: int, shots: int = 1, gap: int = 0) -> Iterator[Batch]:
        """See `Data`."""
        users = np.arange(self.own.shape[1]) if self.order is None else np.roll(self.order, back)
        for start in range(0, len(users), self.rows):
            part = users[start : start + self.rows]
            items = torch.from_numpy(self.own[back, part])[:, None]
            history = History(torch.from_numpy(part + 2), {"item": items}, torch.ones_like(items, dtype=torch.bool))
            yield Batch(history, None, torch.from_numpy(part), torch.from_numpy(part * 10 - back))


def run(encoder: Encoder, data: Any, split: str = "test", **told: Any) -> dict[str, Metric]:
    found = list(ReID(ReIDConfig(**told), None).evaluate(encoder, data, split))  # type: ignore[arg-type]
    assert len({m.metric for m in found}) == len(found)
    return {m.metric: m for m in found}


def random(users: int = 40, shots: int = 1, dim: int = 3, seed: int = 0, kinds: int = 25) -> tuple[Toy, Fake]:
    """Few items, so that embeddings are often equal; own pieces are often of the same item."""
    rng = np.random.default_rng(seed)
    own = rng.integers(0, kinds, (1 + shots, users))
    same = rng.random(own.shape) < 0.5
    own = np.where(same, own[0], own)
    return Toy(torch.from_numpy(rng.integers(-2, 3, (kinds, dim))).float()), Fake(own)


def cosines(encoder: Toy, data: Fake) -> np.ndarray:
    """[U, S, U], rounded to a millionth."""
    vectors = encoder.vectors.double().numpy()
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return np.rint(np.einsum("ud,svd->usv", unit[data.own[0]], unit[data.own[1:]]) * 1e6)


def test_a_constant_embedding_finds_by_chance_alone() -> None:
    users = 37
    found = run(Toy(torch.ones(1, 4)), Fake(np.zeros((2, users), np.int64)))
    assert found["mrr"].value == pytest.approx((1 / np.arange(1, users + 1)).sum() / users, abs=1e-12)
    assert found["map"].value == pytest.approx(found["mrr"].value, abs=1e-12)
    assert [found[f"top@{k}"].value for k in (1, 5, 10)] == pytest.approx([1 / users, 5 / users, 10 / users])
    assert (found["roc_auc"].value, found["eer"].value) == (0.5, 0.5)
    assert (found["roc_auc"].low, found["eer"].high) == (0.5, 0.5)


def test_users_apart_are_all_found() -> None:
    found = run(Toy(torch.eye(30)), Fake(np.tile(np.arange(30), (2, 1))))
    assert {name: m.value for name, m in found.items()} == {
        "top@1": 1, "top@5": 1, "top@10": 1, "mrr": 1, "map": 1, "roc_auc": 1, "eer": 0,
    }  # fmt: skip
    assert found["eer"].better == "lower"
    assert {m.better for name, m in found.items() if name != "eer"} == {"higher"}
    assert {m.task for m in found.values()} == {"user"}


def test_users_who_look_like_all_others_and_not_like_themselves() -> None:
    found = run(Toy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), Fake(np.array([[0, 1], [1, 0]])))
    assert (found["mrr"].value, found["top@1"].value, found["roc_auc"].value, found["eer"].value) == (0.5, 0, 0, 1)


def test_zero_embeddings_have_cosine_zero_to_everything() -> None:
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    found = run(Toy(vectors), Fake(np.array([[0, 1, 1], [1, 1, 2]])))
    # cosines 0 0 0 | 1 1 -1 | 1 1 -1; the own ones on the diagonal
    assert found["mrr"].values == pytest.approx([(1 + 1 / 2 + 1 / 3) / 3, 3 / 4, 1 / 3])
    assert found["roc_auc"].values == pytest.approx([2 / 6, 4.5 / 6, 0.5 / 6])  # the others: 0 0 1 -1 1 1


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_by_brute_force(seed: int, shots: int) -> None:
    encoder, data = random(shots=shots, seed=seed)
    found = run(encoder, data, shots=shots)
    scores = cosines(encoder, data)
    rng = np.random.default_rng(0)
    users = np.arange(scores.shape[2])
    mrr, top = np.zeros(len(users)), np.zeros(len(users))
    draws = 2000
    for _ in range(draws):  # ties broken at random
        jitter = rng.random(scores.shape) * 0.5
        noisy = scores + jitter
        best = noisy[users, :, users].max(1)
        rank = 1 + (noisy > best[:, None, None]).sum((1, 2))
        mrr += 1 / rank / draws
        top += (rank <= 5) / draws
    assert found["mrr"].values == pytest.approx(mrr, abs=0.05)
    assert found["mrr"].value == pytest.approx(mrr.mean(), abs=0.005)
    assert found["top@5"].value == pytest.approx(top.mean(), abs=0.005)


@pytest.mark.parametrize("shots", [1, 3])
def test_average_precision_and_area_against_scikit_learn(shots: int) -> None:
    rng = np.random.default_rng(5)
    encoder = Toy(torch.from_numpy(rng.normal(size=(200, 4))).float())  # no ties
    data = Fake(rng.permutation(200)[: 40 * (1 + shots)].reshape(1 + shots, 40))
    found = run(encoder, data, shots=shots)
    scores = cosines(encoder, data)
    own = np.broadcast_to(np.eye(40, dtype=bool)[:, None], scores.shape)
    wanted = [average_precision_score(own[u].ravel(), scores[u].ravel()) for u in range(40)]
    assert found["map"].values == pytest.approx(wanted)
    assert found["roc_auc"].value == pytest.approx(roc_auc_score(own.ravel(), scores.ravel()))
    if shots == 1:
        assert found["map"].values == pytest.approx(found["mrr"].values)


@pytest.mark.parametrize("shots", [1, 2])
def test_area_with_ties_against_scikit_learn(shots: int) -> None:
    encoder, data = random(shots=shots, seed=9)
    scores = cosines(encoder, data)
    own = np.broadcast_to(np.eye(40, dtype=bool)[:, None], scores.shape)
    area = run(encoder, data, shots=shots)["roc_auc"]
    assert area.value == pytest.approx(roc_auc_score(own.ravel(), scores.ravel()))
    assert area.low < area.value < area.high


def same(one: dict[str, Metric], two: dict[str, Metric]) -> bool:
    return [(m.metric, m.definition, m.value, m.low, m.high, m.n) for m in one.values()] == [
        (m.metric, m.definition, m.value, m.low, m.high, m.n) for m in two.values()
    ]


@pytest.mark.parametrize("gallery", [1000, 17])
def test_order_of_users_and_batch_size_change_nothing(gallery: int) -> None:
    encoder, data = random(shots=2)
    wanted = run(encoder, data, shots=2, gallery=gallery)
    order = np.random.default_rng(3).permutation(40)
    assert same(run(encoder, Fake(data.own, rows=7, order=order), shots=2, gallery=gallery), wanted)


def test_relabelled_items_change_nothing() -> None:
    encoder, data = random()
    map_to = np.random.default_rng(3).permutation(25)
    moved = Toy(encoder.vectors[torch.from_numpy(np.argsort(map_to))][:, [2, 0, 1]])
    assert same(run(moved, Fake(map_to[data.own])), run(encoder, data))


def test_a_wide_sparse_embedding_is_judged_like_a_dense_one() -> None:
    rng = np.random.default_rng(0)
    dense = (rng.random((25, 5000)) < 0.02).astype(np.float32)
    data = random()[1]
    turned = np.linalg.qr(dense.T.astype(np.float64))[1].T.astype(np.float32)  # the same inner products in 25 dimensions
    wide, narrow = run(Toy(torch.from_numpy(dense)), data), run(Toy(torch.from_numpy(turned)), data)
    assert {name: m.value for name, m in wide.items()} == pytest.approx({name: m.value for name, m in narrow.items()}, abs=5e-3)


def test_the_gallery_is_a_fixed_sample() -> None:
    encoder, data = random()
    one, again, other = run(encoder, data, gallery=10), run(encoder, data, gallery=10), run(encoder, data, gallery=10, seed=1)
    assert same(one, again)
    assert one["mrr"].users is not None
    assert other["mrr"].users is not None
    assert one["mrr"].users.tolist() != other["mrr"].users.tolist()
    assert one["mrr"].n == 10
    assert "gallery=sample(10 of 40 users,seed=0)" in one["mrr"].definition


def test_definitions_say_all_that_a_number_depends_on() -> None:
    encoder, data = random()
    told = {name: m.definition for name, m in run(encoder, data, gap=60, events=20).items()}
    assert told["mrr"] == (
        "mrr[rank=first,score=cosine(1e-06,zero=0),query=newest,gallery=40 users,shots=1,events=5..20,"
        "older=gap>60s,short=skipped,ties=expected,relevant=1]"
    )
    assert told["eer"].startswith("eer[pairs=all,roc=linear,interval=own-pairs,score=cosine")
    assert told["roc_auc"].startswith("roc_auc[pairs=all,mean=users,")
    assert "relevant=1" in told["map"]
    data.schema = Schema({"session": Field("session")}, {"session": 9})
    assert "older=earlier+other-session," in run(encoder, data)["mrr"].definition


def test_slices_have_numbers_of_their_own() -> None:
    encoder, data = random()
    found = run(encoder, data)
    half = Slice("half", "half", np.arange(40) < 20)
    parts = {name: restrict(m, half, 0) for name, m in found.items()}
    scores = cosines(encoder, data)[:, 0]
    own, others = np.diagonal(scores)[:20], scores[~np.eye(40, dtype=bool)]
    area = roc_auc_score(np.repeat([1, 0], [20, len(others)]), np.concatenate([own, others]))
    assert parts["roc_auc"] is not None
    assert parts["roc_auc"].value == pytest.approx(area)
    assert parts["eer"] is not None
    assert parts["eer"].low <= parts["eer"].value <= parts["eer"].high
    assert {part.n for part in parts.values() if part is not None} == {20}


@pytest.mark.parametrize("users", [0, 1])
def test_fewer_than_two_users_have_no_numbers_and_are_refused(users: int) -> None:
    data = Fake(np.zeros((3, users), np.int64))
    encoder = Toy(torch.ones(1, 4))
    found = run(encoder, data, shots=2)
    assert len(found) == 7
    assert all(np.isnan(m.value) and np.isnan(m.low) and m.n == users for m in found.values())
    (reason,) = ReID(ReIDConfig(shots=2), None).refuses(encoder, data)  # type: ignore[arg-type]
    assert reason == (
        f"{users} users have 3 pieces of 5 events before their last test question, and 2 are needed to tell one from another"
    )


def test_refuses_a_gap_without_times() -> None:
    _, data = random()
    evaluator = ReID(ReIDConfig(gap=5), None)
    assert evaluator.refuses(Toy(torch.ones(1, 4)), data) == []  # type: ignore[arg-type]
    data.schema = Schema({}, {"item": 9})
    (reason,) = evaluator.refuses(Toy(torch.ones(1, 4)), data)  # type: ignore[arg-type]
    assert reason.startswith("a gap of 5 seconds needs times")


def test_a_user_id_table_is_refused() -> None:
    from userec.testing.build import Subject

    evaluator = ReID(ReIDConfig(), None)
    reasons = misfits(Subject(UserId).fresh(), evaluator, tiny_schema())
    assert reasons
    assert "user" in reasons[0]


def split_data(times: np.ndarray, items: np.ndarray, session: np.ndarray, rows: int = 64) -> SplitData:
    """[U, E] each."""
    users, each = times.shape
    store = Events(
        np.arange(users + 1) * each,
        {"item": items.ravel().astype(np.int32), "time": times.ravel(), "session": session.ravel().astype(np.int32)},
    )
    spaces = {"user": users + 2, "item": int(items.max()) + 1, "session": int(session.max()) + 1}
    schema = Schema({name: Field(name) for name in ("item", "session")} | {"time": Field("time", "time")}, spaces, ((NEXT,),))
    coded = Coded("toy", store, None, {n: Vocabulary(np.arange(s - 2)) for n, s in spaces.items()}, schema, {}, {}, {})
    division = divide(coded, SplitConfig(name="leave_last"))
    return SplitData(coded, division, trained=("next",), window=None, fields=["item"], seed=0, config=BatchConfig(eval_rows=rows))


def test_what_both_sides_could_share_is_no_help() -> None:
    """Items are names of moments and sessions that nobody shares: only a leak between the pieces could be recognised."""
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.integers(0, 2, (30, 40)), 1) + 100  # many ties
    session = 2 + np.arange(30)[:, None] * 40 + np.cumsum(rng.random((30, 40)) < 0.3, 1)
    by_moment = 2 + np.arange(30)[:, None] * 60 + (times - 100)
    for items in (by_moment, session):
        data = split_data(times, items, session)
        found = run(Bag(int(items.max()) + 1), data)
        assert found["mrr"].n == 30
        assert found["mrr"].value == pytest.approx((1 / np.arange(1, 31)).sum() / 30), "a moment or a session lies on both sides"
        assert found["roc_auc"].value == 0.5
    tastes = 2 + np.arange(30)[:, None] * 3 + rng.integers(0, 3, (30, 40))
    assert run(Bag(100), split_data(times, tastes, session))["mrr"].value > 0.9


def test_real_pieces_in_any_batch_size_give_the_same() -> None:
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    division = divide(coded, SplitConfig(name="leave_last"))
    found = []
    for rows in (7, 64):
        config = BatchConfig(eval_rows=rows)
        data = SplitData(coded, division, trained=("next",), window=None, fields=["item"], seed=0, config=config)
        found.append(run(Bag(coded.schema.spaces["item"]), data))
    assert same(*found)
    assert found[0]["mrr"].n == 60
    assert found[0]["mrr"].low > (1 / np.arange(1, 61)).sum() / 60, "four clusters of taste are better than chance"
