"""Lines of ids: layouts of text, plain and gzipped, against a plain reading; the first bad line is named."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from userec_datasets.lines import LARGEST, find, read_lines

from userec.errors import UserError

LIST = st.lists(st.lists(st.integers(0, LARGEST), min_size=1, max_size=6), min_size=1, max_size=20)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(rows=LIST, blank=st.sampled_from(["\n", "\n\n", "\r\n", " \n", "\n \t \n"]), gap=st.sampled_from([" ", "\t", "  "]))
def test_lines_are_what_a_plain_reading_finds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[int]], blank: str, gap: str
) -> None:
    path = tmp_path_factory.mktemp("lines") / "x.txt"
    path.write_bytes("".join(gap.join(map(str, row)) + blank for row in rows).encode())
    lines = read_lines(path, least=1, holds="items")
    bounds = lines.offsets.tolist()
    assert [lines.ids[low:high].tolist() for low, high in pairwise(bounds)] == rows
    assert lines.lengths.tolist() == [len(row) for row in rows]
    assert len(lines) == len(rows)


def test_a_file_of_several_blocks_is_read_whole(tmp_path: Path) -> None:
    count = 600_000  # beyond a block of 16 MiB
    (tmp_path / "x.txt").write_text("".join(f"{n} 12345678 12345678 12345678\n" for n in range(count)))
    lines = read_lines(tmp_path / "x.txt", least=1, holds="items")
    assert (lines.lengths == 4).all()
    assert (lines.ids[::4] == range(count)).all()


def test_plain_or_gzipped_in_any_of_the_folders(tmp_path: Path) -> None:
    assert find(tmp_path, "x.txt", ("", "sub/")) is None
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.txt.gz").write_bytes(gzip.compress(b"1 2\n3\n"))
    found = find(tmp_path, "x.txt", ("", "sub/"))
    assert found == tmp_path / "sub" / "x.txt.gz"
    assert read_lines(found, least=1, holds="items").ids.tolist() == [1, 2, 3]
    (tmp_path / "x.txt").write_text("4 5\n")
    assert find(tmp_path, "x.txt", ("", "sub/")) == tmp_path / "x.txt"


BAD = {
    "a word": ("1 two 3", "line 4: 'two' is not a whole number"),
    "a hexadecimal": ("1 0x1f", "line 4: '0x1f' is not"),
    "a negative id": ("1 -2", "line 4: '-2' is not"),
    "a decimal": ("1 2.0", "line 4: '2.0' is not"),
    "commas": ("1,2,3", "line 4: '1,2,3' is not"),
    "too large": (f"1 {2**63}", f"line 4: the id {2**63} is above"),
    "far too large": (f"1 1{'0' * 5000}", "line 4: the id 1000000"),
    "too short": ("1", "line 4: 1 ids, expected at least 2"),
    "a byte that is no text": ("1 \xff", "line 4: '\ufffd' is not"),
    "a control sign": ("1\x012", "line 4: '1\\x012' is not"),
    "digits of another script": ("1 \u0663", "line 4: '\u0663' is not"),
}


@pytest.mark.parametrize(("suffix", "more"), [("", ""), (".gz", ""), ("", "nor this\n")])
@pytest.mark.parametrize("name", BAD)
def test_the_first_bad_line_is_named(tmp_path: Path, name: str, suffix: str, more: str) -> None:
    bad, says = BAD[name]
    content = "\ufeff1 2\n\n3 4\n".encode() + bad.encode("latin-1" if "byte" in name else "utf-8") + b"\n5 6\n" + more.encode()
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(UserError) as told:
        read_lines(path, least=2, holds="a user and items")
    assert str(told.value).startswith(f"{path}, {says}")
    assert str(told.value).endswith("a line holds a user and items")
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(UserError, match="has no line"):
        read_lines(tmp_path / "x.txt", least=1, holds="items")


def test_a_file_that_is_cut_or_no_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.gz"
    whole = gzip.compress("".join(f"{n} {n * 7919 % 1009}\n" for n in range(5000)).encode())
    for damaged in (whole[: len(whole) // 2], whole[:3000] + bytes(50) + whole[3050:], b"1 2\n"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read") as told:
            read_lines(path, least=1, holds="items")
        assert len(str(told.value).splitlines()) == 1
