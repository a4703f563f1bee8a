"""The door: lazy verbs, honest exit codes, `-p no:NAME` anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from userec.cli import main, output
from userec.errors import UserError


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)).stdout


@pytest.mark.parametrize("words", [["--help"], ["plugins", "list"], ["--version"], ["plugins", "--help"], ["list", "--help"]])
def test_no_torch_and_no_plugin_is_imported(install: Any, words: list[str]) -> None:
    for number in range(30):
        install("exits_on_import", f"dummy-{number:02}")
    code = f"""
import sys
from userec.cli.main import app
try:
    app({words!r}, prog_name="userec")
except SystemExit as left:
    assert not left.code, left.code
heavy = ("torch", "pandas", "numpy", "scipy", "pyarrow", "requests", "rich", "userec.engine", "userec.builtin")
print("imported:", [name for name in sys.modules if name in heavy or name.startswith("dummy_")])
"""
    out = run_python(code)
    assert "imported: []" in out
    if words == ["plugins", "list"]:
        assert out.count("dummy-") == 60  # entry and distribution


def test_help_names_every_verb(userec: Any) -> None:
    code, out, _ = userec("--help")
    assert code == 0
    assert all(f"\n  {verb} " in out for verb in main.VERBS)
    assert userec("-h")[1] == out


def test_every_verb_is_there() -> None:
    for verb in main.VERBS:
        assert (Path(main.__file__).parent / f"{verb}.py").exists()


def test_version(userec: Any) -> None:
    assert userec("--version")[1].startswith("userec ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["lst"], "userec: unknown command 'lst'; did you mean 'list'?"),
        (["-p", "good", "list"], "userec: -p 'good' is not understood: `-p no:NAME` leaves the plugin NAME out"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(userec: Any, words: list[str], line: str) -> None:
    code, out, err = userec(*words)
    assert (code, out, err) == (2, "", f"{line}\n")


@pytest.mark.parametrize("words", [["list", "--jsn"], ["plugins", "lst"], ["show"]])
def test_a_usage_error_is_exit_2_without_a_traceback(userec: Any, words: list[str]) -> None:
    code, _, err = userec(*words)
    assert code == 2
    assert "Error" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["-p", "no:good", "list", "models", "--json"],
        ["list", "-p", "no:good", "models", "--json"],
        ["list", "models", "--json", "-p", "no:good"],
        ["-p", "no:other", "list", "models", "--json", "-p", "no:good"],
    ],
)
def test_block_anywhere(install: Any, userec: Any, words: list[str]) -> None:
    install("good", "good")
    install("another", "other")
    _, out, _ = userec(*words)
    assert ("newest" in out) == ("no:other" not in words)
    assert '"good"' not in out


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UserError("no column 'usr'\ncolumns: user"), 2, "userec: no column 'usr'\ncolumns: user\n"),
        (KeyboardInterrupt(), 130, "userec: interrupted\n"),
    ],
)
def test_errors_a_user_can_mend(monkeypatch: pytest.MonkeyPatch, userec: Any, error: BaseException, code: int, told: str) -> None:
    def fails(ctx: Any) -> None:
        raise error

    monkeypatch.setattr(output, "blocked", fails)
    assert userec("list") == (code, "", told)


def test_our_fault_is_exit_1_with_the_traceback(monkeypatch: pytest.MonkeyPatch, userec: Any) -> None:
    def fails(ctx: Any) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(output, "blocked", fails)
    code, out, err = userec("list")
    assert (code, out) == (1, "")
    assert "Traceback" in err
    assert err.endswith("userec: this is our fault, not yours: ZeroDivisionError: by zero\n")


def test_the_installed_command_ends_with_the_same_codes(site: Path) -> None:
    call = [sys.executable, "-m", "userec", "lst"]
    result = subprocess.run(call, capture_output=True, text=True, env=dict(os.environ))
    assert (result.returncode, result.stderr) == (2, "userec: unknown command 'lst'; did you mean 'list'?\n")
