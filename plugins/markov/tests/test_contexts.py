from __future__ import annotations

import numpy as np
import pytest
import torch
from userec_markov import contexts


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
