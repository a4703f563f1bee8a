"""From what stands after `--dataset` to a data set that can be read: a name, `NAME@sample`, or a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from userec.config import parse
from userec.dataset.contract import Dataset
from userec.dataset.locate import home_of
from userec.dataset.table import TableDataset, layout_of, parse_columns
from userec.errors import UserError


@dataclass(frozen=True)
class Opened:
    """A data set with the name it goes by and its settings as given."""

    dataset: Dataset
    name: str
    settings: Mapping[str, Any]
    sample: bool = False


def open_dataset(registry: Any, ref: Mapping[str, Any], columns: str | None, data_dir: Path | None) -> Opened:
    """Open what `ref` names. Raises UserError."""
    name = str(ref["name"])
    settings = {key: value for key, value in ref.items() if key != "name"}
    plain, at, what = name.partition("@")
    named = plain in registry.plugins["datasets"]
    like_path = os.sep in name or Path(name).is_dir() or layout_of(Path(name)) is not None
    if Path(name).is_file() or "path" in settings or (like_path and not named):
        settings = {"path": name, **settings}
        if columns is not None:
            settings["columns"] = parse_columns(columns)
        dataset: Dataset = TableDataset(parse(TableDataset.Config, settings, "dataset"), Path(settings["path"]).parent)
        return Opened(dataset, dataset.name, settings)
    if columns is not None:
        raise UserError(f"--columns is for a file of your own; {name!r} is a named data set")
    if at and what != "sample":
        raise UserError(f"unknown data set {name!r}: only {plain}@sample may follow the name")
    found = registry.find("datasets", plain)
    config = parse(found.Config, settings, "dataset")
    home, sample = home_of(found, data_dir, os.environ, force_sample=bool(at))
    return Opened(found(config, home), f"{plain}@sample" if sample else plain, settings, sample)
