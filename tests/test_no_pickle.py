"""Nothing is unpickled and nothing evaluated: not in our code, and a checkpoint folder holds tensors and JSON only."""

import ast
from pathlib import Path

import pytest
from typer.testing import CliRunner

from userec.cli.main import app

ROOT = Path(__file__).parent.parent
FOLDERS = ("userec", "plugins", "datasets", "benchmarks")
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUNS = {"eval", "exec", "compile", "__import__"}
CALLS = RUNS | {"torch.load", "torch.save", "yaml.load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle"}
SOURCES = [
    file
    for folder in FOLDERS
    for file in sorted((ROOT / folder).rglob("*.py"))
    if not {"tests", "build"} & set(file.relative_to(ROOT).parts)
]


def faults(source):
    """Lines of the source that load or run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            names = [called, called.removeprefix("builtins.")]
            allowed = [word.value for word in node.keywords if word.arg == "allow_pickle"]
            if any(not (isinstance(value, ast.Constant) and value.value is False) for value in allowed):
                found.append(f"{node.lineno}: allow_pickle")
            if names[0].endswith(".to_pickle"):
                found.append(f"{node.lineno}: to_pickle")
        found += [f"{node.lineno}: {name}" for name in dict.fromkeys(names) if name in MODULES | CALLS]
    return found


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_source_unpickles_or_evaluates(file):
    assert not faults(file.read_text("utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import joblib.memory as m",
        "def f():\n    import marshal",
        "import shelve",
        "eval('1')",
        "builtins.exec('x = 1')",
        "compile(text, name, 'exec')",
        "builtins.compile(text, name, 'exec')",
        "__import__('pickle').loads(text)",
        "torch.load(path, weights_only=True)",
        "from torch import load\nload(path)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, None, allow_pickle=allowed)",
        "yaml.load(text)",
        "frame.to_pickle(path)",
    ],
)
def test_a_planted_one_is_seen(source):
    assert faults(source)


@pytest.mark.parametrize(
    "source",
    ["model.eval()", "re.compile(pattern)", "np.load(path, allow_pickle=False)", "json.load(file)", "tomllib.load(file)"],
)
def test_what_is_harmless_is_not(source):
    assert not faults(source)


def test_every_folder_has_sources():
    assert {file.relative_to(ROOT).parts[0] for file in SOURCES} == set(FOLDERS)


def test_a_checkpoint_folder_holds_tensors_and_json_only(tmp_path):
    words = ["--model", "sasrec", "--dataset", "ttl@sample", "--evaluator", "ranking", "--out", str(tmp_path / "o")]
    said = ("encoder.dim=8", "train.steps=3", "train.checkpoint_seconds=0")
    settings = [word for one in said for word in ("--set", one)]
    done = CliRunner().invoke(app, ["run", *words, *settings])
    assert done.exit_code == 0, done.output
    found = {file.suffix for file in (tmp_path / "o" / "checkpoint").rglob("*") if file.is_file()}
    assert found == {".safetensors", ".json"}
