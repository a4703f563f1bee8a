"""The closing tables, at any width."""

import io

import pytest
from rich.console import Console

from userec.cli.progress import result_tables


def rows(encoder, value, slice_=""):
    row = {"encoder": encoder, "evaluator": "click", "task": "next", "split": "test", "metric": "auc~uniform1"}
    row |= {"value": value, "low": value - 0.01, "high": value + 0.01, "n": 788, "definition": "auc[]"}
    return row | ({"slice": slice_} if slice_ else {})


def report(*slices):
    names = ("popularity", "category_seen", "category_count")
    every = ("", *slices)
    return {
        "experiment": {"encoder": {"name": "markov"}},
        "dataset": {"name": "taobao"},
        "metrics": [rows("markov", 0.5 + i / 10, part) for i, part in enumerate(every)],
        "baselines": [rows(name, 0.3, part) for name in names for part in every],
    }


def shown(found, width):
    console = Console(file=io.StringIO(), width=width)
    for table in result_tables(found, {"click": ("auc",)}):
        console.print(table)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [110, 130, 180])
def test_task_and_metric_are_never_cut(width):
    text = shown(report(), width)
    assert "next" in text
    assert "auc~uniform1" in text
    assert "…" not in text
    assert text.count("0.3000") == 3


def test_slices_stand_below_the_whole():
    text = shown(report("activity=cold", "activity=head"), 180)
    lines = [line for line in text.splitlines() if "auc~uniform1" in line]
    assert len(lines) == 3
    assert "activity=cold" in lines[1]
    assert "0.7000" in lines[2]
    assert "slice" not in shown(report(), 180)
