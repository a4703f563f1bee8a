"""Coded data kept as memory-mapped .npy files and one json, keyed by the content of the source and the version of the code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from userec import schema
from userec.dataset import contract, ids, table
from userec.dataset import events as coding
from userec.dataset.contract import Dataset
from userec.dataset.events import Coded, Events, Labels, Vocabulary, code
from userec.dataset.locate import code_files
from userec.schema import Field, Schema, Task

_DAMAGE = (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError)
"""What a truncated, edited or half-deleted cache raises when it is read."""


def load(dataset: Dataset, cache: Path | None) -> Coded:
    """The coded data set, from the cache where it lies there whole; `cache` None, or nothing to key it by, codes anew.

    A damaged cache is rebuilt and a folder that cannot be written is left alone; a note tells either."""
    key = None if cache is None else _key(dataset)
    if cache is None or key is None:
        return code(dataset)
    folder = Path(cache) / f"{dataset.name}-{key}"
    note: tuple[str, ...] = ()
    if folder.exists():
        try:
            return _open(folder)
        except _DAMAGE as error:
            note = (f"the cache {folder} was damaged ({error}) and has been rebuilt",)
    coded = code(dataset)
    try:
        _write(coded, folder)
    except OSError as error:
        note = (f"the cache {folder} cannot be written ({error}): nothing is cached",)
    return replace(coded, notes=coded.notes + note)


def _key(dataset: Dataset) -> str | None:
    """Hex of (name, config, names and content of the sources, text of the code); None where a source or a text is absent."""
    kinds = [cls for cls in type(dataset).__mro__ if issubclass(cls, Dataset) and cls is not Dataset]
    sources = dataset.sources()
    if not sources or not all(os.access(path, os.R_OK) and path.is_file() for path in sources):
        return None
    if not all(getattr(sys.modules[kind.__module__], "__file__", None) for kind in kinds):
        return None
    texts = sorted({path for kind in kinds for path in code_files(kind)})
    core = [module.__file__ for module in (schema, contract, ids, coding, table)]
    told = [dataset.name, dataset.config.model_dump(mode="json"), [path.name for path in sources]]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for path in (*sources, *core, __file__, *texts):
        with open(str(path), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:24]


def _arrays(coded: Coded) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    """Every array under its path; text vocabularies are not among them."""
    yield ("offsets",), coded.events.offsets
    yield from ((("events", name), column) for name, column in coded.events.fields.items())
    if coded.split is not None:
        yield ("split",), coded.split
    yield from ((("vocabulary", name), entry.values) for name, entry in coded.vocabulary.items() if entry.values.dtype != object)
    yield from ((("profile", name), column) for name, column in coded.profile.items())
    yield from ((("catalog", space, name), column) for space, table in coded.catalog.items() for name, column in table.items())
    for task, labels in coded.labels.items():
        yield from ((("labels", task, name), column) for name, column in vars(labels).items() if column is not None)


def _write(coded: Coded, folder: Path) -> None:
    """Write beside `folder`, then put it in place in one step. Raises OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        files: dict[str, dict[str, Any]] = {}
        for number, (path, array) in enumerate(_arrays(coded)):
            np.save(draft / f"{number}.npy", np.ascontiguousarray(array), allow_pickle=False)
            files[f"{number}.npy"] = {"path": path, "crc32": _checksum(draft / f"{number}.npy")}
        texts = {name: entry.values.tolist() for name, entry in coded.vocabulary.items() if entry.values.dtype == object}
        (draft / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
        files["texts.json"] = {"path": [], "crc32": _checksum(draft / "texts.json")}
        meta = {"name": coded.name, "notes": coded.notes, "default_split": coded.default_split, "schema": asdict(coded.schema)}
        (draft / "meta.json").write_text(json.dumps({**meta, "catalog": list(coded.catalog), "files": files}), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _open(folder: Path) -> Coded:
    """The cache in `folder`, its arrays mapped copied on write. Raises one of `_DAMAGE` where it is not whole."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    tree: dict[str, Any] = {name: {} for name in ("events", "vocabulary", "profile", "catalog", "labels")}
    for name, entry in meta["files"].items():
        if _checksum(folder / name) != entry["crc32"]:
            raise ValueError(f"{name} has changed")
        if entry["path"]:
            *parents, leaf = entry["path"]
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[leaf] = np.load(folder / name, mmap_mode="c", allow_pickle=False).view(np.ndarray)
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    values = {**tree["vocabulary"], **{name: np.array(entry, dtype=object) for name, entry in texts.items()}}
    described = _schema(meta["schema"])
    return Coded(
        name=meta["name"],
        events=Events(tree["offsets"], tree["events"]),
        split=tree.get("split"),
        vocabulary={space: Vocabulary(values[space]) for space in described.spaces},
        schema=described,
        profile=tree["profile"],
        catalog={space: tree["catalog"].get(space, {}) for space in meta["catalog"]},
        labels={task: Labels(**columns) for task, columns in tree["labels"].items()},
        notes=tuple(meta["notes"]),
        default_split=meta["default_split"],
    )


def _schema(meta: Mapping[str, Any]) -> Schema:
    return Schema(
        fields={name: Field(**entry) for name, entry in meta["fields"].items()},
        spaces=meta["spaces"],
        tasks=tuple(tuple(Task(**task) for task in group) for group in meta["tasks"]),
        widths=meta["widths"],
    )
