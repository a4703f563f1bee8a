"""One bad plugin harms no other, no name is decided by order, and what is installed is known without importing it."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from userec import registry as module
from userec.errors import UserError
from userec.registry import Registry, installed, load


def status_of(entries: list[Any], entry: str) -> tuple[str, str]:
    return next((found.status, found.reason) for found in entries if found.entry == entry)


def test_everything_a_plugin_brings_is_found_with_its_origin(install: Any) -> None:
    install("good", version="1.2")
    registry = load()
    assert registry.broken == []
    assert {kind: list(names) for kind, names in registry.plugins.items()} == {
        "datasets": ["toy"],
        "encoders": ["newest"],
        "objectives": ["none"],
        "evaluators": ["silent"],
        "kernels": ["twice"],
    }
    assert registry.find("encoders", "newest").__name__ == "Newest"
    assert [kernel.provider for kernel in registry.find("kernels", "twice")] == ["torch"]
    assert registry.origins["encoders", "newest"] == module.Origin("userec-good", "userec-good", "1.2")
    assert registry.origins["kernels", "twice/torch"].distribution == "userec-good"
    assert registry.installed[0].hooks == tuple(sorted(("userec_progress", *(f"userec_{kind}" for kind in module.KINDS))))


def test_observers_hear_through_the_relay(install: Any) -> None:
    install("good")
    registry = load()
    registry.hook.userec_progress(run=None, step=7, values={})
    assert sys.modules["userec_good"].SEEN == [7]


BROKEN = {
    "broken_on_import": "fails on import: ModuleNotFoundError: No module named 'a_package_that_nobody_has'",
    "exits_on_import": "fails on import: SystemExit: 3",
    "raises_in_hook": "fails in userec_encoders: RuntimeError: no models today (second line)",
    "misspelt_hook": "unknown hook 'userec_encoder'; did you mean 'userec_encoders'?",
    "wrong_signature": "wrong hook signature: hookimpl definition: userec_encoders(device)",
    "unmarked": "function 'userec_encoders' lacks the @hookimpl",
    "hookless": "has no @hookimpl function",
    "not_a_class": "userec_encoders returns 'sasrec', which is no subclass of Encoder",
    "wrong_kind": "userec_encoders returns Judge, which is no subclass of Encoder",
    "nameless": "Anonymous has no `name`",
    "bad_name": "Loud has the name 'Very Loud'",
    "abstract": "Idle lacks encode",
    "twice": "brings 'one' twice",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_left_out_whole_and_harms_no_other(install: Any, kind: str, capsys: Any) -> None:
    install(kind, "a-bad-one")
    install("good")
    registry = load()
    (broken,) = registry.broken
    assert (broken.entry, broken.distribution, broken.version) == ("a-bad-one", "a-bad-one", "1.0")
    assert broken.reason.startswith(BROKEN[kind])
    assert "\n" not in broken.reason
    assert list(registry.plugins["encoders"]) == ["newest"]
    assert list(registry.plugins["kernels"]) == ["twice"]
    assert {origin.distribution for origin in registry.origins.values()} == {"userec-good"}
    assert len(registry.manager.get_plugins()) == 1
    assert capsys.readouterr().out == ""


def test_nothing_of_a_plugin_that_raises_in_one_hook_observes(install: Any) -> None:
    install("raises_in_hook")
    load().hook.userec_progress(run=None, step=1, values={})
    assert sys.modules["userec_raises_in_hook"].SEEN == []


def test_the_traceback_begins_in_the_plugin(install: Any, site: Path) -> None:
    install("raises_in_hook")
    trace = load().broken[0].traceback
    files = [line for line in trace.splitlines() if line.strip().startswith("File")]
    assert len(files) == 1
    assert str(site) in files[0]


def test_two_entry_points_of_one_name_are_both_loaded(install: Any) -> None:
    install("good", "first", entry="models")
    install("twice", "second", entry="models")
    registry = load()
    assert [(found.distribution, found.status) for found in registry.installed] == [("first", "ok"), ("second", "broken")]


def test_a_name_claimed_twice_names_both_and_is_chosen_by_distribution(install: Any) -> None:
    install("good", version="2.0")
    install("another", "acme", entry="acme-models")
    registry = load()
    with pytest.raises(UserError) as told:
        registry.find("encoders", "newest")
    message = str(told.value)
    assert "acme 1.0 (entry point 'acme-models') and userec-good 2.0 (entry point 'userec-good')" in message
    assert "acme:newest" in message
    assert "newest" not in registry.plugins["encoders"]
    for owner, doc in {
        "acme": "Another",
        "acme-models": "Another",
        "userec-good": "The newest",
        "userec_good": "The newest",
    }.items():
        assert registry.find("encoders", f"{owner}:newest").__doc__.startswith(doc)
    assert registry.origins["encoders", "acme:newest"].distribution == "acme"
    assert list(registry.plugins["datasets"]) == ["toy"]
    assert load(block=["acme"]).find("encoders", "newest").__doc__.startswith("The newest")


def test_a_prefix_also_names_what_is_not_claimed_twice(install: Any) -> None:
    install("good")
    registry = load()
    assert registry.key("encoders", "userec-good:newest") == "newest"
    assert registry.key("encoders", "acme:newest") is None


def test_one_module_under_two_entry_points_is_no_clash(install: Any) -> None:
    install("good", entry="a")
    install("good", entry="b")
    registry = load()
    assert [found.entry for found in registry.installed] == ["a", "b"]
    assert registry.clashes == {}
    registry.hook.userec_progress(run=None, step=1, values={})
    assert sys.modules["userec_good"].SEEN == [1]


@pytest.mark.parametrize("name", ["userec-good", "userec_good", "Userec.Good", "g"])
def test_blocked_by_entry_or_distribution(install: Any, name: str) -> None:
    install("good", entry="g")
    registry = load(block=[name])
    assert status_of(registry.installed, "g") == ("blocked", "blocked by -p no:")
    assert registry.plugins["encoders"] == {}
    assert "userec_good" not in sys.modules
    with pytest.raises(UserError, match=r"unknown model 'newest'\nit may come with a plugin that is not loaded: g \(blocked"):
        registry.find("encoders", "newest")


@pytest.mark.parametrize(
    ("allowed", "loaded"), [("userec-good", ["g"]), ("", []), ("acme, g", ["acme", "g"]), (None, ["acme", "g"])]
)
def test_the_allow_list(install: Any, monkeypatch: pytest.MonkeyPatch, allowed: str | None, loaded: list[str]) -> None:
    install("good", entry="g")
    install("another", "acme")
    environ = {"USEREC_CACHE": os.environ["USEREC_CACHE"]} | ({} if allowed is None else {"USEREC_LOAD_PLUGINS": allowed})
    assert [found.entry for found in load(environ=environ).installed if found.status == "ok"] == loaded
    assert [found.entry for found in installed(environ=environ) if found.status == "ok"] == loaded


def test_built_ins_are_plugins_that_the_allow_list_spares(install: Any, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("good", "defaults")
    (site / "defaults-1.0.dist-info" / "entry_points.txt").unlink()
    monkeypatch.setattr(module, "DEFAULTS", ("defaults",))
    registry = load(only=())
    assert registry.origins["encoders", "newest"].distribution == "userec"
    assert load(block=["defaults"]).plugins["encoders"] == {}


def test_a_name_to_block_or_allow_that_is_not_installed_is_told(install: Any) -> None:
    install("good")
    assert load(block=["userec-god"]).notes == [
        "no plugin 'userec-god' is installed to block or allow; did you mean 'userec-good'?"
    ]
    assert load(block=["userec-good"]).notes == []


def test_unknown_names_are_told_with_the_nearest_and_what_is_missing(install: Any) -> None:
    install("good")
    with pytest.raises(UserError, match=r"^unknown model 'newst'; did you mean 'newest'\?$"):
        load().find("encoders", "newst")
    install("broken_on_import", "bad")
    with pytest.raises(UserError, match=r"unknown data set .*\n.*not loaded: bad \(broken: fails on import"):
        load().find("datasets", "ttl")


def test_other_hook_apis_are_incompatible_and_not_imported(install: Any) -> None:
    install("exits_on_import", "future", group="userec2")
    install("exits_on_import", "unnumbered", group="userec")
    install("exits_on_import", "demanding", requires="userec>=99")
    for entries in (installed(), load().installed):
        assert status_of(entries, "future") == ("incompatible", "made for hook API 2, this userec speaks 1: upgrade userec")
        assert "has to be 'userec1'" in status_of(entries, "unnumbered")[1]
        assert status_of(entries, "demanding")[0] == "incompatible"
    assert "needs userec>=99" in status_of(installed(), "demanding")[1]


@pytest.mark.parametrize("requires", ["userec >=", "userec (one)", 'userec>=0; nonsense == "x"', "userec ]["])
def test_a_malformed_requirement_harms_its_own_plugin_only(install: Any, requires: str) -> None:
    install("good")
    install("exits_on_import", "careless", requires=requires)
    for entries in (installed(), load().installed):
        status, reason = status_of(entries, "careless")
        assert status == "incompatible"
        assert reason == f"its metadata asks for {requires!r}, which is no requirement: upgrade the plugin"
        assert status_of(entries, "userec-good")[0] == "ok"


def test_a_plugin_for_both_apis_is_listed_once_and_loaded(install: Any) -> None:
    install("good", group="userec2")
    install("good")
    assert [found.status for found in load().installed] == ["ok"]


def test_broken_is_remembered_until_the_next_load(install: Any, site: Path) -> None:
    install("broken_on_import", "bad")
    assert status_of(installed(), "bad") == ("ok", "")
    load()
    assert status_of(installed(), "bad") == ("broken", BROKEN["broken_on_import"])
    (site / "bad.py").write_text("from userec.markers import hookimpl\n@hookimpl\ndef userec_encoders():\n    return []\n")
    importlib.invalidate_caches()
    load()
    assert status_of(installed(), "bad") == ("ok", "")


def test_another_version_is_not_the_broken_one(install: Any, site: Path) -> None:
    install("broken_on_import", "bad")
    load()
    (site / "bad-1.0.dist-info").rename(site / "bad-1.1.dist-info")
    (site / "bad-1.1.dist-info" / "METADATA").write_text("Name: bad\nVersion: 1.1\n")
    assert status_of(installed(), "bad") == ("ok", "")


@pytest.mark.parametrize("content", ["{", "[]", "\x00"])
def test_a_damaged_memory_is_none(install: Any, content: str, tmp_path: Path) -> None:
    install("broken_on_import", "bad")
    load()
    file = tmp_path / "cache" / "broken_plugins.json"
    assert list(json.loads(file.read_text()).values()) == [BROKEN["broken_on_import"]]
    file.write_text(content)
    assert status_of(installed(), "bad") == ("ok", "")


def test_a_cache_that_cannot_be_written_does_not_hinder_loading(install: Any, tmp_path: Path) -> None:
    install("broken_on_import", "bad")
    (tmp_path / "file").write_text("")
    assert len(load(environ={"USEREC_CACHE": str(tmp_path / "file")}).broken) == 1


def test_metadata_of_thirty_plugins_is_listed_without_importing_one(install: Any) -> None:
    for number in range(30):
        install("exits_on_import", f"dummy-{number:02}")
    entries = installed()
    assert [found.entry for found in entries] == [f"dummy-{number:02}" for number in range(30)]
    assert not any(name.startswith("dummy_") for name in sys.modules)


def test_an_empty_registry_knows_every_kind() -> None:
    registry = Registry()
    assert set(registry.plugins) == set(module.KINDS) == set(module.NOUNS)
    with pytest.raises(UserError, match=r"^unknown model 'x'$"):
        registry.find("encoders", "x")
