from __future__ import annotations

import pytest
from userec_convolution.caser import Caser
from userec_convolution.nextitnet import NextItNet

from userec.testing import Check, contract


@pytest.mark.parametrize("check", contract(Caser, embedding=6, horizontal=3, vertical=2, window=16, dropout=0.1))
def test_caser(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(Caser, embedding=6, length=3, user=False, window=16, dropout=0.1))
def test_caser_without_users(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(NextItNet, dim=8, dilations=[1, 2], window=16))
def test_nextitnet(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", contract(NextItNet, dim=8, dilations=[3], window=16, block="one", shared=True))
def test_nextitnet_of_block_one(check: Check) -> None:
    check()
