from __future__ import annotations

import pytest
from userec_hstu.hstu import HSTU, HSTULarge

from userec.testing import Check, contract


@pytest.mark.parametrize("check", contract(HSTU, dim=8, query_dim=6, value_dim=4, heads=2, window=16))
def test_contract(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(HSTU, dim=8, query_dim=8, value_dim=8, layers=1, window=16, time="off"))
def test_contract_without_times(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(HSTULarge, dim=8, query_dim=4, value_dim=4, window=16))
def test_contract_of_the_large_setting(check: Check) -> None:
    check()
