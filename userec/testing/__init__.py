"""The contract kit: named checks for a plugin, chosen by what it claims. A plugin's whole contract test is three lines:

    from userec.testing import contract

    @pytest.mark.parametrize("check", contract(SASRec, dim=8, layers=1))
    def test_contract(check):
        check()

Nothing is imported here before it is asked for: pytest loads this package in every session of a machine with userec on it."""

from __future__ import annotations

import importlib
from typing import Any

_PLACES = {
    "Check": "check",
    "checks_for": "checks",
    "Subject": "build",
    "tiny_build": "build",
    "TinyDataset": "tiny",
    "tiny_batch": "tiny",
    "tiny_history": "tiny",
    "tiny_schema": "tiny",
    "open_session": "session",
}

__all__ = [*_PLACES, "contract"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)


def contract(cls: Any, **settings: Any) -> list[Any]:
    """`pytest.param(check, id=name)` for each check of a plugin class (or of a list of kernels) with these settings."""
    import pytest

    from userec.testing.checks import checks_for, kind_of

    return [pytest.param(check, id=check.name) for check in checks_for(kind_of(cls), cls, None, settings)]
