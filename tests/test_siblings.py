"""Each plugin's own tests, run with the core and that plugin alone: it leans on no sibling."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = sorted(path.name for path in (ROOT / "plugins").iterdir() if (path / "pyproject.toml").is_file())


@pytest.mark.parametrize("name", PLUGINS)
def test_the_suite_of(name):
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"plugins/{name}/tests"],
        cwd=ROOT,
        env={**os.environ, "USEREC_LOAD_PLUGINS": name},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    print(done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
