"""The built-in floor: counts, nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from userec.batch import Batch, History, Query, Targets
from userec.builtin.popularity import Majority, Popularity, userec_encoders
from userec.capability import Can
from userec.encoder.contract import NoConfig
from userec.schema import NEXT, Schema, Task


def make(size: int = 6) -> Popularity:
    return Popularity(NoConfig(), SimpleNamespace(schema=Schema({}, {"item": size})))  # type: ignore[arg-type]


def history(items: list[list[int]]) -> History:
    table = torch.tensor(items)
    return History(torch.arange(len(items)), {"item": table}, table > 0, tasks=("next",))


def test_counts_events_under_the_mask_and_adds_up() -> None:
    encoder = make()
    encoder.partial_fit(Batch(history([[2, 2, 3, 0], [4, 2, 0, 0]])))
    encoder.partial_fit(Batch(history([[4, 0, 0, 0]])))
    assert encoder.counts.tolist() == [0, 0, 3, 1, 2, 0]
    restored = make()
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(restored.counts, encoder.counts)


def test_score_is_the_log_share_for_every_question() -> None:
    encoder = make()
    encoder.partial_fit(Batch(history([[2, 2, 3, 0]])))
    encoded = encoder.encode(history([[3, 4], [5, 0], [0, 0]]))
    assert encoded.tokens.shape == (3, 2, 1)
    at = torch.tensor([[0, 1], [0, 0], [-1, -1]])
    whole = encoder.score(encoded, Query(at))
    assert whole.shape == (3, 2, 6, 1)
    assert whole[1, 1, :, 0].exp().tolist() == pytest.approx([1 / 9, 1 / 9, 3 / 9, 2 / 9, 1 / 9, 1 / 9])
    for ids in (torch.tensor([[[5, 2]]]), torch.randint(0, 6, (3, 1, 4)), torch.randint(0, 6, (3, 2, 4))):
        found = encoder.score(encoded, Query(at, ids))
        assert torch.equal(found[..., 0], whole[..., 0].gather(2, ids.expand(3, 2, -1)))


def test_a_table_of_labels_is_counted_in_its_own_space() -> None:
    tasks = ((NEXT,), (Task("click", "item", "click"),), (Task("like"),))
    schema = Schema({}, {"item": 6, "click": 4}, tasks)
    encoder = Popularity(NoConfig(), SimpleNamespace(schema=schema))  # type: ignore[arg-type]
    encoder.begin_task(("click",), "train")
    asked = history([[2, 5, 5], [5, 0, 0], [5, 5, 0], [5, 0, 0]])
    answer = torch.tensor([[2], [3], [2], [1]])
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1, 1)  # the second was shown and not clicked, the fourth unknown
    encoder.partial_fit(Batch(asked, Targets(Query(asked.last[:, None]), answer, labels)))
    assert encoder.counts.tolist() == [0, 0, 2, 0]
    assert encoder.score(encoder.encode(asked), Query(asked.last[:, None])).shape == (4, 1, 4, 1)
    restored = Popularity(NoConfig(), SimpleNamespace(schema=schema))  # type: ignore[arg-type]
    restored.begin_task(("click",), "train")
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(restored.counts, encoder.counts)
    encoder.begin_task(("like",), "train")
    encoder.partial_fit(Batch(asked, Targets(Query(asked.last[:, None]), torch.tensor([[4], [4], [2], [3]]))))
    assert encoder.counts.tolist() == [0, 0, 1, 1, 2, 0]  # the answers, not the history


def test_it_claims_no_gradient_and_no_embedding() -> None:
    assert list(userec_encoders()) == [Popularity, Majority]
    assert not make().offers & (Can.GRADIENT | Can.EMBED_USER | Can.DOT_SCORE)
    assert not list(make().parameters())


def test_majority_is_popularity_with_the_same_embedding_for_all() -> None:
    encoder = Majority(NoConfig(), SimpleNamespace(schema=Schema({}, {"item": 6})))  # type: ignore[arg-type]
    encoder.partial_fit(Batch(history([[2, 2, 3, 0]])))
    encoded = encoder.encode(history([[3, 4], [5, 0], [0, 0]]))
    assert encoded.user is not None
    assert encoded.user.tolist() == [[1.0], [1.0], [1.0]]
    plain = make()
    plain.partial_fit(Batch(history([[2, 2, 3, 0]])))
    asked = Query(torch.zeros(3, 1, dtype=torch.int64))
    assert torch.equal(encoder.score(encoded, asked), plain.score(encoded, asked))
