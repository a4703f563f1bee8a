"""MovieLens: GroupLens's three layouts, zipped and unpacked, and what their tables say."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import pytest
from userec_datasets import movielens
from userec_datasets.movielens import MovieLens1M, MovieLens25M, MovieLens100K

from userec.config import Config
from userec.dataset.contract import Dataset
from userec.dataset.events import code
from userec.dataset.split import SplitConfig, divide, target_hash
from userec.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared/data"

MILLION = {
    "ratings.dat": "1::20::5::978300760\n1::30::3::978300760\n2::20::4::978300000\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::70072\n",
    "movies.dat": '20::Amélie, or: "so" (2001)::Comedy|Romance\n30::Nameless::Drama\n40::Unseen (1931)::Drama\n',
}
HUNDRED = {
    "u.data": "1\t20\t5\t881250949\n2\t20\t3\t881250949\n",
    "u.user": "1|24|M|technician|85711\n2|7|F|other|V3N4P\n3|56|F|none|94043\n",
    "u.genre": "unknown|0\nAction|1\nDrama|2\n\n",
    "u.item": "20|Amélie (1995)|01-Jan-1995||http://x/?a=b|0|1|1\n30|None||||1|0|0\n",
}
TWENTY_FIVE = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,20,4.5,1147880044\n1,30,0.5,1147868817\n",
    "movies.csv": 'movieId,title,genres\n20,"Amélie, or: ""so"" (2001)",Comedy|Romance\n30,Nameless,(no genres listed)\n',
}
LAYOUTS = [
    (MovieLens1M, "ml-1m", MILLION, "latin-1"),
    (MovieLens100K, "ml-100k", HUNDRED, "latin-1"),
    (MovieLens25M, "ml-25m", TWENTY_FIVE, "utf-8"),
]


def write(folder: Path, name: str, files: dict[str, str], encoding: str, how: str) -> None:
    """The data set zipped, unpacked in its folder, or its files alone."""
    if how == "zip":
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for file, text in files.items():
                archive.writestr(f"{name}/{file}", text.encode(encoding))
        return
    home = folder / name if how == "folder" else folder
    home.mkdir(exist_ok=True)
    for file, text in files.items():
        (home / file).write_bytes(text.encode(encoding))


@pytest.mark.parametrize("how", ["zip", "folder", "files"])
@pytest.mark.parametrize(("kind", "name", "files", "encoding"), LAYOUTS, ids=lambda value: getattr(value, "name", None))
def test_zipped_and_unpacked_read_the_same(
    tmp_path: Path, kind: type[Dataset], name: str, files: dict[str, str], encoding: str, how: str
) -> None:
    write(tmp_path, name, files, encoding, how)
    data = kind(Config(), kind.locate(tmp_path))
    events, items = data.events(), data.items()
    assert events["item"].tolist()[0] == 20
    assert events["time"].dtype == "int64"
    assert events["rating"].dtype == "float32"
    assert items is not None
    assert items["item.year"].tolist()[0] == (1995 if name == "ml-100k" else 2001)
    assert all(path.is_file() for path in data.sources())
    assert len(data.sources()) == (1 if how == "zip" else len(files))


def test_the_million(tmp_path: Path) -> None:
    write(tmp_path, "ml-1m", MILLION, "latin-1", "folder")
    data = MovieLens1M(Config(), tmp_path)
    assert data.events().to_dict("list")["rating"] == [5.0, 3.0, 4.0]
    items, age = data.items(), data.labels("age")
    assert items["item.genres"].tolist() == [["Comedy", "Romance"], ["Drama"], ["Drama"]]
    assert items["item.year"].isna().tolist() == [False, True, False]
    assert age is not None
    assert age.to_dict("list") == {"user": [1, 2], "id": [1, 56]}
    assert data.labels("next") is None


def test_the_hundred_thousand(tmp_path: Path) -> None:
    write(tmp_path, "ml-100k", HUNDRED, "latin-1", "folder")
    data = MovieLens100K(Config(), tmp_path)
    assert data.users()["profile.age"].tolist() == [18, 1, 56]
    assert data.users()["profile.occupation"].tolist() == ["technician", "other", "none"]
    assert data.items()["item.genres"].tolist() == [["Action", "Drama"], ["unknown"]]


def test_twenty_five_million_has_no_profiles_and_may_have_no_genres(tmp_path: Path) -> None:
    write(tmp_path, "ml-25m", TWENTY_FIVE, "utf-8", "folder")
    data = MovieLens25M(Config(), tmp_path)
    assert data.users() is None
    assert data.items()["item.genres"].tolist() == [["Comedy", "Romance"], []]
    assert [task.name for group in data.tasks for task in group] == ["next", "rating"]


@pytest.mark.parametrize("kind", [MovieLens1M, MovieLens100K])
def test_a_label_task_lives_in_the_space_of_its_profile_field(kind: type[Dataset]) -> None:
    for group in kind.tasks[1:-1]:
        assert kind.fields[group[0].space].space == group[0].space == f"profile.{group[0].name}"


@pytest.mark.parametrize(("kind", "name", "files", "encoding"), LAYOUTS, ids=lambda value: getattr(value, "name", None))
def test_a_rating_is_asked_for_with_what_was_rated_before(
    tmp_path: Path, kind: type[Dataset], name: str, files: dict[str, str], encoding: str
) -> None:
    write(tmp_path, name, files, encoding, "folder")
    data = kind(Config(), tmp_path)
    events, labels = data.events(), data.labels("rating")
    assert data.tasks[-1][0].kind == "rating"
    assert labels is not None
    assert list(labels) == ["user", "id", "value", "time"]
    for label, event in (("user", "user"), ("id", "item"), ("value", "rating"), ("time", "time")):
        assert labels[label].tolist() == events[event].tolist()
    own = code(data).labels["rating"]
    assert (own.end - code(data).events.offsets[own.user]).max() <= 1
    if name == "ml-1m":
        assert own.end.tolist() == [0, 0, 2]  # ratings of one second do not see each other
    if name == "ml-25m":
        assert own.end.tolist() == [0, 1]
        assert own.value.tolist() == [0.5, 4.5]


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.zip").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match=r"ml-1m\.zip cannot be unpacked"):
        MovieLens1M(Config(), tmp_path).events()
    write(tmp_path, "ml-1m", {"users.dat": ""}, "latin-1", "zip")
    with pytest.raises(UserError, match=r"no member ml-1m/ratings\.dat"):
        MovieLens1M(Config(), tmp_path).events()
    with pytest.raises(UserError, match=r"expected ml-100k\.zip"):
        MovieLens100K.locate(tmp_path)


@pytest.mark.parametrize("row", ["1::20::5", "1::20::five::978300760"])
def test_a_bad_rating_is_told(tmp_path: Path, row: str) -> None:
    write(tmp_path, "ml-1m", {"ratings.dat": f"1::20::5::978300760\n{row}\n"}, "latin-1", "folder")
    with pytest.raises(UserError, match="ratings"):
        MovieLens1M(Config(), tmp_path).events()


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("1::20::5::", "no time in row 2"),
        ("::20::5::978300760", "no user in row 2"),
        ("1::20::::978300760", "no rating in row 2"),
    ],
)
def test_an_empty_cell_of_a_rating_is_told(tmp_path: Path, row: str, says: str) -> None:
    write(tmp_path, "ml-1m", {"ratings.dat": f"1::20::5::978300760\n{row}\n"}, "latin-1", "folder")
    with pytest.raises(UserError, match=f"ratings: {says}"):
        MovieLens1M(Config(), tmp_path).events()


def test_a_flipped_byte_is_told(tmp_path: Path) -> None:
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "ml-25m.zip", "w", method) as archive:
            archive.writestr("ml-25m/ratings.csv", TWENTY_FIVE["ratings.csv"] + "1,30,0.5,1147868817\n" * 50)
        whole = (tmp_path / "ml-25m.zip").read_bytes()
        refused = 0
        for at in range(len(whole)):
            (tmp_path / "ml-25m.zip").write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
            try:
                MovieLens25M(Config(), tmp_path).events()
            except UserError:
                refused += 1
        assert refused > len(whole) // 2


@pytest.mark.parametrize("how", ["zip", "folder"])
def test_a_file_without_the_right_to_read_is_told(tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "ml-1m", MILLION, "latin-1", how)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"ml-1m.* cannot be read: Permission denied"):
        MovieLens1M(Config(), tmp_path).events()


def test_a_fault_of_the_reader_is_not_taken_for_an_absent_member(tmp_path: Path) -> None:
    write(tmp_path, "ml-1m", MILLION, "latin-1", "zip")
    with pytest.raises(KeyError, match="mine"), movielens._open(tmp_path, "ml-1m", "ratings.dat"):
        raise KeyError("mine")


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "ml-1m.zip").is_file(), reason="no ../shared/data/ml-1m.zip")
def test_the_real_million_is_read_whole_and_fast() -> None:
    data = MovieLens1M(Config(), MovieLens1M.locate(REAL))
    start = time.process_time()
    events = data.events()
    assert time.process_time() - start < 3
    assert len(events) == 1_000_209
    assert events["user"].nunique() == len(data.users()) == 6040
    assert events["item"].nunique() == 3706
    assert data.items()["item.year"].between(1900, 2001).all()


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "ml-1m.zip").is_file(), reason="no ../shared/data/ml-1m.zip")
def test_a_million_ratings_are_coded_divided_and_hashed_fast() -> None:
    start = time.process_time()
    coded = code(MovieLens1M(Config(), MovieLens1M.locate(REAL)))
    division = divide(coded, SplitConfig(name="by_time"))
    assert time.process_time() - start < 4
    assert len(coded.labels["rating"].user) == 1_000_209
    start = time.process_time()
    assert target_hash(coded, division)
    assert time.process_time() - start < 1
    asked = division.questions["test", "rating"]
    assert len(asked.ids) > 90_000
    assert (asked.end > coded.events.offsets[asked.user]).all()


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "ml-100k.zip").is_file(), reason="no ../shared/data/ml-100k.zip")
def test_the_real_hundred_thousand_is_read_whole() -> None:
    data = MovieLens100K(Config(), MovieLens100K.locate(REAL))
    events = data.events()
    assert (len(events), events["user"].nunique(), events["item"].nunique()) == (100_000, 943, 1682)
    assert data.users()["profile.occupation"].nunique() == 21
    assert (data.items()["item.genres"].str.len() > 0).all()
