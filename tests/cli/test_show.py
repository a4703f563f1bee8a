"""`userec show`: settings with types, defaults and help; what is offered and read."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest


def test_a_model_as_json(install: Any, userec: Any) -> None:
    install("good")
    code, out, _ = userec("show", "newest", "--json")
    (one,) = json.loads(out)
    assert code == 0
    assert (one["kind"], one["name"], one["distribution"], one["fidelity"]) == ("models", "newest", "userec-good", "variant")
    assert one["doc"].endswith("More than one line is not in the summary.")
    assert one["offers"] == "DOT_SCORE, GRADIENT"
    assert one["reads"] == ["item"]
    assert one["recipe"] == {"objective": "none"}
    config = {row["name"]: row for row in one["config"]}
    assert config["dim"] == {"name": "dim", "type": "int", "default": 32, "required": False, "help": "Width of the embedding."}
    assert config["decay"]["help"] == "per event"
    assert (config["names"]["type"], config["names"]["default"]) == ("tuple[str, ...]", ["a"])
    assert config["schedule.rate"]["default"] == 0.5
    assert "schedule" not in config
    assert config["inner"]["type"] == "Ref | None"


def test_a_model_in_words(install: Any, userec: Any) -> None:
    install("good")
    out = userec("show", "newest")[1]
    assert out.startswith("model newest  (userec-good 1.0, fidelity variant)\n  The newest item, embedded.\n")
    assert re.search(r"^dim +int +32 +Width of the embedding\.$", out, re.MULTILINE)
    assert "offers        DOT_SCORE, GRADIENT\n" in out


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("toy", "files         toy.csv"),
        ("toy", "tasks         next (item)"),
        ("none", "hides         profile.age"),
        ("silent", "needs         EMBED_USER"),
        ("twice", "torch     userec-good   1.0      the plain torch reference"),
    ],
)
def test_other_kinds_in_words(install: Any, userec: Any, name: str, part: str) -> None:
    install("good")
    code, out, _ = userec("show", name)
    assert code == 0
    assert part in out


def test_an_op_as_json(install: Any, userec: Any) -> None:
    install("good")
    (one,) = json.loads(userec("show", "twice", "--json")[1])
    assert one["providers"][0]["provider"] == "torch"


def test_an_unknown_name(install: Any, userec: Any) -> None:
    install("good")
    assert userec("show", "newst") == (2, "", "userec: nothing is called 'newst'; did you mean 'newest'?\n")


def test_a_name_claimed_twice_has_to_be_chosen(install: Any, userec: Any) -> None:
    install("good")
    install("another", "acme")
    code, out, err = userec("show", "newest")
    assert (code, out) == (2, "")
    assert "acme:newest" in err
    assert "Another newest." in userec("show", "acme:newest")[1]


def test_a_built_in_op_shows_its_formula_signature_limits_and_cases(userec: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("userec.registry.DEFAULTS", ("userec.builtin.kernels",))
    out = userec("show", "hstu_attention")[1]
    assert "  O_i = sum_{j <= i} silu(" in out
    assert "\nhstu_attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, position_table: Tensor | None = None, " in out
    assert re.search(r"^compiled +userec .* priority 50, opt-in +float32 1e-05$", out, re.MULTILINE)
    assert "\ncases         edges, blocks, " in out
    (one,) = json.loads(userec("show", "hstu_attention", "--json")[1])
    assert one["signature"].endswith("scale: float = 1.0) -> Tensor")
    assert {row["provider"]: row["opt_in"] for row in one["providers"]} == {"compiled": True, "cpu": False, "torch": False}
    assert "no bias" in one["cases"]
