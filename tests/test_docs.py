"""The code in README.md and docs/ runs as written: `sh` and `python` blocks in order, in one fresh folder a page.

`pip` and `tox` lines are what CI itself does with a clean clone; `text` blocks show output or long runs and are not run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
    ROOT / "datasets" / "README.md",
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(block):
    for line in block.replace("\\\n", " ").splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            if words and words[0] not in ("pip", "tox"):
                yield words


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_file()], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of(page, tmp_path):
    for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            todo = [[sys.executable, "-c", block]]
        elif language == "sh":
            todo = [[sys.executable, "-m", *words] for words in commands(block)]
            assert all(words[2] == "userec" or words[2] == "python" for words in todo), block
        else:
            continue
        for words in todo:
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
            assert done.returncode == 0, f"{shlex.join(words[1:])[:200]}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
