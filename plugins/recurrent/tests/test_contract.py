from __future__ import annotations

import pytest
from userec_recurrent.gru4rec import GRU4Rec
from userec_recurrent.hrnn import HRNN
from userec_recurrent.rrn import RRN

from userec.testing import Check, contract


class BySession(HRNN):
    """Asked for `session`, the tiny data has it."""

    reads = frozenset({"item", "session"})


CHECKS = [
    *contract(GRU4Rec, dim=8),
    *contract(GRU4Rec, dim=8, hidden=6, layers=2, constrained=False),
    *contract(HRNN, dim=8, gap=50_000, dropout_user=0.1, dropout_init=0.1),
    *contract(HRNN, dim=8, user_dim=5, gap=50_000, variant="all", user_to_output=True),
    *contract(HRNN, dim=8, gap=50_000, question="events"),
    *contract(BySession, dim=8, user_dim=5, variant="all"),
    *contract(RRN, dim=6, factors=4, step=40_000, item_step=90_000, item_share=0.4, dropout=0.0),
]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: Check) -> None:
    check()
