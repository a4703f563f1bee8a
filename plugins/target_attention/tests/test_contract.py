from __future__ import annotations

import pytest
from userec_target_attention.din import DIN
from userec_target_attention.embedding_mlp import EmbeddingMLP

from userec.testing import Check, contract


@pytest.mark.parametrize("check", contract(DIN, dim=8, attention=(8, 4), hidden=(8,), window=16))
def test_din(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(DIN, dim=8, attention=(8, 4), hidden=(8,), window=16, softmax=True, l2=0.01))
def test_din_with_softmax_and_l2(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(EmbeddingMLP, dim=8, hidden=(8, 4), window=16))
def test_embedding_mlp(check: Check) -> None:
    check()
