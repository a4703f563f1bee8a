from __future__ import annotations

import pytest
from userec_lifelong.twin import TWIN

from userec.testing import Check, contract


@pytest.mark.parametrize("check", contract(TWIN, dim=8, heads=2, keep=3, recent=3, hidden=8, window=16))
def test_contract(check: Check) -> None:
    check()
