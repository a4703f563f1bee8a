from __future__ import annotations

import pytest

from userec.builtin.popularity import Popularity
from userec.builtin.ranking import Ranking
from userec.testing import Check, contract


@pytest.mark.parametrize(
    "check", [*contract(Popularity), *contract(Ranking), *contract(Ranking, chunk=3), *contract(Ranking, candidates=5)]
)
def test_contract(check: Check) -> None:
    check()
