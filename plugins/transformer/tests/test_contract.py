from __future__ import annotations

import pytest
from userec_transformer.sasrec import SASRec

from userec.testing import Check, contract


@pytest.mark.parametrize("check", contract(SASRec, dim=8, layers=1, window=16))
def test_contract(check: Check) -> None:
    check()
