from __future__ import annotations

import pytest
from userec_convolution.nextitnet import NextItNet

from userec.testing import Check, contract

NEXTITNET = (
    contract(NextItNet, dim=8, dilations=[1, 2], window=16)
    + contract(NextItNet, dim=8, dilations=[1, 2], window=16, block="one")
    + contract(NextItNet, dim=8, dilations=[3], window=16, kernel=2, shared=True)
)


@pytest.mark.parametrize("check", NEXTITNET)
def test_nextitnet(check: Check) -> None:
    check()
