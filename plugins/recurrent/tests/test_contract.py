from __future__ import annotations

import pytest
from userec_recurrent.gru4rec import GRU4Rec

from userec.testing import Check, contract

CHECKS = [
    *contract(GRU4Rec, dim=8),
    *contract(GRU4Rec, dim=8, hidden=6, layers=2, constrained=False),
]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: Check) -> None:
    check()
