"""A stranger's plugin, the one in the README, in a fresh environment: listed, trained, and gone without a trace."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def block(language, first):
    for text in re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        if text.startswith(first):
            return text
    raise AssertionError(f"README has no {language} block that starts with {first!r}")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A fresh environment that sees the packages of this one, so that nothing is downloaded."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=True)
    python = folder / "venv" / "bin" / "python"
    site = Path(
        subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True).strip()
    )
    subprocess.check_call([python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"])  # an old one would hide ours
    (site / "zz_outer.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python, site


def call(python, *words, cwd, ok=True):
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON") and key != "USEREC_LOAD_PLUGINS"}
    done = subprocess.run([python, "-m", *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode == 0) == ok, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def test_fifteen_lines_make_a_plugin(environment, tmp_path):
    python, site = environment
    source = tmp_path / "newest"
    source.mkdir()
    (source / "newest.py").write_text(block("python", "# newest.py"))
    (source / "pyproject.toml").write_text(block("toml", "[build-system]"))
    before = set(site.rglob("*"))
    assert "newest" not in call(python, "userec", "list", "models", "--json", cwd=tmp_path)

    call(
        python,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--no-compile",
        str(source),
        cwd=tmp_path,
    )
    models = {row["name"]: row for row in json.loads(call(python, "userec", "list", "models", "--json", cwd=tmp_path))}
    assert (models["newest"]["distribution"], models["newest"]["version"]) == ("userec-newest", "0.1")
    call(python, "userec", "plugins", "check", "newest", cwd=tmp_path)
    out = tmp_path / "out"
    words = (
        "--model",
        "newest",
        "--dataset",
        "ttl@sample",
        "--set",
        "train.epochs=15",
        "--set",
        "train.lr=0.03",
        "--out",
        str(out),
    )
    call(python, "userec", "run", *words, cwd=tmp_path)
    report = json.loads((out / "report.json").read_text())
    value = {row["metric"]: row for row in report["metrics"] if row["split"] == "test"}["ndcg@10"]
    floor = {row["metric"]: row for row in report["baselines"] if row["split"] == "test"}["ndcg@10"]
    assert value["low"] > floor["high"]
    assert report["environment"]["plugins"]["userec-newest"] == "0.1"

    call(python, "pip", "uninstall", "--quiet", "--yes", "userec-newest", cwd=tmp_path)
    assert "newest" not in call(python, "userec", "list", "models", "--json", cwd=tmp_path)
    assert {path for path in site.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__"} <= before


def test_the_plugin_in_the_readme_is_small():
    lines = [line for line in block("python", "# newest.py").splitlines() if line.strip() and not line.startswith(("#", "from "))]
    assert len(lines) <= 17, len(lines)
    assert sys.version_info >= (3, 11)
