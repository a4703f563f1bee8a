"""The import rule: rooms are ranked, imports point backwards, plugins know no sibling. Read from the syntax, nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RANKS = (
    ("errors", "config", "schema", "capability", "batch", "markers"),
    ("dataset",),
    ("kernel",),
    ("encoder",),
    ("objective",),
    ("evaluator",),
    ("report",),
    ("engine",),
    ("hookspecs", "isolation", "registry"),
    ("cli", "__main__"),
)
"""A room may import its own rank and those above it in this table."""

RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
CLOSED_TO_PLUGINS = {"engine", "hookspecs", "isolation", "registry", "cli", "testing", "builtin"}
EXCEPTIONS = {("userec/cli/plugins.py", "userec.testing.checks")}
"""`userec plugins check` runs the shipped checks."""


def imported(source: str, module: str) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of what runs when `module` (dotted; a package ends in `.__init__`) is used: imports under
    TYPE_CHECKING are left out, `from a import b` names `a.b`, `import_module("a.b")` counts."""
    skipped: set[ast.AST] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            skipped.update(inner for statement in node.body for inner in ast.walk(statement))
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__"):
            yield from ((node.lineno, str(name.value)) for name in node.args[:1] if isinstance(name, ast.Constant))


def room_of(name: str) -> str | None:
    """`encoder` of `userec.encoder.scores`; None of what is not the core's."""
    parts = name.split(".")
    return parts[1] if parts[0] == "userec" and len(parts) > 1 else None


def faults(path: str, source: str, own: str) -> list[str]:
    """Lines that break the rule in the file `path` (relative to the repository); `own` is the plugin's package, or `userec`."""
    module = path.removesuffix(".py").replace("/", ".")
    here = room_of(module) if own == "userec" else None
    plain = own != "userec" or here == "builtin"
    found = []
    for line, name in imported(source, module):
        room = room_of(name)
        if (path, name.rpartition(".")[0]) in EXCEPTIONS or (path, name) in EXCEPTIONS:
            continue
        if name.split(".")[0].startswith("userec_") and name.split(".")[0] != own:
            found.append(f"{path}:{line}: imports {name}, a plugin")
        elif name.split(".")[0] == "tests":
            found.append(f"{path}:{line}: imports {name}, a test")
        elif room is None or here == "testing" or (plain and room not in CLOSED_TO_PLUGINS):
            continue
        elif plain:
            found.append(f"{path}:{line}: imports {name}; a plugin may not import {room}")
        elif room not in RANK or here not in RANK or RANK[room] > RANK[here]:
            found.append(f"{path}:{line}: imports {name}; {here} stands before {room}")
    return found


def sources() -> dict[str, list[Path]]:
    """{package: its folder's files} of the core, of each plugin and of the data sets; tests and build folders left out."""
    folders = [folder for parent in ("plugins", "datasets") for folder in (ROOT / parent).rglob("userec_*") if folder.is_dir()]
    packages = [folder for folder in folders if (folder / "__init__.py").exists() and "build" not in folder.parts]
    return {folder.name: sorted(folder.rglob("*.py")) for folder in (ROOT / "userec", *packages)}


@pytest.mark.parametrize("owner", sorted(sources()))
def test_imports_point_backwards(owner: str) -> None:
    found = []
    for file in sources()[owner]:
        path = f"{owner}/{file.as_posix().rpartition(f'/{owner}/')[2]}"
        if path == "userec/__init__.py":
            path = "userec/errors.py"  # the package itself ranks first
        found += faults(path, file.read_text("utf-8"), owner)
    assert not found, "\n".join(found)


def test_every_room_is_ranked() -> None:
    rooms = {
        entry.stem
        for entry in (ROOT / "userec").iterdir()
        if entry.suffix in ("", ".py") and not entry.name.startswith(("_", "."))
    }
    assert rooms - {"py"} <= {*RANK, "builtin", "testing"}, "a new room needs a place in RANKS"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("userec/encoder/blocks/mlp.py", "from userec.objective.contract import Objective"),
        ("userec/encoder/blocks/mlp.py", "from ...engine import trainer"),
        ("userec/encoder/scores.py", "def f():\n    import userec.registry"),
        ("userec/encoder/scores.py", "from userec import registry"),
        ("userec/encoder/scores.py", "import importlib\nimportlib.import_module('userec.engine')"),
        ("userec/encoder/scores.py", "import userec_markov"),
        ("userec/dataset/split.py", "from userec.builtin import ranking"),
        ("userec/engine/run.py", "from userec.registry import load"),
        ("userec/registry.py", "from userec.cli import main"),
        ("userec/cli/doctor.py", "from userec.testing.checks import checks_for"),
        ("userec/builtin/ranking.py", "from userec.builtin.popularity import Popularity"),
        ("userec/builtin/ranking.py", "from . import popularity"),
        ("userec/errors.py", "from userec.dataset import contract"),
    ],
)
def test_a_wrong_import_of_the_core_is_seen(path: str, source: str) -> None:
    assert len(faults(path, source, "userec")) == 1


@pytest.mark.parametrize(
    "name",
    [
        "userec.engine.trainer",
        "userec.registry",
        "userec.cli.main",
        "userec.builtin.ranking",
        "userec.testing.tiny",
        "userec_other",
    ],
)
def test_a_wrong_import_of_a_plugin_is_seen(name: str) -> None:
    assert len(faults("userec_mine/model.py", f"import {name}", "userec_mine")) == 1


@pytest.mark.parametrize(
    ("path", "source", "own"),
    [
        ("userec/encoder/scores.py", "if TYPE_CHECKING:\n    from userec.objective.contract import Objective", "userec"),
        ("userec/cli/plugins.py", "from userec.testing.checks import checks_for", "userec"),
        ("userec/testing/checks.py", "from userec.registry import load\nfrom userec.cli import main", "userec"),
        ("userec/kernel/dispatch.py", "from userec.kernel.contract import Kernel\nimport torch", "userec"),
        (
            "userec_mine/model.py",
            "from userec.evaluator import ranks\nfrom userec_mine import blocks\nfrom . import heads",
            "userec_mine",
        ),
    ],
)
def test_a_right_import_is_not(path: str, source: str, own: str) -> None:
    assert faults(path, source, own) == []
