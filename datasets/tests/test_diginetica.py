"""Diginetica: two files of sessions, plain and gzipped; what trains, validates and tests; bad files; the published sizes."""

from __future__ import annotations

import gzip
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from userec_datasets.diginetica import TEST, TRAIN, Diginetica, DigineticaConfig

from userec.dataset.events import Coded, code
from userec.dataset.split import Division, SplitConfig, divide
from userec.errors import UserError

REAL = Path(__file__).resolve().parents[3] / "shared/data"
SESSIONS = "1 2\n3 4 3\n5 6 1\n4 4\n"
PREFIXES = "6 5 4\n6 5\n2 2\n"


def write(folder: Path, train: str = SESSIONS, test: str | None = PREFIXES, suffix: str = "") -> None:
    """Both files; no second one where `test` is None."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((TRAIN, train), (TEST, test)):
        if content is not None:
            (folder / f"{name}{suffix}").write_bytes(gzip.compress(content.encode()) if suffix else content.encode())


def opened(folder: Path, **config: float) -> Diginetica:
    """As `--data-dir` finds it."""
    return Diginetica(DigineticaConfig(**config), Diginetica.locate(folder))


def questions(coded: Coded, division: Division, split: str) -> list[tuple[list[int], list[int]]]:
    """(history, answers) in external ids, sorted."""
    asked, items = division.questions[split, "next"], coded.vocabulary["item"]
    starts = coded.events.offsets[asked.user]
    history = [items.decode(coded.events.fields["item"][low:high]).tolist() for low, high in zip(starts, asked.end, strict=True)]
    answers = [items.decode(asked.ids[low:high]).tolist() for low, high in zip(asked.offsets, asked.offsets[1:], strict=False)]
    return sorted(zip(history, answers, strict=True))


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "diginetica", "diginetica_sessions"])
def test_every_layout_reads_the_same(tmp_path: Path, folder: str, suffix: str) -> None:
    write(tmp_path / folder, suffix=suffix)
    data = opened(tmp_path, validation=0.5)
    events = data.events()
    assert events["user"].tolist() == [1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7]
    assert events["item"].tolist() == [1, 2, 3, 4, 3, 5, 6, 1, 4, 4, 6, 5, 4, 6, 5, 2, 2]
    assert events["split"].tolist() == ["train"] * 7 + ["valid", "train", "valid"] + ["test"] * 7
    assert len(data.sources()) == 2


def test_each_test_line_is_asked_once_and_none_of_it_trains(tmp_path: Path) -> None:
    write(tmp_path)
    coded = code(opened(tmp_path, validation=0.5))
    division = divide(coded, SplitConfig())
    assert division.name == "given"
    assert questions(coded, division, "test") == [([2], [2]), ([6], [5]), ([6, 5], [4])]
    assert questions(coded, division, "valid") == [([4], [4]), ([5, 6], [1])]
    trained = coded.vocabulary["item"].decode(division.train.fields["item"]).tolist()
    assert trained == [1, 2, 3, 4, 3, 5, 6, 4]


def test_validation_is_the_last_share_and_the_split_decides_where_it_is_none(tmp_path: Path) -> None:
    write(tmp_path)
    for share, count in ((0.25, 1), (0.5, 2), (0.75, 3)):
        coded = code(opened(tmp_path, validation=share))
        assert len(divide(coded, SplitConfig()).questions["valid", "next"]) == count
    coded = code(opened(tmp_path, validation=0))
    assert questions(coded, divide(coded, SplitConfig()), "valid") == [([3, 4], [3]), ([5, 6], [1])]
    assert len(divide(coded, SplitConfig(valid=0)).questions["valid", "next"]) == 0


def test_a_session_of_one_click_is_trained_on_and_not_asked(tmp_path: Path) -> None:
    write(tmp_path, train="1 2\n2 1\n3\n")
    coded = code(opened(tmp_path, validation=0.4))
    assert coded.split is not None
    assert coded.split.tolist() == [0] * 5 + [2] * 7
    assert any(note.startswith("1 users have one event") for note in coded.notes)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"train": "1 2\nx\n"}, f"{TRAIN}, line 2: 'x' is not a whole number; a line holds the items of a session"),
        ({"test": "1 2\n\n3\n"}, f"{TEST}, line 3: 1 ids, expected at least 2; a line holds the items before a target"),
        ({"train": ""}, f"{TRAIN} has no line"),
        ({"test": ""}, f"{TEST} has no line"),
        ({"test": None}, f"{TEST} is not in"),
    ],
)
def test_bad_files_are_told(tmp_path: Path, files: dict[str, str], says: str) -> None:
    write(tmp_path, **files)
    with pytest.raises(UserError) as told:
        opened(tmp_path).events()
    assert says in str(told.value)
    assert len(str(told.value).splitlines()) == 1


def test_no_file_is_told_with_both_names_and_no_fetch_is_promised(tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        Diginetica.locate(tmp_path)
    assert TRAIN in str(told.value)
    assert TEST in str(told.value)
    assert "no public address" in str(told.value)
    assert "fetch" not in str(told.value)
    assert Diginetica.source is None


def test_the_samples_test_lines_are_prefixes_of_sessions_that_do_not_train(tmp_path: Path) -> None:
    Diginetica.write_sample(tmp_path)
    lines = [line.split() for line in (tmp_path / TEST).read_text().splitlines()]
    longest = [line for before, line in zip([[], *lines], lines, strict=False) if len(line) >= len(before)]
    assert len(longest) == 200
    for before, line in pairwise(lines):
        assert len(before) == 2 or line == before[:-1]
    coded = code(opened(tmp_path))
    found = divide(coded, SplitConfig()).questions
    assert len(found["valid", "next"]) == 50
    assert len(found["test", "next"]) == len(lines)


@pytest.mark.real
@pytest.mark.skipif(not (REAL / "diginetica_sessions").is_dir(), reason="no ../shared/data/diginetica_sessions")
def test_the_published_sessions() -> None:
    start = time.process_time()
    data = opened(REAL)
    events = data.events()
    assert time.process_time() - start < 4
    train, test = (gzip.decompress(path.read_bytes()).decode().splitlines() for path in data.sources())
    assert (len(train), len(test)) == (186_670, 60_858)
    assert (events["split"] != "test").sum() == 906_140
    assert events["item"].tolist() == list(map(int, " ".join(train + test).split()))
    coded = code(data)
    division = divide(coded, SplitConfig())
    assert coded.schema.spaces["item"] - 2 == 43_097
    asked = division.questions["test", "next"]
    answers = dict(zip(coded.vocabulary["user"].values[asked.user].tolist(), asked.ids.tolist(), strict=True))
    wanted = {len(train) + number: int(line.split()[-1]) for number, line in enumerate(test, start=1)}
    assert {user: int(coded.vocabulary["item"].decode([answer])[0]) for user, answer in answers.items()} == wanted
    assert len(division.questions["valid", "next"]) == round(0.05 * len(train))
    assert len(division.train) == 906_140 - round(0.05 * len(train))
    assert np.isin(division.train.owner, np.arange(len(train))).all()
