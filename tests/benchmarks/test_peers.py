"""The arithmetic of `benchmarks/peers.py` and of its judge; the peers themselves run only where somebody measures."""

import importlib.util
import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FOLDER = Path(__file__).parent.parent.parent / "benchmarks"


def module(path, name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / path)
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


peers, protocol = module("peers.py", "peers_driver"), module("peers/protocol.py", "peers_protocol")


def race(model, length, **systems):
    figures = {"targets_per_s": 1.0, "startup_s": 1.0, "ready_s": 2.0, "evaluate_s": 3.0, "peak_mb": 400.0}
    sizes = {"batch": "128 users", "evaluate_batch": "256 users"}
    versions = {"userec": "0.1", "rectools": "0.19.0", "recbole": "1.2.1", "torch": "2.13"}
    made = {name: {**figures, **sizes, "versions": versions, **given} for name, given in systems.items()}
    for each in made.values():
        each["range"] = {name: [each[name] * 0.5, each[name] * 2] for name in figures}
    sizes_tried = {32: {"targets_per_s": 7e3, "peak_mb": 1300.0}, 128: {"targets_per_s": 8e3, "peak_mb": 2050.0}}
    tried = sizes_tried if "rectools" in systems else {}
    return {"model": model, "length": length, "epochs": 20, "tried": tried, "systems": made}


KEPT = {"command": "python x", "commit": "c0ffee", "machine": "a box", "turns": 5, "threads": 2, "attention_dropout": 0.0}
KEPT["written"] = {"write_s": 1.5}


def test_words():
    given = peers.read_words(["--model", "sasrec", "bert4rec", "--length", "200", "--save"])
    assert (given.model, given.length, given.save, given.quality) == (["sasrec", "bert4rec"], [200], True, False)
    with pytest.raises(SystemExit):
        peers.read_words(["--model", "word2vec"])


def test_quality_refuses_a_model_that_rectools_has_not(capsys):
    assert peers.read_words(["--quality", "--model", "sasrec"]).quality
    with pytest.raises(SystemExit):
        peers.read_words(["--quality", "--model", "sasrec", "gru4rec"])
    assert "RecTools, which has no gru4rec: --model takes sasrec, bert4rec" in capsys.readouterr().err


def test_another_torch_stops_the_race(monkeypatch):
    monkeypatch.setattr(peers, "python_of", lambda system: sys.executable)
    peers.same_torch()
    monkeypatch.setattr(peers, "version", lambda name: "1.0+ours")
    with pytest.raises(SystemExit, match=r"rectools's environment has torch .*, userec runs on 1\.0\+ours: remove"):
        peers.same_torch()


def test_rectools_races_at_the_better_batch_size(monkeypatch):
    speeds, calls = {"128": 9.0, "512": 5.0}, []

    def run(system, model, length, given, *words):
        calls.append((system, words))
        speed = speeds[words[words.index("--rows") + 1]] if "--rows" in words else 1.0
        return {"system": system, "targets_per_s": speed, "peak_mb": 100 * speed}

    monkeypatch.setattr(peers, "run", run)
    (found,) = peers.races(peers.read_words(["--model", "sasrec", "--length", "50", "--turns", "2", "--steps", "3"]))
    assert found["tried"] == {rows: {"targets_per_s": speed, "peak_mb": 100 * speed} for rows, speed in ((128, 9.0), (512, 5.0))}
    raced = [words for system, words in calls if system == "rectools" and "--no-evaluation" not in words]
    assert raced == [("--warm", "2", "--steps", "3", "--rows", "128")] * 2
    assert ("recbole", ("--warm", "3", "--steps", "3")) in calls


def test_equal_training_has_equal_rows(monkeypatch):
    calls = {}

    def run(system, model, length, given, *words):
        calls[system] = words
        return {"trained": 70}

    monkeypatch.setattr(peers, "run", run)
    list(peers.qualities(peers.read_words(["--quality", "--model", "sasrec"])))
    assert calls["userec"] == ("--rows", "128", "--warm", "0", "--targets", "70")
    assert calls["rectools"] == ("--rows", "128", "--warm", "0", "--epochs", "20")


def test_the_systems_take_turns_at_going_first():
    assert [peers.rotated("abc", turn)[0] for turn in range(4)] == list("abca")
    assert sorted(peers.rotated("abc", 2)) == list("abc")


def test_median_and_range():
    runs = [{"evaluate_s": value, "items": 7, "batch": f"{size} users"} for value, size in ((1.0, 2), (9.0, 4), (2.0, 2))]
    found = peers.median(runs)
    assert (found["evaluate_s"], found["items"], found["range"]) == (2.0, 7, {"evaluate_s": [1.0, 9.0]})
    assert found["batch"] == "2 users or 4 users"


def test_table_tells_times_better_and_goals():
    speeds = {
        "userec": {"targets_per_s": 4e4},
        "rectools": {"targets_per_s": 8e3, "peak_mb": 900.0},
        "recbole": {"targets_per_s": 80.0},
    }
    page = "\n".join(peers.table({**KEPT, "races": [race("sasrec", 200, **speeds)]}))
    speed = "40,000 (20,000 to 80,000) | 8,000 (4,000 to 16,000) | 80 (40 to 160)"
    assert f"| `sasrec`, 200 | trained targets a second | {speed} | 5.0 (goal 3) | 500.0 (goal 200) |" in page
    memory = "400 (200 to 800) | 900 (450 to 1,800) | 400 (200 to 800)"
    assert f"| `sasrec`, 200 | peak memory, MB | {memory} | 2.2 (goal 2) | 1.0 (goal 6) |" in page
    assert "| `sasrec`, 200 | a training batch | 128 users | 128 users | 128 users | | |" in page
    assert "`sasrec`, 200: 7,000 (1,300 MB) at 32, 8,000 (2,050 MB) at 128. RecBole's atomic file" in page
    assert "in 1.5 s: not counted" in page
    assert "most of the ratio to it is that design" in page.lower()


def test_a_missed_goal_is_told_with_its_reason():
    figures = {"userec": {"evaluate_s": 2.0}, "rectools": {"evaluate_s": 7.0}, "recbole": {"evaluate_s": 5.0}}
    lines = [line for line in peers.missed(race("sasrec", 200, **figures)) if "ranking" in line]
    assert len(lines) == 1
    assert "metrics, seconds: 2.5 times RecBole misses the goal of 3. The goal was set when" in lines[0]
    assert lines[0].endswith("--model sasrec --length 200`).")
    figures = {"userec": {"targets_per_s": 9.0}, "recbole": {"targets_per_s": 9.0}}
    assert [line[-19:] for line in peers.missed(race("gru4rec", 200, **figures))] == [" Not explained yet."]


def test_every_missed_goal_is_explained():
    kept = json.loads((FOLDER / "results" / "peers.json").read_text())
    lines = [line for each in kept["races"] for line in peers.missed(each)]
    assert not [line for line in lines if "Not explained" in line]
    assert len(lines) == len(peers.WHY), "a reason whose goal is no longer missed"


def test_table_without_rectools():
    speeds = {"userec": {"targets_per_s": 4e4}, "recbole": {"targets_per_s": 400.0}}
    page = "\n".join(peers.table({**KEPT, "races": [race("gru4rec", 200, **speeds)]}))
    assert "| trained targets a second | 40,000 (20,000 to 80,000) | - | 400 (200 to 800) | - | 100.0 (goal 50) |" in page
    assert "RecTools races" not in page


def test_quality_table():
    found = {"userec": {"ndcg@10": 0.15}, "rectools": {"ndcg@10": 0.145, "trained": 5_000_000}}
    page = "\n".join(peers.quality_table({**KEPT, "races": [race("sasrec", 50, **found)]}))
    assert "| `sasrec`, 50 | 5,000,000 | 0.1500 | 0.1450 | - | +0.0050 | at least -0.01 |" in page
    assert "by Adam at a constant rate of 1e-3 with 128 random users a batch" in page


def slow_ndcg(frame, users, items, scores):
    """Every order of equal scores is as likely: the mean gain over the places of the target's tie group."""
    found = []
    for row, user in enumerate(users):
        events = frame[frame["user"] == user].sort_values("time", kind="stable")["item"].tolist()
        target, history = events[-2], set(events[:-2])
        if target not in items:
            found.append(0.0)
            continue
        score = {item: scores[row, column] for column, item in enumerate(items) if item not in history}
        above = sum(value > score[target] for value in score.values())
        tied = sum(value == score[target] for value in score.values())
        places = range(above, above + tied)
        found.append(sum(1 / math.log2(place + 2) for place in places if place < 10) / tied)
    return sum(found) / len(found)


def test_the_judge_agrees_with_a_plain_loop():
    rng = np.random.default_rng(0)
    rows = [
        (user, item, moment) for user in range(30, 50) for moment, item in enumerate(rng.permutation(40)[: rng.integers(3, 20)])
    ]
    frame = pd.DataFrame(rows, columns=["user", "item", "time"]).sample(frac=1, random_state=1)
    users, items = rng.permutation(np.arange(30, 50)), rng.permutation(np.unique(frame["item"]))[3:]
    scores = rng.integers(0, 12, (len(users), len(items))).astype(np.float32)
    told = protocol.judge(frame, users, items, scores)
    assert told["ndcg@10"] == pytest.approx(slow_ndcg(frame, users, items, scores))
    assert told["users"] == 20


def test_events_that_follow():
    frame = pd.DataFrame({"user": [2, 1, 2, 1, 2], "item": [1, 2, 3, 4, 5], "time": [5, 5, 5, 1, 4]})
    ordered, after = protocol.ordered(frame)
    assert ordered["item"].tolist() == [4, 2, 5, 1, 3]
    assert after.tolist() == [1, 0, 2, 1, 0]


def test_the_watch_leaves_out_warm_batches_and_the_end(monkeypatch):
    watch = protocol.Watch(1)
    moments = iter([0.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(protocol.time, "perf_counter", lambda: next(moments))
    for targets, trained in ((100, 0), (10, 100), (20, 110), (999, 130)):
        watch.begin(targets)
        assert watch.trained == trained
    assert watch.told() == {"targets": 30, "train_s": 2.0, "targets_per_s": 15.0, "trained": 130}
