"""Ids: two spellings never meet, and no two ids are one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.dataset.events import Vocabulary, code
from userec.dataset.table import TableDataset
from userec.errors import UserError

BIG = 2**63


def items(path: Path, **settings: object) -> list[object]:
    """The distinct items of a file, sorted."""
    return code(TableDataset(TableDataset.Config(path=str(path), **settings))).vocabulary["item"].values.tolist()  # type: ignore[arg-type]


@given(st.lists(st.from_regex(r"[-+0]?[0-9]{1,20}|1e3|true|NA|nan|null|0x1f|x", fullmatch=True), min_size=1, max_size=8))
@settings(derandomize=True, deadline=None, max_examples=80)
def test_every_spelling_of_a_file_is_an_id_of_its_own(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("ids")
    (folder / "e.csv").write_text("user,item\n" + "".join(f"1,{name}\n" for name in names))
    (folder / "e.txt").write_text(" ".join(names) + "\n")
    for name in ("e.csv", "e.txt"):
        assert sorted(map(str, items(folder / name))) == sorted(set(names))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["7", "-3", "7"], [-3, 7]),
        (["007", "7"], ["007", "7"]),
        (["1e3", "1000"], ["1000", "1e3"]),
        (["true", "1"], ["1", "true"]),
        (["12345678901234567890", "12345678901234567891"], ["12345678901234567890", "12345678901234567891"]),
        (["NA", "null", "None", "nan"], ["NA", "None", "nan", "null"]),
    ],
)
def test_text_becomes_a_number_only_where_it_is_written_so(tmp_path: Path, names: list[str], expected: list[object]) -> None:
    (tmp_path / "e.csv").write_text("user,item\n" + "".join(f"1,{name}\n" for name in names))
    (tmp_path / "e.txt").write_text(" ".join(names) + "\n")
    assert items(tmp_path / "e.csv") == items(tmp_path / "e.txt") == expected


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_missing_session_leaves_the_others_whole(tmp_path: Path, suffix: str) -> None:
    frame = pd.DataFrame({"user": 1, "item": 2, "session": pd.array([10**18 + 1, None, 10**18 + 2], dtype="Int64")})
    path = tmp_path / f"e.{suffix}"
    _ = frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    coded = code(TableDataset(TableDataset.Config(path=str(path))))
    assert coded.vocabulary["session"].values.tolist() == [10**18 + 1, 10**18 + 2]
    assert coded.events.fields["session"].tolist() == [2, 1, 3]


@pytest.mark.parametrize(
    "values",
    [
        np.array([BIG, BIG + 1], np.uint64),
        np.array([BIG, BIG + 1], object),
        np.array([-BIG, 2 * BIG], object),
    ],
)
def test_numbers_beyond_int64_are_text(values: np.ndarray) -> None:
    from userec.dataset.ids import external

    assert external(pd.Series(values)).tolist() == [str(value) for value in values.tolist()]


def test_uint64_of_a_parquet_file_keeps_its_sign(tmp_path: Path) -> None:
    pd.DataFrame({"user": [1, 1], "item": np.array([BIG, BIG + 5], np.uint64)}).to_parquet(tmp_path / "e.parquet")
    assert items(tmp_path / "e.parquet") == [str(BIG), str(BIG + 5)]


def test_floats_are_ids_only_where_they_can_tell_neighbours_apart(tmp_path: Path) -> None:
    pd.DataFrame({"user": [1, 1], "item": [2.0, 3.0]}).to_parquet(tmp_path / "e.parquet")
    assert items(tmp_path / "e.parquet") == [2, 3]
    pd.DataFrame({"user": [1, 1], "item": [2.0, 2.0**53]}).to_parquet(tmp_path / "e.parquet")
    with pytest.raises(UserError, match=r"'item' holds 9007199254740992\.0 .*save it as whole numbers or text"):
        items(tmp_path / "e.parquet")


def test_text_asked_of_a_space_of_numbers_is_that_number_only_as_written() -> None:
    for low in (2**62, 5):
        vocabulary = Vocabulary.of([np.array([low, low + 2])])
        asked = np.array([f"0{low}", str(low), f"{low + 1}", f"{low + 2}.0", str(low + 2)], dtype=object)
        assert vocabulary.code(asked).tolist() == [1, 2, 1, 1, 3]
