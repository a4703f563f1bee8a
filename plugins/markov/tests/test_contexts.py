from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from userec_markov import contexts
from userec_markov.context_tree import ContextTree, ContextTreeConfig
from userec_markov.markov import Markov, MarkovConfig

from userec.batch import Batch, History, Query
from userec.builtin.kernels import userec_kernels
from userec.engine.compose import Builder
from userec.kernel.dispatch import Kernels
from userec.schema import Field, Schema

SIZE = 5000
BUILD = Builder({}, Schema({"item": Field("item"), "time": Field("time", "time")}, {"item": SIZE}), {}, Kernels(userec_kernels()))
ITEM = torch.tensor([[2, 3, 4, 5], [3, 4, 5, 2], [4, 5, 2, 3], [5, 2, 3, 4]] * 6)


class Large(TorchDispatchMode):
    """Keeps every tensor of at least `numel` entries that is made under it."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel = numel
        self.made: dict[int, torch.Tensor] = {}  # by their memory: a view or a change in place is none of its own

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for x in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(x, torch.Tensor) and x.numel() >= self.numel:
                self.made[x.untyped_storage().data_ptr()] = x
        return made


def test_what_waits_to_be_merged_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contexts, "MERGE", 25)
    grams, whole, rows = contexts.Grams(2), contexts.Grams(2), np.random.default_rng(0).integers(0, 4, (400, 3)).astype(np.int32)
    for part in np.split(rows, 40):
        grams.add(part)
        assert sum(map(len, grams._new)) <= max(25, len(grams.rows))
    whole.add(rows)
    for name, value in grams.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])


def test_an_event_of_no_session_begins_and_ends_one() -> None:
    session = torch.tensor([[2, 2, 1, 1, 3, 3, 3], [1, 4, 1, 4, 4, 0, 0]])
    assert contexts.starts(session).tolist() == [[0, 0, 2, 3, 4, 4, 4], [0, 1, 2, 3, 3, 5, 6]]
    assert contexts.starts(session[:, :0]).shape == (2, 0)


@pytest.mark.parametrize("timed", [False, True])
def test_candidates_take_no_tensor_of_the_size_of_the_catalogue(timed: bool) -> None:
    tree = ContextTree(ContextTreeConfig(popularity=False, recent=72), BUILD)
    encoder = tree if timed else Markov(MarkovConfig(), BUILD)
    seen = History(torch.arange(24), {"item": ITEM, "time": torch.arange(1, 97).reshape(4, 24).T}, ITEM > 0)
    old = History(torch.arange(24), {"item": torch.full((24, 50), 9), "time": torch.zeros(24, 50).long()}, torch.ones(24, 50) > 0)
    for past in (old, seen):
        encoder.partial_fit(Batch(past))
    if timed:
        assert tree._made()[0].freshness > 0.9
    for ids, expected in ((None, 1 + timed), (torch.tensor([[[2, 3, 4]]]), 0)):
        query = Query(seen.last[:, None] - 2, ids)
        encoder.score(encoder.encode(seen), query)  # what is made once is made here
        with Large(len(ITEM) * SIZE) as large:
            encoder.score(encoder.encode(seen), query)
        assert len(large.made) == expected
