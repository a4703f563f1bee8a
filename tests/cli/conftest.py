"""The door, called in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from userec.cli.main import app


@pytest.fixture
def userec(site: Path) -> Callable[..., tuple[int, str, str]]:
    """`userec("list", "--json")` -> (exit code, stdout, stderr), with only the plugins of `site`."""

    def call(*words: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, list(words), prog_name="userec")
        return result.exit_code, result.stdout, result.stderr

    return call
