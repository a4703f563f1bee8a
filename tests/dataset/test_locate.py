"""Where a data set is looked for, and when the sample steps in."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pandas as pd
import pytest

from userec.dataset.contract import Dataset
from userec.dataset.locate import data_folder, home_of
from userec.errors import UserError


class Toy(Dataset):
    """One file; counts how often its sample was written."""

    name = "toy"
    files = ("toy.csv",)
    written: ClassVar[list[Path]] = []

    def events(self) -> pd.DataFrame:
        """The file."""
        return pd.read_csv(self.home / "toy.csv")

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """One event."""
        cls.written.append(home)
        (home / "toy.csv").write_text("user,item\n1,2\n")
        return True


class Bare(Toy):
    """The same without a sample."""

    name = "bare"

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """None."""
        return False


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A cache of its own."""
    return {"USEREC_CACHE": str(tmp_path / "cache")}


def put(folder: Path) -> Path:
    """A real file."""
    folder.mkdir(parents=True)
    (folder / "toy.csv").write_text("user,item\n")
    return folder


def test_data_dir_comes_before_the_variable_and_that_before_the_cache(tmp_path: Path, environ: dict[str, str]) -> None:
    cached, by_variable, by_option = put(tmp_path / "cache/data/toy"), put(tmp_path / "variable"), put(tmp_path / "option/toy")
    assert home_of(Toy, None, environ) == (cached, False)
    environ["USEREC_DATA"] = str(by_variable)
    assert home_of(Toy, None, environ) == (by_variable, False)
    assert home_of(Toy, tmp_path / "option", environ) == (by_option, False)
    assert data_folder(None, environ) == by_variable


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_named_folder_is_never_replaced_by_the_sample(tmp_path: Path, environ: dict[str, str], how: str) -> None:
    def ask(folder: Path) -> tuple[Path, bool]:
        return home_of(Toy, folder, environ) if how == "option" else home_of(Toy, None, {**environ, "USEREC_DATA": str(folder)})

    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"expected toy\.csv"):
        ask(tmp_path / "empty")
    with pytest.raises(UserError, match="does not exist"):
        ask(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="not a folder"):
        ask(tmp_path / "file")


def test_the_sample_is_written_once_and_whole(tmp_path: Path, environ: dict[str, str]) -> None:
    Toy.written.clear()
    home, sample = home_of(Toy, None, environ)
    assert sample
    assert home_of(Toy, None, environ) == (home, True)
    assert len(Toy.written) == 1
    assert Toy.written[0] != home
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_the_sample_can_be_asked_for_although_the_data_are_there(tmp_path: Path, environ: dict[str, str]) -> None:
    put(tmp_path / "cache/data")
    assert home_of(Toy, tmp_path / "cache/data", environ, force_sample=True)[1]
    assert not home_of(Toy, None, environ)[1]


def test_without_sample_the_expected_file_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"expected toy\.csv"):
        home_of(Bare, None, environ)
    with pytest.raises(UserError, match="no sample"):
        home_of(Bare, None, environ, force_sample=True)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="USEREC_CACHE"):
        home_of(Toy, None, {"USEREC_CACHE": str(tmp_path / "file")})
