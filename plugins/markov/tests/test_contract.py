from __future__ import annotations

import pytest
from userec_markov.context_tree import ContextTree
from userec_markov.markov import Markov
from userec_markov.prme import PRME

from userec.testing import Check, contract

CHECKS = [
    *contract(Markov),
    *contract(ContextTree, recent=20),
    *contract(PRME, dim=8),
    *contract(PRME, dim=8, tau=10.0),
]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check: Check) -> None:
    check()
