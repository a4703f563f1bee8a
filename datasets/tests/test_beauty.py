"""Beauty: S3-Rec's layout, plain and gzipped, with and without attributes; bad files; the published sizes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from userec_datasets.beauty import ATTRIBUTES, EVENTS, Beauty

from userec.config import Config
from userec.dataset.events import code
from userec.dataset.split import SplitConfig, divide
from userec.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared/data"
TEXT = "7 30 10 20\n3 20 30 10 40\n"
LISTS = {"10": [5, 2], "20": [2], "40": [], "99": [5]}


def write(folder: Path, text: str = TEXT, attributes: object = LISTS, suffix: str = "") -> None:
    """Both files; no second one where `attributes` is None."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((EVENTS, text), (ATTRIBUTES, None if attributes is None else json.dumps(attributes))):
        if content is not None:
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(content.encode()) if suffix else content.encode())


def opened(folder: Path) -> Beauty:
    """As `--data-dir` finds it."""
    return Beauty(Config(), Beauty.locate(folder))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "beauty", "s3rec_beauty"])
def test_every_layout_reads_the_same(tmp_path: Path, folder: str, suffix: str) -> None:
    write(tmp_path / folder, suffix=suffix)
    data = opened(tmp_path)
    assert data.events().to_dict("list") == {"user": [7, 7, 7, 3, 3, 3, 3], "item": [30, 10, 20, 20, 30, 10, 40]}
    items = data.items()
    assert items is not None
    assert items.to_dict("list") == {"item": [10, 20, 40, 99], "item.attributes": [[5, 2], [2], [], [5]]}
    assert len(data.sources()) == 2
    assert data.notes() == []


def test_order_and_attributes_reach_the_coded_data(tmp_path: Path) -> None:
    write(tmp_path)
    coded = code(opened(tmp_path))
    division = divide(coded, SplitConfig())
    assert division.name == "leave_last"
    asked = {
        (split, int(coded.vocabulary["user"].values[user])): int(coded.vocabulary["item"].decode([answer])[0])
        for split in ("valid", "test")
        for user, answer in zip(division.questions[split, "next"].user, division.questions[split, "next"].ids, strict=True)
    }
    assert asked == {("test", 7): 20, ("valid", 7): 10, ("test", 3): 40, ("valid", 3): 10}
    attributes = coded.catalog["item"]["item.attributes"]
    names = coded.vocabulary["item.attributes"]
    found = {
        int(item): sorted(names.decode(row[row > 0]).tolist())
        for item, row in zip(coded.vocabulary["item"].values, attributes[2:], strict=True)
    }
    assert found == {10: [2, 5], 20: [2], 30: [], 40: []}  # 30 has no row; 99 is in no history
    assert any("1 items of the catalogue are left out" in note for note in coded.notes)


def test_without_attributes_it_is_told(tmp_path: Path) -> None:
    write(tmp_path, attributes=None)
    data = opened(tmp_path)
    assert data.items() is None
    assert len(data.sources()) == 1
    assert any(ATTRIBUTES in note for note in data.notes())
    assert "item.attributes" not in code(data).schema.fields


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 2\n3\n", f"{EVENTS}, line 2: 1 ids, expected at least 2; a line holds a user and his items"),
        ("1 2 B00004\n", f"{EVENTS}, line 1: 'B00004' is not a whole number"),
        ("", f"{EVENTS} has no line"),
        ("1 2\n5 3\n5 4\n", "user 5 stands on 2 lines; a user has one"),
    ],
)
def test_bad_sequences_are_told(tmp_path: Path, text: str, says: str) -> None:
    write(tmp_path, text)
    with pytest.raises(UserError) as told:
        opened(tmp_path).events()
    assert says in str(told.value)


@pytest.mark.parametrize(
    ("attributes", "says"),
    [
        ([1, 2], "holds a list, expected a mapping"),
        ({"x1": [1]}, "'x1' has [1], expected"),
        ({"10": 4}, "'10' has 4, expected"),
        ({"10": [1, "Hair"]}, "'10' has [1, \"Hair\"], expected"),
        ({"10": [True]}, "'10' has [true], expected"),
        ({"9" * 20: [1]}, f"'{'9' * 20}' has [1], expected an item's number up to {2**63 - 1} and"),
        ({"9" * 5000: [1]}, "has [1], expected"),
        ({"10": [1, 2**63]}, "'10' has [1, 9223372036854775808], expected"),
    ],
)
def test_bad_attributes_are_told(tmp_path: Path, attributes: object, says: str) -> None:
    write(tmp_path, attributes=attributes)
    with pytest.raises(UserError) as told:
        opened(tmp_path).items()
    assert ATTRIBUTES in str(told.value)
    assert says in str(told.value)


@pytest.mark.parametrize(("content", "suffix", "says"), [(b"{", "", "is not JSON"), (b"{}", ".gz", "cannot be read")])
def test_attributes_of_another_kind_are_told(tmp_path: Path, content: bytes, suffix: str, says: str) -> None:
    write(tmp_path, attributes=None)
    (tmp_path / f"{ATTRIBUTES}{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=says):
        opened(tmp_path).items()


def test_no_file_is_told_with_the_expected_name_and_what_is_fetched_is_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=EVENTS):
        Beauty.locate(tmp_path)
    with pytest.raises(UserError, match=EVENTS):
        Beauty(Config(), tmp_path).events()
    assert Beauty.source is not None
    assert Beauty.source.file in Beauty.files


def test_the_samples_attributes_tell_the_clusters(tmp_path: Path) -> None:
    Beauty.write_sample(tmp_path)
    data = opened(tmp_path)
    items = data.items()
    assert items is not None
    assert set(items["item"]) >= set(data.events()["item"])
    categories = {values[0] for values in items["item.attributes"]}
    brands = {values[1] for values in items["item.attributes"]}
    assert len(categories) == 25
    assert not categories & brands


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "s3rec_beauty").is_dir(), reason="no ../shared/data/s3rec_beauty")
def test_the_published_file() -> None:
    data = opened(REAL)
    coded = code(data)
    division = divide(coded, SplitConfig())
    lines = gzip.decompress(data.sources()[0].read_bytes()).decode().splitlines()
    assert (len(coded.events), coded.events.users, coded.schema.spaces["item"] - 2) == (198_502, 22_363, 12_101)
    assert len(division.questions["test", "next"]) == len(division.questions["valid", "next"]) == 22_363
    last = {int(line.split()[0]): int(line.split()[-1]) for line in lines}
    asked = division.questions["test", "next"]
    answers = coded.vocabulary["item"].decode(asked.ids).tolist()
    assert dict(zip(coded.vocabulary["user"].values[asked.user].tolist(), answers, strict=True)) == last
    attributes = coded.catalog["item"]["item.attributes"]
    assert (attributes[2:, 0] > 0).all()
    assert coded.schema.spaces["item.attributes"] - 2 == 637
