"""Every toy keeps the whole contract."""

import pytest

from userec.testing.checks import checks_for
from userec.testing.toys import PLUGINS, TOYS


class Registry:
    plugins = PLUGINS


CHECKS = [pytest.param(check, id=f"{toy.name}-{check.name}") for toy in TOYS for check in checks_for("encoders", toy, Registry)]


@pytest.mark.parametrize("check", CHECKS)
def test_contract(check):
    check()
