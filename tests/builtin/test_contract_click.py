from __future__ import annotations

import pytest

from userec.builtin.click import Click
from userec.builtin.rating import Rating
from userec.builtin.rating_baselines import GlobalMean, RatingBias
from userec.builtin.same_category import CategoryCount, CategorySeen
from userec.testing import Check, contract

PLUGINS = (Click, Rating, CategoryCount, CategorySeen, GlobalMean, RatingBias)


@pytest.mark.parametrize(
    "check", [*(check for plugin in PLUGINS for check in contract(plugin)), *contract(Click, weight="equal")]
)
def test_contract(check: Check) -> None:
    check()
