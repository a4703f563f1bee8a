"""An experiment: every value of a run, defaults included. It is written to `experiment.toml` and can be run again from it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import Field as Setting
from pydantic import field_validator
from pydantic_core import PydanticCustomError

from userec.config import Config, Ref, parse
from userec.dataset.loader import BatchConfig
from userec.dataset.split import SplitConfig
from userec.errors import UserError, unknown
from userec.schema import Kind, Task


class TrainConfig(Config):
    """How an encoder that trains by gradient is trained. Counting encoders ignore it: they take one pass."""

    optimizer: Literal["adam", "adamw", "sgd", "adagrad"] = "adam"
    lr: float = Setting(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = Setting(0.0, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: constant, or down to zero at the last step."""
    warmup: int = Setting(0, ge=0)
    """Steps of linear warm-up."""
    clip_norm: float | None = Setting(None, gt=0)
    accumulate: int = Setting(1, ge=1)
    """Batches a step."""
    epochs: int = Setting(20, ge=0)
    steps: int | None = Setting(None, ge=0)
    """Train so many steps instead of epochs."""
    validate_every: int = Setting(1, ge=1)
    """Epochs from one validation to the next."""
    validate_steps: int | None = Setting(None, ge=1)
    """Steps from one validation to the next, instead of epochs."""
    validate_users: int | None = Setting(None, ge=1)
    """Validate on a fixed seeded sample of users; the report's validation rows are on all of them."""
    monitor: str = "ranking/ndcg@10"
    """`evaluator/metric` that picks the best weights and stops early, on the first trained task's validation split. By default
    what suits the kind of task: see `MONITORS`."""
    patience: int | None = Setting(None, ge=1)
    """Validations without a better value before it stops; None = never."""
    precision: Literal["fp32", "bf16"] = "fp32"
    checkpoint_seconds: float = Setting(300.0, ge=0)
    """Seconds between checkpoints inside an epoch, so what a killed run loses at most; 0 = every step."""

    @field_validator("precision", mode="before")
    @classmethod
    def _no_half(cls, value: Any) -> Any:
        if value in ("fp16", "float16", "half", 16):
            told = "fp16 is far slower than fp32 on a CPU, and elsewhere it needs a scaled loss: take fp32 or bf16"
            raise PydanticCustomError("no_half", "{told}", {"told": told})
        return value


class Experiment(Config):
    """One run: a data set, an encoder, an objective and any number of evaluators, with all their settings."""

    dataset: Ref
    encoder: Ref
    objective: Ref | None = None
    """None = the encoder's recipe; encoders that count have none."""
    task: str | None = None
    """The task that an encoder without MANY_TASKS trains on; None = the data set's first."""
    evaluators: tuple[str, ...] | None = None
    """None = all that fit."""
    evaluator: dict[str, dict[str, Any]] = {}
    """Settings of each evaluator, by its name."""
    slices: tuple[str, ...] = ()
    """Groups of users whose metrics are told apart: `activity`, or a field of the profile."""
    split: SplitConfig = SplitConfig()
    batch: BatchConfig = BatchConfig()
    train: TrainConfig = TrainConfig()
    seed: int = Setting(0, ge=0, lt=2**32)
    device: str = "cpu"


MONITORS: Mapping[Kind, str] = {
    "item": "ranking/ndcg@10",
    "click": "click/auc",
    "rating": "rating/rmse",
    "label": "classification/accuracy",
}
"""What picks the best weights where neither the user nor the encoder's recipe says it."""

Values = dict[str, Any]


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> Values:
    """`over` laid on `under`, table by table. A table that names another plugin replaces the whole one under it."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            names = {table["name"] for table in (value, below) if "name" in table}
            merged[key] = merge(below, value) if len(names) < 2 else value
        else:
            merged[key] = value
    return merged


def read_file(path: Path) -> Values:
    """The values of a TOML file. Raises UserError."""
    try:
        return _with_none(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not TOML: {error}") from None


def read_settings(settings: Sequence[str]) -> Values:
    """`["encoder.dim=64", "split.name=by_user"]` as nested values; a value is TOML where it parses, else text.

    Raises UserError."""
    values: Values = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        parts = [part.strip() for part in path.split(".")]
        if not equals or not all(parts):
            raise UserError(f"--set {setting!r} is not KEY=VALUE, as in --set encoder.dim=64")
        if len(parts) == 1 and parts[0] in ("dataset", "encoder", "objective"):
            parts.append("name")
        here = values
        for part in parts[:-1]:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise UserError(f"--set {setting!r}: {part!r} was set to a value before")
        here[parts[-1]] = _value(text.strip())
    return values


def _value(text: str) -> Any:
    try:
        return _with_none(tomllib.loads(f"value = {text}")["value"])
    except tomllib.TOMLDecodeError:
        return _with_none(text)


def resolve(said: Mapping[str, Any], recipe: Mapping[str, Any], task: Task) -> Experiment:
    """What the user said over the encoder's recipe for such a task over the defaults.

    A recipe's `objective` has the keys `item` (for a task that the events themselves answer), `label` (for one that a table of
    right answers answers: items or classes), `click` and `rating`; its `monitor` a key for each kind of task that it would rather
    validate otherwise than `MONITORS` says. Raises UserError at an unknown or mistyped key."""
    for section in said:
        if section not in Experiment.model_fields:
            raise unknown("section", section, Experiment.model_fields)
    recipe = dict(recipe)
    key = task.kind if task.kind in ("click", "rating") else "item" if task.events else "label"
    objective = recipe.pop("objective", {}).get(key)
    monitor = {**MONITORS, **recipe.pop("monitor", {})}[task.kind]
    if objective is not None:
        recipe["objective"] = objective
    return parse(Experiment, merge(merge({"train": {"monitor": monitor}}, recipe), said), "")


def to_toml(experiment: Experiment) -> str:
    """Every value as TOML. TOML has no word for nothing: None is written, and read, as "none"."""
    return tomli_w.dumps(_without_none(experiment.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(entry) for key, entry in value.items()}
    return "none" if value is None else value


def _with_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_none(entry) for key, entry in value.items()}
    return None if value == "none" else value
