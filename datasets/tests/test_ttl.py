"""TTL: the published layout, users as distinct rows, absent files, bad rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from userec_datasets.ttl import FILES, TTL

from userec.config import Config
from userec.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared/data/ttl_format"


def row(*ids: int) -> str:
    """100 ids, padded on the left."""
    return ",".join(map(str, [0] * (100 - len(ids)) + list(ids)))


def write(home: Path, **files: list[str]) -> TTL:
    """The data set of these lines by task."""
    home.mkdir(parents=True, exist_ok=True)
    for task, lines in files.items():
        (home / FILES[task]).write_text("".join(f"{line}\n" for line in lines))
    return TTL(Config(), home)


def test_a_user_is_a_distinct_row_across_files(tmp_path: Path) -> None:
    data = write(
        tmp_path,
        watch=[row(7, 8, 9), row(8, 7, 9), row(7, 8, 9)],
        click=[f"{row(8, 7, 9)},,5,6", f"{row(99, 7)},,5"],
        gender=[f"{row(99, 7)},,1", f"{row(7, 8, 9)},,2"],
    )
    events = data.events()
    histories = {user: rows["item"].tolist() for user, rows in events.groupby("user")}
    assert histories == {1: [7, 8, 9], 2: [8, 7, 9], 3: [99, 7]}
    click, gender = data.labels("click"), data.labels("gender")
    assert click is not None
    assert gender is not None
    assert [histories[user] for user in click["user"]] == [[8, 7, 9], [8, 7, 9], [99, 7]]
    assert click["id"].tolist() == [5, 6, 5]
    assert [histories[user] for user in gender["user"]] == [[99, 7], [7, 8, 9]]
    assert any("1 in watch" in note for note in data.notes())
    assert any(note.startswith("1 users appear in a task's file only") for note in data.notes())


def test_absent_files_leave_their_tasks_out_in_one_line(tmp_path: Path) -> None:
    data = write(tmp_path / "ColdRec", watch=[row(1, 2)], like=[f"{row(1, 2)},,3"])
    data = TTL(Config(), TTL.locate(tmp_path))
    assert [group[0].name for group in data.tasks] == ["watch", "like"]
    assert len([note for note in data.notes() if FILES["age"] in note and FILES["gender"] in note]) == 1
    assert data.labels("age") is None
    assert data.labels("watch") is None
    assert [path.parent.name for path in data.sources()] == ["ColdRec", "ColdRec"]


def test_without_t1_the_sources_of_the_other_files_are_the_events(tmp_path: Path) -> None:
    data = write(tmp_path, age=[f"{row(4, 5)},,7"])
    assert [group[0].name for group in data.tasks] == ["age"]
    assert data.events()["item"].tolist() == [4, 5]


def test_no_file_at_all_is_told_with_the_expected_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=FILES["watch"]):
        TTL.locate(tmp_path)
    with pytest.raises(UserError, match=FILES["watch"]):
        TTL(Config(), tmp_path)


@pytest.mark.parametrize(
    ("task", "bad", "says"),
    [
        ("watch", row(1, 2) + ",3", "line 3: 101 ids"),
        ("watch", row(1).replace("1", "x"), "line 3: 'x' is not an integer"),
        ("watch", row(1)[2:], "line 3: 99 ids"),
        ("watch", row(-7, 2), "line 3: '-7' is not an integer"),
        ("click", row(7, 2) + ",,-1", "line 3: '-1' is not an integer"),
        ("watch", row(1) + ",,2", "line 3: expected nothing after"),
        ("watch", row(2**31), "line 3: id 2147483648 is above"),
        ("click", row(1), "line 3: expected `,,`"),
        ("click", row(1) + ",,4,", "line 3: '' is not an integer"),
        ("click", row(1) + ",,__import__('os')", 'line 3: "__import__'),
        ("click", row(1, 2) + ",7,,4", "line 3: 101 ids"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, task: str, bad: str, says: str) -> None:
    tail = "" if task == "watch" else ",,4"
    data = write(tmp_path, **{task: [row(1, 2) + tail, row(3) + tail, bad, row(4) + tail]})
    with pytest.raises(UserError) as told:
        data.events()
    assert FILES[task] in str(told.value)
    assert says in str(told.value)


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    data = write(tmp_path, watch=[row(1)])
    (tmp_path / FILES["watch"]).unlink()
    (tmp_path / FILES["watch"]).mkdir()
    with pytest.raises(UserError, match=rf"{FILES['watch']} cannot be read: "):
        data.events()


def test_an_empty_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no lines"):
        write(tmp_path, watch=[]).events()


def test_padding_only_rows_have_no_events_and_no_labels(tmp_path: Path) -> None:
    data = write(tmp_path, watch=[row(), row(5)], age=[f"{row()},,1", f"{row(5)},,2"])
    labels = data.labels("age")
    assert data.events()["item"].tolist() == [5]
    assert labels is not None
    assert labels["id"].tolist() == [2]
    assert any("padding" in note for note in data.notes())


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / FILES["click"]).write_bytes(f"{row(1, 2)},,3\r\n{row(4)},,5\r\n".encode())
    labels = TTL(Config(), tmp_path).labels("click")
    assert labels is not None
    assert labels["id"].tolist() == [3, 5]


@pytest.mark.real
@pytest.mark.skipif(not REAL.is_dir(), reason="no ../shared/data/ttl_format")
def test_the_published_example_is_read() -> None:
    data = TTL(Config(), TTL.locate(REAL))
    assert [group[0].name for group in data.tasks] == ["watch", "click"]
    watch = (REAL / FILES["watch"]).read_text().split()
    assert len(data.events()) == sum(cell != "0" for line in set(watch) for cell in line.split(","))
    clicks = (REAL / FILES["click"]).read_text().split()
    labels = data.labels("click")
    assert labels is not None
    assert len(labels) == sum(len(line.split(",,")[1].split(",")) for line in set(clicks))
