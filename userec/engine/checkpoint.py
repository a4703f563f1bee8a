"""Checkpoints: tensors in safetensors, everything else in JSON. Nothing is pickled, nothing unpickled.

A checkpoint folder holds `NAME.safetensors` and `NAME.json` each for `best` and `last`; a write replaces both
atomically, the JSON last, so that a run killed at any moment leaves a whole one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from userec.errors import UserError


def save(folder: Path, name: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write checkpoint `name`. `about` must be JSON. Raises UserError where the folder cannot be written, or is full."""
    stem = f"{name}-{about['step']}"
    data = folder / f"{stem}.safetensors"
    part = folder / f"{name}.json.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, folder / f"{stem}.part")
        os.replace(folder / f"{stem}.part", data)
        part.write_text(json.dumps({**about, "tensors": data.name}, indent=1), encoding="utf-8")
        os.replace(part, folder / f"{name}.json")
        for old in (*folder.glob(f"{name}-*.safetensors"), *folder.glob(f"{name}-*.part")):
            if old != data:
                old.unlink()
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write the checkpoint {data}: {error}") from None


def latest(folder: Path) -> dict[str, Any] | None:
    """What the newest checkpoint under `folder`, of whatever stage of training, says of itself; None where there is none."""
    written = [*folder.rglob("last.json")] or [*folder.rglob("best.json")]
    if not written:
        return None
    try:
        found: dict[str, Any] = json.loads(max(written, key=lambda file: file.stat().st_mtime_ns).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # damaged: `load` says so to who needs it
    return found


def load(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, about) of checkpoint `name`, or None where there is none. Raises UserError where it is damaged."""
    about_file = folder / f"{name}.json"
    if not about_file.is_file():
        return None
    try:
        about = json.loads(about_file.read_text(encoding="utf-8"))
        return load_file(folder / about["tensors"]), about
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"checkpoint {about_file} cannot be read ({error}); remove {folder} to start anew") from None


def part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors named `prefix.X`, by X."""
    return {key.removeprefix(f"{prefix}."): value for key, value in tensors.items() if key.startswith(f"{prefix}.")}


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """The optimizer's state as tensors `optimizer.INDEX.KEY`, and its groups as JSON values."""
    state = optimizer.state_dict()
    tensors = {
        f"optimizer.{index}.{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state["state"].items()
        for key, value in entries.items()
    }
    return tensors, state["param_groups"]


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """The inverse of `flatten_optimizer`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, entry = key.split(".", 2)
            state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
