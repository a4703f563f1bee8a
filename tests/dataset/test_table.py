"""A user's own file: every layout, and every way in which it can be wrong."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pandas as pd
import pytest

from userec.dataset.cache import load
from userec.dataset.events import code
from userec.dataset.split import SplitConfig, divide
from userec.dataset.table import TableDataset, parse_columns, seconds
from userec.errors import UserError

FRAME = pd.DataFrame({"uid": [7, 7, 9], "iid": ["a", "b", "a"], "ts": [30, 20, 10]})
COLUMNS = {"user": "uid", "item": "iid", "time": "ts"}


def table(path: Path, **settings: object) -> TableDataset:
    return TableDataset(TableDataset.Config(path=str(path), **settings))  # type: ignore[arg-type]


def written(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["events.csv", "events.csv.gz", "events.tsv"])
def test_delimited_files_of_any_separator(tmp_path: Path, name: str, separator: str) -> None:
    path = written(tmp_path / name, FRAME.to_csv(index=False, sep=separator))
    dataset = table(path, columns=COLUMNS)
    assert dataset.name == "events"
    coded = code(dataset)
    assert coded.vocabulary["user"].values.tolist() == [7, 9]
    assert coded.vocabulary["item"].decode(coded.events.fields["item"]).tolist() == ["b", "a", "a"]
    assert coded.events.fields["time"].tolist() == [20, 30, 10]


@pytest.mark.parametrize("zipped", [False, True])
def test_parquet(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "events.parquet"
    FRAME.assign(extra=1).to_parquet(path)
    if zipped:
        path = tmp_path / "events.parquet.gz"
        path.write_bytes(gzip.compress((tmp_path / "events.parquet").read_bytes()))
    found = table(path, columns=COLUMNS).events()
    assert found.columns.tolist() == ["user", "item", "time"]
    assert found["user"].tolist() == [7, 7, 9]


def test_standard_names_need_no_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", "user,item,rating,action,noise,split\n1,2,3.5,pv,x,train\n1,3,4,buy,y,test\n")
    coded = code(table(path))
    assert set(coded.events.fields) == {"item", "rating", "action"}
    assert coded.split is not None
    assert coded.split.tolist() == [0, 2]


def test_a_quoted_header_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", '\ufeff"user","item"\r\n1,2\r\n')
    assert table(path).events()["user"].tolist() == [1]


def test_ids_that_become_text_half_way(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", "user,item\n" + "1,2\n" * 200_000 + "1,x\n")
    assert code(table(path)).vocabulary["item"].values.tolist() == ["2", "x"]


def test_sequences_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "sessions.txt.gz", "1 2 3\n4,5\n\n6\n")
    found = table(path).events()
    assert found["user"].tolist() == [1, 1, 1, 2, 2, 3]
    assert found["item"].tolist() == [1, 2, 3, 4, 5, 6]
    named = table(written(tmp_path / "named.txt", "u 1 2\nv b\n"), layout="user_lines").events()
    assert named["user"].tolist() == ["u", "u", "v"]
    assert named["item"].tolist() == ["1", "2", "b"]
    long = table(written(tmp_path / "long.txt", "99999999999999999999 1_0\n")).events()
    assert long["item"].tolist() == ["99999999999999999999", "1_0"]


def test_prefixes_and_targets_are_new_users(tmp_path: Path) -> None:
    train, test = written(tmp_path / "train.txt", "1 2 3\n4 5\n"), written(tmp_path / "test.txt", "1 2 5\n2 3\n")
    coded = code(table(train, test=str(test)))
    division = divide(coded, SplitConfig())
    asked = division.questions["test", "next"]
    assert coded.vocabulary["user"].values[asked.user].tolist() == [3, 4]
    assert coded.vocabulary["item"].decode(asked.ids).tolist() == [5, 3]
    assert (asked.end - coded.events.offsets[asked.user]).tolist() == [2, 1]
    assert division.questions["valid", "next"].user.tolist() == [0]


def test_a_test_table_is_the_published_test_part(tmp_path: Path) -> None:
    train, test = (
        written(tmp_path / "a.csv", "user,item,time\n1,1,1\n1,2,2\n"),
        written(tmp_path / "b.csv", "user,item,time\n1,3,3\n"),
    )
    coded = code(table(train, test=str(test)))
    assert coded.split is not None
    assert coded.split.tolist() == [0, 0, 2]
    assert table(train, test=str(test)).sources() == [train, test]


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        (["3", "4"], [3, 4]),
        (["3.9", "1e3"], [3, 1000]),
        (["2024-05-01", "2024-05-01T00:00:01Z"], [1714521600, 1714521601]),
        (["2024-05-01 00:00:00.7", "2024-05-01T02:00:00+02:00"], [1714521600, 1714521600]),
        (["1969-12-31T23:59:59", "5"], [-1, 5]),
    ],
)
def test_times(tmp_path: Path, times: list[str], seconds: list[int]) -> None:
    path = written(tmp_path / "e.csv", "user,item,time\n" + "".join(f"1,2,{time}\n" for time in times))
    found = table(path).events()["time"]
    assert found.tolist() == seconds
    assert found.dtype == "int64"


def test_parquet_dates_of_any_unit(tmp_path: Path) -> None:
    for unit in ("s", "ns"):
        frame = pd.DataFrame({"user": [1], "item": [2], "time": pd.to_datetime(["2024-05-01T12:00:01"]).as_unit(unit)})
        frame.to_parquet(tmp_path / "e.parquet")
        assert table(tmp_path / "e.parquet").events()["time"].tolist() == [1714564801]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "e.csv",
            "user_id,item\n1,2\n",
            "no column 'user' for 'user' among user_id, item; did you mean 'user_id'?\nname the columns with --columns",
        ),
        ("e.csv", "user,item,time\n1,2,3\n1,2,soon\n", "no time in row 2: 'soon'; a time is seconds or an ISO date"),
        ("e.csv", "user,item,time\n1,2,3\n1,2,\n", "no time in row 2"),
        ("e.csv", "user,item\n1,2\n,2\n", "no user in row 2 (column 'user')"),
        ("e.csv", "user,item,time\n1,2,3\n1,2,1714564801000\n", "row 2: 1714564801000 looks like milliseconds; divide by 1000"),
        ("e.csv", "user,item,time\n1,2,3\n1,2,1714564801000.5\n", "row 2: 1714564801000.5 looks like milliseconds"),
        ("e.csv", "user,item\n1,2\n\n1,2,3\n1,2\n", "line 4 has 3 cells, the header 2"),
        ("e.csv", "user,item,x\n1,2,3\n1,2\n", "line 3 has 2 cells, the header 3"),
        ("e.csv", "user,item,user\n1,2,3\n", "the column 'user' stands twice; rename one"),
        ("e.csv", "user,item\n", "has no row"),
        ("e.csv", "", "is empty"),
        ("e.txt", "\n", "has no sequence"),
        ("e.parquet", "user,item\n1,2\n", "cannot be read as parquet"),
        ("e.csv", "x" * 200_000, "cannot be read as csv"),
        ("e.csv", "\n\n", "is empty"),
        ("e.xlsx", "x", "unknown layout of 'e.xlsx'"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = written(tmp_path / name, text)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        table(path).events()
    assert len(str(error.value).splitlines()) <= 2


def test_a_cut_or_false_archive_and_an_absent_file(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv.gz", "user,item\n" + "1,2\n" * 999)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"e\.csv\.gz cannot be read as csv"):
        table(path).events()
    path.write_bytes(b"plain")
    with pytest.raises(UserError, match="cannot be read as csv"):
        table(path).events()
    with pytest.raises(UserError, match="no such file"):
        table(tmp_path / "absent.csv").events()
    with pytest.raises(UserError, match="no such file"):
        load(table(tmp_path / "absent.csv"), tmp_path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match=r"folder\.csv is a folder"):
        table(tmp_path / "folder.csv").events()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder is a folder: name the file in it"):
        table(tmp_path / "folder").events()
    with pytest.raises(UserError, match="line 4 names a user and no item"):
        table(written(tmp_path / "e.txt", "u 1\n\n\nv\n"), layout="user_lines").events()


def test_lines_have_no_columns_to_name(tmp_path: Path) -> None:
    path = written(tmp_path / "e.txt", "user\titem\n1\t2\n")
    with pytest.raises(UserError, match=r"a line holds one sequence, so .* cannot name columns; .* set dataset\.layout=tsv"):
        table(path, columns={"user": "user"}).events()
    assert table(path, columns={"user": "user"}, layout="tsv").events()["item"].tolist() == [2]


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    assert table(written(tmp_path / "e.txt", "\ufeff1 2\n")).events()["item"].tolist() == [1, 2]


@pytest.mark.parametrize("name", ["e.csv", "e.txt"])
def test_what_is_not_utf8_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("user,item\n1,café\n".encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name} is not UTF-8 .*; save it as UTF-8"):
        table(tmp_path / name).events()


def test_cells_may_hold_quotes_separators_and_line_ends(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", '"the, user","item\nid",x\n"a, ""b""","c\nd",\n')
    found = table(path, columns={"user": "the, user", "item": "item\nid"}).events()
    assert found.to_dict("list") == {"user": ['a, "b"'], "item": ["c\nd"]}


def test_columns_of_ones_own_are_numbers_where_they_have_a_point(tmp_path: Path) -> None:
    path = written(tmp_path / "e.csv", "user,item,a,b,c,d\n1,2,0.5,3,x,007\n1,2,,,,\n")
    coded = code(table(path, columns={name: name for name in "abcd"}))
    assert [coded.schema.fields[name].kind for name in "abcd"] == ["number", "id", "id", "id"]
    assert coded.vocabulary["b"].values.tolist() == [3]
    assert coded.vocabulary["d"].values.tolist() == ["007"]


def test_a_column_that_pandas_kept_as_its_index_is_a_column(tmp_path: Path) -> None:
    FRAME.set_index("uid").to_parquet(tmp_path / "e.parquet")
    assert table(tmp_path / "e.parquet", columns=COLUMNS).events()["user"].tolist() == [7, 7, 9]


def test_a_missing_time_of_a_parquet_file_is_told(tmp_path: Path) -> None:
    pd.DataFrame({"user": 1, "item": 2, "time": pd.array([3, None], dtype="Int64")}).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(UserError, match="no time in row 2"):
        table(tmp_path / "e.parquet").events()
    with pytest.raises(UserError, match="no time in row 2"):
        seconds(pd.Series([3, None], dtype="Int64"), "here")
    with pytest.raises(UserError, match="row 1: 18446744073709551615 looks like"):
        seconds(pd.Series([2**64 - 1], dtype="uint64"), "here")


def test_columns_are_parsed() -> None:
    assert parse_columns("user=user_id, item=item_id") == {"user": "user_id", "item": "item_id"}
    for text, message in (
        ("user", "is not NAME=COLUMN"),
        ("user=a,user=b", "named twice"),
        ("profile.age=a", "is no field of an event"),
    ):
        with pytest.raises(UserError, match=message):
            parse_columns(text)


GROCERY = Path(__file__).parents[3] / "shared/data/amazon_grocery/train.csv.gz"


@pytest.mark.real
@pytest.mark.skipif(not GROCERY.is_file(), reason="../shared/data is absent")
def test_the_tab_separated_csv_of_grocery() -> None:
    coded = code(table(GROCERY, columns=parse_columns("user=user_id,item=item_id,time=time")))
    assert (coded.events.users, len(coded.events), coded.schema.spaces["item"] - 2) == (14_681, 121_892, 8_687)
