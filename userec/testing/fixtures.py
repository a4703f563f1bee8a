"""pytest fixtures, loaded through the entry point `pytest11`; nothing heavy is imported before a test asks for one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def tiny_build() -> Any:
    """The engine's builder over the tiny schema, with all installed plugins."""
    from userec.testing.build import tiny_build

    return tiny_build()


@pytest.fixture
def tiny_history() -> Any:
    """Six rows of up to eight events with every kind of field; row 1 is empty."""
    from userec.testing.tiny import tiny_history

    return tiny_history()


@pytest.fixture
def tiny_batch() -> Any:
    """Six rows as the loader gives them for training on the next item."""
    from userec.testing.tiny import tiny_batch

    return tiny_batch()


@pytest.fixture
def tiny_dataset(tmp_path: Path) -> Any:
    """60 generated users, 24 items in 4 clusters, three groups of tasks."""
    from userec.testing.tiny import TinyDataset

    return TinyDataset(TinyDataset.Config(), tmp_path)


@pytest.fixture
def sample_home(tmp_path: Path) -> Callable[[Any], Path]:
    """`sample_home(MovieLens1M)`: a folder with the data set's embedded sample in its original layout."""

    def write(cls: Any) -> Path:
        home = tmp_path / cls.name
        home.mkdir()
        if not cls.write_sample(home):
            pytest.skip(f"{cls.name} has no embedded sample")
        return home

    return write
