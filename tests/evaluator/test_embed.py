"""Embeddings of a stream: once each, in order, dense or sparse, never a NaN."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import sparse

from userec.batch import Batch, Encoded, History
from userec.capability import Can
from userec.encoder.contract import Encoder, NoConfig
from userec.errors import DivergedError
from userec.evaluator import embed
from userec.evaluator.embed import Embedder


class Spread(Encoder):
    """user = `fill` numbers, the item of each, the rest zero; counts the rows it encodes."""

    name = "spread"
    offers = Can.EMBED_USER

    def __init__(self, dim: int = 4, fill: int | None = None) -> None:
        super().__init__(NoConfig(), None)  # type: ignore[arg-type]
        self.dim, self.fill = dim, fill
        self.rows: list[int] = []
        self.tasks: set[tuple[str, ...]] = set()

    def encode(self, history: History) -> Encoded:
        self.rows.append(len(history.user))
        self.tasks.add(history.tasks)
        user = history.events["item"][:, :1].float().expand(-1, self.dim).clone()
        user[:, self.dim if self.fill is None else self.fill :] = 0
        return Encoded(history, user[:, None], user)


def batches(ends: list[list[int]], items: dict[int, int] | None = None) -> Iterator[Batch]:
    """User `end % 10` with one event, item `end` unless told."""
    for part in ends:
        item = torch.tensor([[(items or {}).get(end, end)] for end in part])
        users = torch.tensor(part) % 10
        yield Batch(History(users + 2, {"item": item}, item > 0, tasks=("age",)), None, users, torch.tensor(part))


def test_each_history_once_in_the_order_asked() -> None:
    encoder = Spread()
    embedder = Embedder(encoder, ("next", "like"))
    users, found = embedder(batches([[11, 22], [33]]))
    assert (users.tolist(), found[:, 0].tolist()) == ([1, 2, 3], [11, 22, 33])
    users, found = embedder(batches([[33, 11], [22]]))
    assert (users.tolist(), found[:, 0].tolist()) == ([3, 1, 2], [33, 11, 22])
    assert encoder.rows == [2, 1]
    assert encoder.tasks == {("next",)}  # not the task that asks
    users, found = embedder(batches([[44, 33]], {33: 99}))  # partly known: what was found first stays
    assert (users.tolist(), found[:, 0].tolist()) == ([4, 3], [44, 33])
    assert found.dtype == np.float32


def test_another_end_is_another_history() -> None:
    _, found = Embedder(Spread(), ())(batches([[11, 21]]))
    assert found[:, 0].tolist() == [11, 21]


def test_wide_and_mostly_zero_is_sparse_and_parts_may_be_mixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "WIDE", 40)
    encoder = Spread(40, 3)
    embedder = Embedder(encoder, ())
    _, thin = embedder(batches([[11], [22]]))
    assert sparse.issparse(thin)
    encoder.fill = None
    _, both = embedder(batches([[22], [33], [44]]))
    assert sparse.issparse(both)
    assert both.toarray()[:, [0, 39]].tolist() == [[22, 0], [33, 33], [44, 44]]
    assert both.dtype == np.float32
    _, full = Embedder(encoder, ())(batches([[11], [22]]))
    assert isinstance(full, np.ndarray)


def test_wide_batches_are_encoded_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "BUDGET", 8)
    encoder = Spread(4)
    _, found = Embedder(encoder, ())(batches([[11, 22, 33, 44, 55]]))
    assert encoder.rows == [2, 2, 1]
    assert found[:, 3].tolist() == [11, 22, 33, 44, 55]


@pytest.mark.parametrize("fill", [None, 3])
def test_nothing_to_embed_and_then_something(fill: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "WIDE", 40)
    embedder = Embedder(Spread(40, fill), ())
    users, found = embedder(iter(()))
    assert (users.shape, found.shape) == ((0,), (0, 40))
    _, found = embedder(batches([[11], [22]]))
    assert found.shape == (2, 40)


def test_what_is_no_embedding_is_told() -> None:
    class Broken(Spread):
        def encode(self, history: History) -> Encoded:
            found = super().encode(history)
            return Encoded(history, found.tokens, None if self.dim == 1 else found.user * torch.nan)  # type: ignore[operator]

    with pytest.raises(DivergedError, match="not numbers"):
        Embedder(Broken(), ())(batches([[11]]))
    with pytest.raises(ValueError, match="gives no embedding"):
        Embedder(Broken(1), ())(batches([[11]]))
    (batch,) = batches([[11]])
    with pytest.raises(ValueError, match="where its rows were cut"):
        Embedder(Spread(), ())([Batch(batch.history)])
