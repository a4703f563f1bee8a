"""The arithmetic of `benchmarks/scaling.py`."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "scaling.py"


@pytest.fixture(scope="module")
def scaling():
    spec = importlib.util.spec_from_file_location("scaling", SCRIPT)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_exponent(scaling):
    assert scaling.exponent([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert scaling.exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_written_events_grow_with_both(scaling, tmp_path):
    for users, events in ((40, 10), (80, 10), (40, 20)):
        scaling.write(tmp_path / "events.parquet", users, events)
        frame = pd.read_parquet(tmp_path / "events.parquet")
        assert frame["user"].nunique() == users
        assert len(frame) / users == pytest.approx(events, rel=0.2)


def test_table(scaling):
    rows = [{"size": size, "events": 100 * size, **dict.fromkeys(scaling.WHAT, 0.5 * size)} for size in (1, 2)]
    exponents = dict.fromkeys(scaling.WHAT, 1.0) | {"train_s": scaling.LINEAR, "memory_mb": scaling.LINEAR + 0.01}
    series = {"users": {"points": rows, "exponents": exponents}}
    kept = {"users": 10, "events": 5, "items": 9, "window": 5, "command": "x", "commit": "c", "machine": "m", "series": series}
    kept["times"] = 5
    page = "\n".join(scaling.table(kept))
    assert "| users x 2 | 200 | 1.00 (x 2.00) |" in page
    assert "| users: exponent | at most 1.15 | 1.00 | 1.15 | 1.00 | 1.16 (above) |" in page
    assert "reads a user's last 5 events" in page
    assert page.rstrip().endswith("the quickest of 5 runs.")


def test_no_history_is_longer_than_the_window(scaling, tmp_path):
    longest = scaling.EVENTS * max(scaling.SIZES)
    scaling.write(tmp_path / "events.parquet", 500, longest)
    lengths = pd.read_parquet(tmp_path / "events.parquet").groupby("user").size()
    assert scaling.WINDOW / 2 < longest < lengths.max() <= scaling.WINDOW
