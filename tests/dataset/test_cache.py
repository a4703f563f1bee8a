"""The cache: equal to coding anew, keyed by content, whole or rebuilt."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from userec.config import Config
from userec.dataset import cache as caching
from userec.dataset.cache import load
from userec.dataset.contract import Dataset
from userec.dataset.events import Coded, code
from userec.schema import NEXT, Field, Task


class Rich(Dataset):
    """Something of everything that is cached."""

    name = "rich"
    fields = {"item.genres": Field("item.genres", many=True)}
    tasks = ((NEXT,), (Task("age", "label", "age"),))
    files = ("events.csv",)
    default_split = "by_user"
    reads = 0

    class Config(Config):
        """One setting, to be part of the key."""

        least: int = 0

    def events(self) -> pd.DataFrame:
        type(self).reads += 1
        return pd.read_csv(self.home / "events.csv").assign(split=["train", "train", "test"])

    def users(self) -> pd.DataFrame:
        return pd.DataFrame({"user": ["ü", "b"], "profile.age": [1, 2]})

    def items(self) -> pd.DataFrame:
        return pd.DataFrame({"item": [10, 20], "item.genres": [["x"], ["x", "y"]]})

    def labels(self, task: str) -> pd.DataFrame:
        return pd.DataFrame({"user": ["ü"], "id": [30], "time": [2]})

    def notes(self) -> list[str]:
        return ["a note of its own"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "events.csv").write_text("user,item,time,rating\nü,10,1,0.5\nb,20,2,1\nü,20,3,1\n", encoding="utf-8")
    return tmp_path


def rich(home: Path, **settings: int) -> Rich:
    return Rich(Rich.Config(**settings), home)


def assert_same(one: Coded, other: Coded) -> None:
    assert (one.name, one.schema, one.notes, one.default_split) == (other.name, other.schema, other.notes, other.default_split)
    found, wanted = dict(caching._arrays(one)), dict(caching._arrays(other))
    assert found.keys() == wanted.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(array, wanted[path])
        assert array.dtype == wanted[path].dtype
    for space, vocabulary in one.vocabulary.items():
        assert vocabulary.values.tolist() == other.vocabulary[space].values.tolist()
        assert vocabulary.values.dtype == other.vocabulary[space].values.dtype


def test_a_cached_data_set_equals_one_coded_anew(home: Path, tmp_path: Path) -> None:
    first, second = load(rich(home), tmp_path / "cache"), load(rich(home), tmp_path / "cache")
    assert_same(first, code(rich(home)))
    assert_same(second, first)
    assert isinstance(second.events.fields["item"].base, np.memmap)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.name.startswith(".")]


def test_it_is_read_once_and_again_when_anything_changes(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    before = Rich.reads
    load(rich(home), cache)
    load(rich(home), cache)
    assert Rich.reads == before + 1
    load(rich(home, least=1), cache)
    assert Rich.reads == before + 2
    (home / "events.csv").write_text("user,item,time,rating\nü,10,1,0.5\nb,20,2,1\nb,20,3,1\n", encoding="utf-8")
    assert load(rich(home), cache).events.lengths.tolist() == [2, 1]
    (home / "other.py").write_text("changed")
    monkeypatch.setattr(caching.coding, "__file__", str(home / "other.py"))
    load(rich(home), cache)
    assert Rich.reads == before + 4


def test_the_names_of_the_sources_are_part_of_the_key(home: Path) -> None:
    class Any(Rich):
        """Whatever file lies there."""

        def sources(self) -> list[Path]:
            return sorted(self.home.glob("*.csv"))

    before = caching._key(Any(Rich.Config(), home))
    (home / "events.csv").rename(home / "clicks.csv")
    assert before != caching._key(Any(Rich.Config(), home))


def test_the_whole_package_of_a_data_set_is_part_of_the_key(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = home / "a_package"
    package.mkdir()
    (package / "__init__.py").write_text("from a_package.data import Own\n")
    (package / "data.py").write_text(
        "from userec.dataset.contract import Dataset\nfrom a_package import deep\n"
        "class Own(Dataset):\n    name = 'own'\n    files = ('events.csv',)\n    events = deep.events\n"
    )
    (package / "deep.py").write_text("def events(self):\n    pass\n")
    monkeypatch.syspath_prepend(str(home))
    own = importlib.import_module("a_package").Own
    before = caching._key(own(Config(), home))
    assert before == caching._key(own(Config(), home))
    (package / "deep.py").write_text("def events(self):\n    return None\n")
    after = caching._key(own(Config(), home))
    assert before != after
    for core in ("schema", "contract"):
        (home / f"{core}.py").write_text("changed")
        monkeypatch.setattr(getattr(caching, core), "__file__", str(home / f"{core}.py"))
        assert after != (after := caching._key(own(Config(), home)))


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "json", "empty json"])
def test_a_damaged_cache_is_rebuilt_with_a_note(home: Path, tmp_path: Path, damage: str) -> None:
    cache = tmp_path / "cache"
    load(rich(home), cache)
    (folder,) = cache.iterdir()
    array, meta = folder / "1.npy", folder / "meta.json"
    if damage == "cut":
        array.write_bytes(array.read_bytes()[:-3])
    elif damage == "flipped":
        content = array.read_bytes()
        array.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        array.unlink()
    else:
        meta.write_text("{" if damage == "json" else "{}")
    rebuilt = load(rich(home), cache)
    assert "was damaged" in rebuilt.notes[-1]
    np.testing.assert_array_equal(rebuilt.events.fields["item"], code(rich(home)).events.fields["item"])
    assert load(rich(home), cache).notes == code(rich(home)).notes


def test_nothing_is_pickled(home: Path, tmp_path: Path) -> None:
    load(rich(home), tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    for path in folder.iterdir():
        assert path.suffix in (".npy", ".json")
        _ = np.load(path, allow_pickle=False) if path.suffix == ".npy" else json.loads(path.read_text(encoding="utf-8"))


def test_without_a_cache_or_where_it_cannot_be_written(home: Path, tmp_path: Path) -> None:
    assert_same(load(rich(home), None), code(rich(home)))
    (tmp_path / "file").write_text("in the way")
    assert "cannot be written" in load(rich(home), tmp_path / "file" / "cache").notes[-1]
