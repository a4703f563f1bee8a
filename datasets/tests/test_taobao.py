"""Taobao: Tianchi's layout, zipped and plain, days, categories, bad lines, the sample's purchases; label rules by an oracle."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from userec_datasets import rules
from userec_datasets.rules import HOUR, parse_rule
from userec_datasets.taobao import ACTIONS, CLOSES, FILE, OPENS, Taobao, TaobaoConfig

from userec.dataset.events import code
from userec.dataset.split import SplitConfig, divide
from userec.errors import UserError
from userec.schema import NEXT, Task

REAL = Path(__file__).resolve().parents[3] / "shared/data/taobao"


def row(user: int, item: int, action: str, hour: float, category: int = 7) -> str:
    """A line, `hour` after the published days begin."""
    return f"{user},{item},{category},{action},{OPENS + int(hour * HOUR)}"


LAST = row(9, 99, "pv", 200)
"""So late that no day of another event is cut off."""


def write(home: Path, *lines: str, **config: Any) -> Taobao:
    """The data set of these lines."""
    home.mkdir(parents=True, exist_ok=True)
    (home / FILE).write_bytes("".join(f"{line}\n" for line in lines).encode())
    return Taobao(TaobaoConfig(**config), home)


def asked(data: Taobao) -> dict[tuple[int, int], tuple[float, float]]:
    """{(user, item): (value, hour of the request)} of the data set's rule."""
    table = data.labels(data.tasks[1][0].name)
    assert table is not None
    return {
        (u, i): (v, (t - OPENS) / HOUR) for u, i, v, t in zip(*(table[c] for c in ("user", "id", "value", "time")), strict=True)
    }


@pytest.mark.parametrize("how", ["zip", "folder in zip", "plain", "own folder", "both"])
def test_zipped_and_plain_read_the_same(tmp_path: Path, how: str) -> None:
    text = f"{row(1, 20, 'pv', 1)}\n{row(1, 20, 'buy', 2)}\n{row(2, 30, 'fav', 3)}\n"
    home = tmp_path / "taobao" if how == "own folder" else tmp_path
    home.mkdir(exist_ok=True)
    if how in ("plain", "own folder", "both"):
        (home / FILE).write_text(text if how != "both" else "not read")
    if how in ("zip", "folder in zip", "both"):
        with zipfile.ZipFile(home / f"{FILE}.zip", "w") as archive:
            archive.writestr(f"data/{FILE}" if how == "folder in zip" else FILE, text)
    data = Taobao(TaobaoConfig(), Taobao.locate(tmp_path))
    events = data.events()
    assert len(data.sources()) == 1
    assert events.to_dict("list") == {
        "user": [1, 1, 2],
        "item": [20, 20, 30],
        "action": ["pv", "buy", "fav"],
        "time": [OPENS + HOUR, OPENS + 2 * HOUR, OPENS + 3 * HOUR],
    }
    assert [str(events[name].dtype) for name in ("user", "item", "action", "time")] == ["int32", "int32", "category", "int64"]


def test_events_outside_the_published_days_are_dropped_or_kept(tmp_path: Path) -> None:
    lines = [f"1,2,7,pv,{when}" for when in (-2134949234, OPENS - 1, OPENS, CLOSES - 1, CLOSES, 2122867355)]
    data = write(tmp_path, *lines)
    assert data.events()["time"].tolist() == [OPENS, CLOSES - 1]
    assert any(note.startswith("4 of 6 events lie outside") and note.endswith("left out") for note in data.notes())
    kept = write(tmp_path, *lines, outside="keep")
    assert len(kept.events()) == 6
    assert any(note.startswith("4 of 6 events lie outside") and note.endswith("kept") for note in kept.notes())
    with pytest.raises(UserError, match="outside=keep"):
        write(tmp_path, lines[0]).events()


def test_a_time_beyond_by_years_does_not_end_the_data(tmp_path: Path) -> None:
    data = write(tmp_path, row(1, 2, "pv", 3), "1,3,7,pv,2122867355", outside="keep")
    assert asked(data) == {}
    assert any("2 requests are left out" in note for note in data.notes())


def test_an_item_has_its_most_frequent_category_and_ties_the_lowest(tmp_path: Path) -> None:
    pairs = [(20, 5), (20, 6), (20, 6), (30, 9), (30, 8), (40, 4)]
    data = write(tmp_path, *(row(1, item, "pv", 1, category) for item, category in pairs))
    assert data.items().to_dict("list") == {"item": [20, 30, 40], "item.category": [6, 8, 4]}
    assert any(note.startswith("2 items occur with several") for note in data.notes())


def test_the_first_view_asks_and_a_later_purchase_within_hours_answers(tmp_path: Path) -> None:
    lines = [
        *(row(1, 20, "pv", 1), row(1, 20, "pv", 5), row(1, 20, "buy", 25)),  # within a day of the first view
        *(row(1, 21, "pv", 1), row(1, 21, "pv", 20), row(1, 21, "buy", 26)),  # of the second only
        *(row(1, 22, "buy", 1), row(1, 22, "pv", 2)),  # bought before it was seen
        *(row(1, 23, "pv", 4), row(1, 23, "buy", 4)),  # in the same second: not later
        *(row(1, 24, "pv", 4), row(2, 24, "buy", 5), row(2, 25, "buy", 5)),  # by another user, and without a view
        *(row(1, 26, "buy", 3), row(1, 26, "pv", 4), row(1, 26, "buy", 5)),
        *(row(3, 20, "pv", 199), row(3, 20, "buy", 199.5)),  # bought, but its day is not over
        LAST,
    ]
    data = write(tmp_path, *lines)
    assert data.tasks == ((NEXT,), (Task("buy", "click", "item"),))
    right = {key: value for key, (value, _) in asked(data).items()}
    assert right == {(1, 20): 1, (1, 21): 0, (1, 22): 0, (1, 23): 0, (1, 24): 0, (1, 26): 1}
    assert asked(data)[1, 20] == (1, 1)
    assert "buy (pv -> buy within 24 hours): 6 requests, 33.3% of them right" in data.notes()
    assert "buy: 2 requests are left out, for their hours reach past the last event" in data.notes()
    ever = {key: value for key, (value, _) in asked(write(tmp_path, *lines, hours=None)).items()}
    assert ever == {**right, (1, 21): 1, (3, 20): 1, (9, 99): 0}


def test_a_request_whose_hours_end_with_the_data_is_known(tmp_path: Path) -> None:
    data = write(tmp_path, row(1, 20, "pv", 10), row(1, 21, "pv", 10.01), row(1, 20, "buy", 34))
    assert asked(data) == {(1, 20): (1, 10)}


def test_other_rules(tmp_path: Path) -> None:
    lines = [row(1, 20, "fav", 1), row(1, 20, "pv", 2), row(1, 20, "cart", 3), row(1, 21, "buy", 4), row(1, 21, "buy", 5), LAST]
    data = write(tmp_path, *lines, rule=" pv|fav->cart | buy ")
    assert data.tasks[1] == (Task("cart_buy", "click", "item"),)
    assert asked(data) == {(1, 20): (1, 1)}
    data = write(tmp_path, *lines, rule="buy")
    assert data.tasks[1] == (Task("buy", "item", "item"),)
    assert asked(data) == {(1, 21): (1, 4)}
    data = write(tmp_path, *lines, rule=None)
    assert data.tasks == ((NEXT,),)
    assert data.labels("buy") is None
    assert data.notes() == []


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    events=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.sampled_from(ACTIONS), st.integers(0, 12)), max_size=30),
    rule=st.sampled_from(["pv -> buy", "pv|fav -> cart|buy", "buy -> buy", "buy"]),
    hours=st.sampled_from([None, 2, 5]),
)
def test_rules_do_what_a_slow_reading_of_them_does(
    events: list[tuple[int, int, str, int]], rule: str, hours: float | None
) -> None:
    table = pd.DataFrame(events, columns=["user", "item", "action", "time"]).astype({"action": object})
    table = table.astype({"user": "int32", "item": "int32", "time": "int64"}).assign(time=lambda t: t["time"] * HOUR)
    read, end = parse_rule(rule, ACTIONS), 12 * HOUR
    found, unknown = rules.label(table, read, hours, end)
    want, left = {}, 0
    for user, item in sorted({(u, i) for u, i, _, _ in events}):
        own = [(action, at * HOUR) for u, i, action, at in events if (u, i) == (user, item)]
        first = min((at for action, at in own if action in (read.asked or read.right)), default=None)
        if first is None:
            continue
        last = np.inf if hours is None else first + hours * HOUR
        if read.asked and hours is not None and last > end:
            left += 1
            continue
        answers = [at for action, at in own if action in read.right and first < at <= last]
        want[user, item] = (float(not read.asked or bool(answers)), first)
    got = {(row.user, row.id): (row.value, row.time) for row in found.itertuples(index=False)}
    if read.asked and hours is not None:
        assert (found["until"] == found["time"] + hours * HOUR).all()
    assert got == want
    assert unknown == left


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("pv -> bay", ["'pv -> bay'", "'bay'", "did you mean 'buy'", "pv, cart, fav, buy"]),
        ("click", ["'click'", "pv, cart, fav, buy"]),
        ("pv ->", ["'pv ->'", "''"]),
        ("pv|  -> buy", ["'pv|  -> buy'", "''"]),
        ("", ["''"]),
        ("pv -> cart -> buy", ["2 arrows"]),
        ("pv, fav -> buy", ["'pv, fav'"]),
    ],
)
def test_a_rule_that_cannot_be_read_is_told_before_any_file_is(tmp_path: Path, rule: str, says: list[str]) -> None:
    with pytest.raises(UserError) as told:
        Taobao(TaobaoConfig(rule=rule), tmp_path)
    assert all(word in str(told.value) for word in says)
    assert len(str(told.value).splitlines()) <= 2


def test_requests_see_strictly_earlier_events_and_are_split_by_their_time(tmp_path: Path) -> None:
    lines = [row(user, item, "pv", item + user / 10) for user in range(1, 5) for item in range(1, 41)]
    lines += [row(2, 5, "cart", 5.2), row(2, 5, "buy", 6.3)]  # the cart in the second of the view
    coded = code(write(tmp_path, *lines, hours=2))
    labels = coded.labels["buy"]
    times = coded.events.fields["time"]
    assert labels.time is not None
    earlier = labels.end > coded.events.offsets[labels.user]
    assert (times[labels.end[earlier] - 1] < labels.time[earlier]).all()
    assert (times[labels.end] >= labels.time).all()
    assert labels.value.sum() == 1
    division = divide(coded, SplitConfig())
    assert division.name == "by_time"
    assert division.train_labels["buy"].time is not None
    test = division.questions["test", "buy"].time
    assert test is not None
    assert division.train_labels["buy"].time.max() < test.min()


GOOD = row(1, 2, "pv", 1)
BAD = {
    "a cell less": ("1,2,3,pv", "line 3: 4 cells, expected 5"),
    "a cell more": (f"{GOOD},1", "line 3: 6 cells, expected 5"),
    "a stranger": (row(1, 2, "click", 1), "line 3: unknown behavior 'click'; it is one of pv, cart, fav, buy"),
    "no behaviour": (row(1, 2, "", 1), "line 3: unknown behavior ''"),
    "a word for a time": ("1,2,3,pv,noon", "line 3: the time 'noon' is not a whole number"),
    "a decimal time": ("1,2,3,pv,1511539200.5", "line 3: the time '1511539200.5' is not a whole number"),
    "no time": ("1,2,3,pv,", "line 3: the time '' is not"),
    "a word for an id": ("u1,2,3,pv,1511539200", "line 3: the user 'u1' is not"),
    "a negative id": ("1,-2,3,pv,1511539200", "line 3: the item '-2' is not"),
    "too large an id": (f"1,2,{2**31},pv,1511539200", f"line 3: the category {2**31} is above {2**31 - 1}"),
    "too large a time": (f"1,2,3,pv,{10**30}", "line 3: the time 1000000"),
    "a header": ("user_id,item_id,category_id,behavior_type,timestamp", "line 3: the user 'user_id' is not"),
    "a blank": ("  ", "line 3: 1 cells"),
    "a byte that is no text": ("1,2,3,\xffpv,1511539200", "line 3: unknown behavior"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named(tmp_path: Path, name: str, zipped: bool) -> None:
    bad, says = BAD[name]
    content = "\n".join([GOOD, GOOD, bad, GOOD]).encode("latin-1")
    if zipped:
        with zipfile.ZipFile(tmp_path / f"{FILE}.zip", "w") as archive:
            archive.writestr(FILE, content)
    else:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError) as told:
        Taobao(TaobaoConfig(), tmp_path).events()
    assert FILE in str(told.value)
    assert says in str(told.value)
    assert len(str(told.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
def test_an_empty_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match="has no line"):
        Taobao(TaobaoConfig(), tmp_path).events()


def test_a_byte_order_mark_windows_line_ends_and_empty_lines_are_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\xef\xbb\xbf" + f"{row(11, 2, 'pv', 1)}\r\n\r\n{row(12, 3, 'buy', 2)}\r\n".encode())
    events = Taobao(TaobaoConfig(), tmp_path).events()
    assert events["user"].tolist() == [11, 12]
    assert events["action"].tolist() == ["pv", "buy"]
    (tmp_path / FILE).write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\r\n1,2,3,pv,x\r\n".encode())
    with pytest.raises(UserError, match="line 2: the time 'x' is not"):
        Taobao(TaobaoConfig(), tmp_path).events()


def test_an_archive_that_is_cut_or_another_is_told(tmp_path: Path) -> None:
    path = tmp_path / f"{FILE}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(FILE, "".join(f"{row(user, user * 7919 % 1000, 'pv', 1)}\n" for user in range(5000)))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:3000] + bytes(50) + whole[3050:]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"cannot be unpacked .* download it again"):
            Taobao(TaobaoConfig(), tmp_path).events()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.csv", "")
    with pytest.raises(UserError, match=f"no member {FILE}"):
        Taobao(TaobaoConfig(), tmp_path).events()


def test_no_file_is_told_with_the_expected_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=FILE):
        Taobao.locate(tmp_path)
    with pytest.raises(UserError, match=FILE):
        Taobao(TaobaoConfig(), tmp_path).events()


def test_fetching_says_that_it_takes_a_login() -> None:
    assert Taobao.source is not None
    assert Taobao.source.login
    assert Taobao.source.file in Taobao.files


def test_the_samples_purchases_can_be_told_from_history_but_by_no_single_number(tmp_path: Path) -> None:
    linear, metrics = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.metrics")
    Taobao.write_sample(tmp_path)
    coded = code(Taobao(TaobaoConfig(), tmp_path))
    labels, events = coded.labels["buy"], coded.events
    category, item = coded.catalog["item"]["item.category"], events.fields["item"]
    assert labels.time is not None
    before = np.zeros((len(events) + 1, category.max() + 1), np.int32)  # events of each category before each place
    np.cumsum(np.eye(before.shape[1], dtype=np.int32)[category[item]], axis=0, out=before[1:])
    asked = category[labels.id]
    count = (before[labels.end, asked] - before[events.offsets[labels.user], asked]).astype(float)  # [N]
    share = count / np.maximum(labels.end - events.offsets[labels.user], 1)
    late = labels.time >= np.quantile(labels.time, 0.7)
    right, popularity = labels.value, np.bincount(item)[labels.id]
    views, buys = (np.bincount(labels.id[~late], weight, len(category)) for weight in (None, right[~late]))
    rate = (buys + 0.5)[labels.id] / (views + 10)[labels.id]
    both = np.column_stack([np.log1p(count), np.sqrt(share), np.log(rate)])
    model = linear.LogisticRegression().fit(both[~late], right[~late])
    auc = {name: metrics.roc_auc_score(right[late], one[late]) for name, one in (("count", count), ("popularity", popularity))}
    auc["seen"] = metrics.roc_auc_score(right[late], count[late] > 0)
    learnt = metrics.roc_auc_score(right[late], model.decision_function(both[late]))
    assert 0.02 < right.mean() < 0.1
    assert auc["count"] > 0.6
    assert max(auc.values()) + 0.02 < learnt < 0.9, (auc, learnt)


@pytest.mark.real
@pytest.mark.skipif(not (REAL / f"{FILE}.zip").is_file(), reason="no ../shared/data/taobao")
def test_tianchis_own_file() -> None:
    data = Taobao(TaobaoConfig(), Taobao.locate(REAL.parent))
    events, items, labels, notes = data.events(), data.items(), data.labels("buy"), data.notes()
    with zipfile.ZipFile(REAL / f"{FILE}.zip") as archive:
        lines = [line.split(",") for line in archive.read(FILE).decode().split()]
    assert len(lines) == 94_475
    inside = [line for line in lines if OPENS <= int(line[4]) < CLOSES]
    assert f"{len(lines) - len(inside)} of 94,475 events lie outside" in notes[0]
    assert len(lines) - len(inside) == 39
    assert events["user"].nunique() == 929
    assert events["action"].value_counts().to_dict() == {"pv": 84_879, "cart": 5_033, "fav": 2_568, "buy": 1_956}
    assert dict(zip(events["item"], events["time"], strict=True)) == {int(line[1]): int(line[4]) for line in inside}
    assert len(items) == events["item"].nunique() == len({line[1] for line in inside})
    assert set(items["item.category"]) <= {int(line[2]) for line in inside}
    assert items["item.category"].nunique() > 3_000
    assert labels is not None
    assert 0.005 < labels["value"].mean() < 0.03
    division = divide(code(data), SplitConfig())
    assert all(len(division.questions[split, task]) > 500 for split in ("valid", "test") for task in ("next", "buy"))
    kept = Taobao(TaobaoConfig(outside="keep"), REAL)
    assert len(kept.events()) == 94_475
