from __future__ import annotations

import pytest
from userec_markov.markov import Markov

from userec.testing import Check, contract


@pytest.mark.parametrize("check", contract(Markov))
def test_contract(check: Check) -> None:
    check()
