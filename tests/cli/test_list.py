"""`userec list`: what is there, by kind, with who brings it."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_all_kinds_as_json(install: Any, userec: Any) -> None:
    install("good", version="1.2")
    code, out, err = userec("list", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("models", "newest"),
        ("datasets", "toy"),
        ("objectives", "none"),
        ("evaluators", "silent"),
        ("kernels", "twice/torch"),
    ]
    assert all({"name", "distribution", "version", "fidelity", "kind", "summary"} <= set(row) for row in rows)
    assert {(row["distribution"], row["version"]) for row in rows} == {("userec-good", "1.2")}
    assert {row["name"]: row["fidelity"] for row in rows}["toy"] == "official"
    summaries = {row["name"]: row["summary"] for row in rows}
    assert summaries["newest"] == "The newest item, embedded."
    assert summaries["toy"] == "Three events of one user."


@pytest.mark.parametrize(
    ("what", "name"),
    [("models", "newest"), ("encoders", "newest"), ("datasets", "toy"), ("objectives", "none"), ("evaluators", "silent")],
)
def test_one_kind(install: Any, userec: Any, what: str, name: str) -> None:
    install("good")
    assert [row["name"] for row in json.loads(userec("list", what, "--json")[1])] == [name]
    assert name in userec("list", what)[1]


def test_plain_lines_are_not_cut(install: Any, userec: Any) -> None:
    install("good", "a-distribution-with-a-very-long-name-that-would-not-fit-a-column-of-eighty")
    lines = userec("list", "models")[1].splitlines()
    assert lines[0] == "models"
    assert lines[2].split()[:2] == ["newest", "a-distribution-with-a-very-long-name-that-would-not-fit-a-column-of-eighty"]
    assert lines[2].endswith("The newest item, embedded.")


def test_an_unknown_kind(userec: Any) -> None:
    assert userec("list", "model") == (2, "", "userec: unknown kind 'model'; did you mean 'models'?\n")


def test_a_broken_plugin_is_one_line_and_the_rest_is_listed(install: Any, userec: Any) -> None:
    install("good")
    install("exits_on_import", "bad")
    code, out, err = userec("list", "--json")
    assert code == 0
    assert len(json.loads(out)) == 5
    told = [line for line in err.splitlines() if line.startswith("userec:")]
    assert told == ["userec: plugin 'bad' (bad 1.0) is broken and left out: fails on import: SystemExit: 3"]


def test_a_name_claimed_twice_is_shown_with_both(install: Any, userec: Any) -> None:
    install("good")
    install("another", "acme")
    code, out, err = userec("list", "models", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == ["acme:newest", "userec-good:newest"]
    assert "claimed by acme 1.0" in err
    assert "userec-good 1.0" in err
