from __future__ import annotations

import pytest

from userec.builtin.labelled import Labelled
from userec.builtin.next_item import NextItem
from userec.testing import Check, contract


@pytest.mark.parametrize("check", [*contract(NextItem), *contract(NextItem, negatives=3), *contract(Labelled)])
def test_contract(check: Check) -> None:
    check()
