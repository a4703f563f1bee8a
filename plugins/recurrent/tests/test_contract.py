from __future__ import annotations

import pytest
from userec_recurrent.rrn import RRN

from userec.testing import Check, contract


@pytest.mark.parametrize("check", contract(RRN, dim=6, factors=4, step=40_000, item_step=90_000, item_share=0.4, dropout=0.0))
def test_rrn(check: Check) -> None:
    check()
