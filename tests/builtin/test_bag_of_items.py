"""The bag of items: counts, idf against scikit-learn, and an encoder that only embeds under the whole contract."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfTransformer

from userec.batch import Batch, History
from userec.builtin.bag_of_items import BagOfItems, TfIdf
from userec.capability import Can
from userec.encoder.contract import Encoder, has_scores
from userec.schema import Schema
from userec.testing import Check, contract

SIZE = 9


def make(cls: Any = BagOfItems, **settings: Any) -> Encoder:
    return cls(cls.Config(**settings), SimpleNamespace(schema=Schema({}, {"item": SIZE})))


def history(items: torch.Tensor, mask: torch.Tensor | None = None) -> History:
    return History(torch.arange(len(items)), {"item": items}, items > 0 if mask is None else mask)


def drawn(seed: int, rows: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    items = rng.integers(2, SIZE, (rows, 12))
    items[np.arange(12) >= rng.integers(0, 13, (rows, 1))] = 0
    return torch.from_numpy(items)


def bags(items: torch.Tensor) -> np.ndarray:
    return np.stack([np.bincount(row[row > 0], minlength=SIZE) for row in items.numpy()])


@pytest.mark.parametrize("check", [*contract(BagOfItems), *contract(BagOfItems, idf=True), *contract(TfIdf)])
def test_contract(check: Check) -> None:
    check()


def test_a_user_is_the_counts_of_what_he_took() -> None:
    items = torch.tensor([[2, 5, 5, 0], [1, 1, 3, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    user = make().encode(history(items)).user
    assert user is not None
    assert user[0].tolist() == pytest.approx([0, 0, 1 / 5**0.5, 0, 0, 2 / 5**0.5, 0, 0, 0])
    assert user[1].tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 0]  # an unknown item is none
    assert not user[2:].any()
    masked = make().encode(history(items, items == 5)).user
    assert masked is not None
    assert masked[0].tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0]


def test_idf_is_that_of_scikit_learn() -> None:
    train, test = drawn(0, 40), drawn(1, 30)
    encoder = make(TfIdf)
    for part in (train[:7], train[7:]):
        encoder.partial_fit(Batch(history(part)))
    told = bags(train)
    oracle = TfidfTransformer(norm="l2", smooth_idf=True).fit(told[told.any(1)])  # who did nothing is no document
    user = encoder.encode(history(test)).user
    assert user is not None
    assert user.numpy() == pytest.approx(oracle.transform(bags(test)).toarray(), abs=1e-6)
    assert torch.equal(user, make(BagOfItems, idf=True).train(False).encode(history(test)).user) is False  # it counted nothing


def test_it_scores_nothing_and_its_tokens_take_no_memory() -> None:
    encoder = make()
    assert not has_scores(encoder)
    assert encoder.offers == Can.EMBED_USER
    assert encoder.window is None
    tokens = encoder.encode(history(drawn(0, 30))).tokens
    assert tokens.shape == (30, 12, SIZE)
    assert tokens.untyped_storage().nbytes() == 4
