"""Throw-away distributions: a module of `tests/dists` with the metadata that pip would write beside it, no pip needed."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DISTS = Path(__file__).parent / "dists"

Install = Callable[..., str]


def write_dist(
    site: Path, module: str, name: str, entry: str = "", version: str = "1.0", group: str = "userec1", requires: str = ""
) -> None:
    """Copy `dists/<module>.py` to `site` under the distribution's own module name, with METADATA and entry_points.txt."""
    owned = name.replace("-", "_")
    if not (site / f"{owned}.py").exists():
        shutil.copy(DISTS / f"{module}.py", site / f"{owned}.py")
    info = site / f"{owned}-{version}.dist-info"
    info.mkdir(exist_ok=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *([f"Requires-Dist: {requires}"] if requires else []),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    with (info / "entry_points.txt").open("a") as file:
        file.write(f"[{group}]\n{entry or name} = {owned}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on `sys.path` and PYTHONPATH that distributions are installed to. In this process its plugins are the only ones:
    no built-ins, none that happen to be installed; the cache is its own too."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)

    def here_only(**params: Any) -> importlib.metadata.EntryPoints:
        found = importlib.metadata.distributions(path=[str(folder)])
        return importlib.metadata.EntryPoints(entry for dist in found for entry in dist.entry_points).select(**params)

    monkeypatch.setenv("USEREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.delenv("USEREC_LOAD_PLUGINS", raising=False)
    monkeypatch.delenv("USEREC_DATA", raising=False)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr("userec.registry.DEFAULTS", ())
    monkeypatch.setattr(importlib.metadata, "entry_points", here_only)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture
def install(site: Path) -> Install:
    """`install("good", "userec-good")` puts a distribution where importlib finds it, and returns its name."""

    def put(module: str, name: str = "", **about: str) -> str:
        write_dist(site, module, name or f"userec-{module.replace('_', '-')}", **about)
        return name or f"userec-{module.replace('_', '-')}"

    return put
