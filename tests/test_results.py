"""docs/results.md says what the committed results say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_is_made_from_the_results():
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert (ROOT / "docs" / "results.md").read_text(encoding="utf-8") == tables.page(), "run `python benchmarks/tables.py`"
