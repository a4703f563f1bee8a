"""`userec plugins`: metadata at once, `--load` asks anew, `check` runs the contract checks."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest


def test_list_reads_metadata_and_remembers(install: Any, userec: Any) -> None:
    install("good", version="1.2")
    install("broken_on_import", "bad")
    install("good", "future", group="userec2")
    code, out, err = userec("plugins", "list", "--json", "-p", "no:good")
    assert (code, err) == (0, "")
    rows = {row["entry"]: row for row in json.loads(out)}
    assert {name: row["status"] for name, row in rows.items()} == {"bad": "ok", "future": "incompatible", "userec-good": "ok"}
    assert rows["userec-good"] == {
        "entry": "userec-good",
        "distribution": "userec-good",
        "version": "1.2",
        "value": "userec_good",
        "status": "ok",
        "reason": "",
        "hooks": [],
    }
    assert "userec_good" not in sys.modules


def test_load_asks_anew(install: Any, userec: Any) -> None:
    install("good")
    install("broken_on_import", "bad")
    rows = {row["entry"]: row for row in json.loads(userec("plugins", "list", "--load", "--json")[1])}
    assert rows["bad"]["status"] == "broken"
    assert "userec_encoders" in rows["userec-good"]["hooks"]
    assert "bad          bad           1.0      broken" in userec("plugins", "list")[1]


def test_blocked(install: Any, userec: Any) -> None:
    install("good")
    assert "blocked by -p no:" in userec("-p", "no:userec-good", "plugins", "list")[1]


def test_info(install: Any, userec: Any) -> None:
    install("good")
    code, out, _ = userec("plugins", "info", "userec_good")
    assert code == 0
    assert "encoders      newest\n" in out
    (row,) = json.loads(userec("plugins", "info", "userec-good", "--json")[1])
    assert row["brings"]["datasets"] == ["toy"]


def test_info_of_a_broken_one_has_the_traceback(install: Any, userec: Any) -> None:
    install("raises_in_hook", "bad")
    out = userec("plugins", "info", "bad")[1]
    assert out.startswith("bad: broken, fails in userec_encoders: RuntimeError: no models today")
    assert "Traceback (most recent call last):" in out


def test_info_of_an_unknown_one(install: Any, userec: Any) -> None:
    install("good")
    assert (
        userec("plugins", "info", "userec-god")[2] == "userec: no plugin 'userec-god' is installed; did you mean 'userec-good'?\n"
    )


@dataclass
class Check:
    name: str
    run: Callable[[], None]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Stand-ins for the shipped checks: one passes, the evaluator's second fails. Returns what they were made for."""
    asked: list[tuple[str, str]] = []

    def fails() -> None:
        raise AssertionError("silent: wrong\nvalue")

    def checks_for(kind: str, cls: Any, registry: Any) -> list[Check]:
        asked.append((kind, getattr(cls, "name", "")))
        return [Check("is fine", lambda: None), *([Check("is true", fails)] if kind == "evaluators" else [])]

    stand_in = types.ModuleType("userec.testing.checks")
    stand_in.checks_for = checks_for  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "userec.testing.checks", stand_in)
    return asked


def test_check_all_of_a_plugin(install: Any, userec: Any, checks: list[tuple[str, str]]) -> None:
    install("good")
    code, out, _ = userec("plugins", "check", "userec-good")
    assert code == 1
    assert "ok    newest  is fine\n" in out
    assert "FAIL  silent  is true: AssertionError: silent: wrong value\n" in out
    assert out.endswith("5 of 6 checks passed\n")
    assert {kind for kind, _ in checks} == {"datasets", "encoders", "objectives", "evaluators", "kernels"}


def test_check_one_name(install: Any, userec: Any, checks: list[tuple[str, str]]) -> None:
    install("good")
    assert userec("plugins", "check", "newest")[0] == 0
    assert checks == [("encoders", "newest")]


def test_check_of_nothing(install: Any, userec: Any, checks: list[tuple[str, str]]) -> None:
    install("broken_on_import", "bad")
    code, _, err = userec("plugins", "check", "bad")
    assert code == 2
    assert "`userec plugins info bad` tells why" in err
    assert userec("plugins", "check", "nobody")[0] == 2
