"""`userec data`: list, fetch and describe, on data sets of our own making."""

from __future__ import annotations

import json
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from userec.cli import output
from userec.cli.data import app, summarise
from userec.config import Config
from userec.dataset.contract import Dataset, Source
from userec.errors import UserError, unknown
from userec.schema import NEXT, Field, Task


class Shop(Dataset):
    """Two users, a class each, a tie and a double."""

    name = "shop"
    summary = "a toy"
    files = ("shop/events.csv", "events.csv")
    fields = {"profile.age": Field("profile.age")}
    tasks = ((NEXT,), (Task("age", "label", "profile.age"),), (Task("like", "item", "like"),))

    def events(self) -> pd.DataFrame:
        """Seven events."""
        path = next(self.home / file for file in self.files if (self.home / file).is_file())
        return pd.read_csv(path)

    def users(self) -> pd.DataFrame:
        """One field."""
        return pd.DataFrame({"user": [1, 2], "profile.age": [30, 40]})

    def labels(self, task: str) -> pd.DataFrame | None:
        """Ages; no likes."""
        return pd.DataFrame({"user": [1, 2], "id": [30, 40]}) if task == "age" else None

    def notes(self) -> list[str]:
        """One."""
        return ["like is left out"]

    @classmethod
    def write_sample(cls, home: Path) -> bool:
        """The seven events."""
        (home / "events.csv").write_text("user,item,time\n1,a,0\n1,b,0\n1,c,86400\n2,a,5\n2,a,5\n2,b,6\n2,c,7\n")
        return True


class Linked(Dataset):
    """Lies on a drive, in a folder."""

    name = "linked"
    files = ("linked.csv",)
    source = Source("https://drive.google.com/drive/folders/1AbC", "linked.zip")

    def events(self) -> pd.DataFrame:
        """Never read."""
        return pd.DataFrame()


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs the sub-application with these data sets, a cache of its own and no USEREC_DATA."""
    classes = {"shop": Shop, "linked": Linked}

    def find(kind: str, name: str) -> type[Dataset]:
        if name not in classes:
            raise unknown("data set", name, classes)
        return classes[name]

    registry = SimpleNamespace(plugins={"datasets": classes}, origins={}, find=find)
    monkeypatch.setattr(output, "registry_of", lambda ctx: registry)
    monkeypatch.setenv("USEREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("USEREC_DATA", raising=False)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Serves `shop.archive`, a zip file, from a folder of its own."""
    root = tmp_path / "served"
    root.mkdir()
    with zipfile.ZipFile(root / "shop.archive", "w") as archive:
        archive.writestr("shop/events.csv", "user,item,time\n1,a,0\n")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(root))) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()


def test_list_tells_tasks_and_where_each_lies(invoke: Any, tmp_path: Path) -> None:
    Shop.write_sample(tmp_path)
    rows = {row["name"]: row for row in json.loads(invoke("list", "--data-dir", tmp_path, "--json").output)}
    assert rows["shop"]["tasks"] == ["next", "age", "like"]
    assert rows["shop"]["found"] == str(tmp_path)
    assert rows["shop"]["sample"] is True
    assert rows["linked"]["found"] is None
    assert rows["linked"]["sample"] is False
    plain = invoke("list").output
    assert "not here, sample" in plain
    assert "next, age, like" in plain


def test_fetch_unpacks_what_came_and_leaves_the_original_layout(
    invoke: Any, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shop, "source", Source(f"{server}/shop.archive", "shop.archive", terms="for tests only"))
    done = invoke("fetch", "shop", "--data-dir", tmp_path / "data")
    assert done.exit_code == 0, done.exception
    assert "terms: for tests only" in done.output
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "data").rglob("*.*")] == ["data/shop/shop/events.csv"]
    assert "already" in invoke("fetch", "shop", "--data-dir", tmp_path / "data").output
    facts = json.loads(invoke("describe", "shop", "--data-dir", tmp_path / "data", "--json").output)
    assert (facts["events"], facts["sample"]) == (1, False)


def test_fetch_without_an_address_or_from_a_folder_link_says_what_to_do(invoke: Any, tmp_path: Path) -> None:
    told = invoke("fetch", "shop", "--data-dir", tmp_path).exception
    assert isinstance(told, UserError)
    assert "shop/events.csv" in str(told)
    told = invoke("fetch", "linked", "--data-dir", tmp_path).exception
    assert isinstance(told, UserError)
    assert "https://drive.google.com/drive/folders/1AbC" in str(told)
    assert str(tmp_path / "linked") in str(told)
    assert "did you mean 'shop'" in str(invoke("fetch", "shap").exception)


def test_describe_counts(tmp_path: Path) -> None:
    Shop.write_sample(tmp_path)
    facts = summarise(Shop(Config(), tmp_path))
    assert (facts["users"], facts["items"], facts["events"], facts["duplicates"]) == (2, 3, 7, 1)
    assert facts["length"] == {"mean": 3.5, "median": 3.5, "max": 4}
    assert facts["time"] == {"from": "1970-01-01T00:00:00", "to": "1970-01-02T00:00:00"}
    assert facts["tied"] == pytest.approx(2 / 5)
    assert facts["fields"] == ["user", "item", "time", "profile.age"]
    age, like = facts["tasks"][1:]
    assert age["counts"] == {"30": 1, "40": 1}
    assert (like["answers"], like["classes"]) == (0, 0)


def test_describe_says_that_it_read_the_sample(invoke: Any) -> None:
    done = invoke("describe", "shop")
    assert done.exit_code == 0, done.exception
    assert done.output.startswith("shop@sample: the embedded generated sample")
    assert "note: like is left out" in done.output
    assert json.loads(invoke("describe", "shop@sample", "--json").output)["sample"] is True


def test_describe_a_file_of_ones_own(invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("uid,iid\n1,a\n1,b\n2,a\n")
    done = invoke("describe", tmp_path / "mine.csv", "--columns", "user=uid,item=iid", "--json")
    assert done.exit_code == 0, done.exception
    facts = json.loads(done.output)
    assert (facts["name"], facts["users"], facts["items"], facts["events"], facts["repeats"]) == ("mine", 2, 2, 3, 0)
    assert "time" not in facts


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("absent.csv", "no such file: absent.csv"),
        ("absent.csv.gz", "no such file: absent.csv.gz"),
        ("./folder", "folder is a folder: name the file in it"),
        ("folder", "folder is a folder: name the file in it"),
        ("shap", "unknown data set 'shap'"),
    ],
)
def test_a_file_or_folder_is_told_from_a_name(
    invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("folder", "shop"):
        (tmp_path / name).mkdir()
    told = invoke("describe", ref).exception
    assert isinstance(told, UserError)
    assert message in str(told)
    assert invoke("describe", "shop").exit_code == 0  # a name of a data set, although a folder is called so
