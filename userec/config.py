"""Configuration: frozen pydantic models in which an unknown key is an error, and what every plugin has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from userec.errors import UserError, did_you_mean

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Settings, written once: typed, defaulted, frozen; a misspelt key is refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


class Ref(Config):
    """A plugin by name with its settings: `{"name": "next_item", "price": "bce"}` names `next_item`."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Plugin:
    """What every dataset, encoder, objective and evaluator has: a name, typed settings, and how true it is to its source."""

    name: ClassVar[str]
    fidelity: ClassVar[str] = "variant"
    """`paper`, `official` (equal to the authors' code) or `variant` (ours; the docstring says where it departs)."""

    Config: ClassVar[type[Config]] = Config


def parse(model: type[C], values: Mapping[str, Any], where: str) -> C:
    """`model(**values)`; every mistake becomes one line that names the key, `where` it stands, and what would do.

    Raises UserError with all mistakes at once."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise UserError("\n".join(_line(model, where, entry) for entry in error.errors())) from None


def _line(model: type[BaseModel], where: str, entry: Any) -> str:
    path = ".".join(str(part) for part in (where, *entry["loc"]) if part != "")
    if entry["type"] == "extra_forbidden":
        return f"unknown setting {path!r}{did_you_mean(str(entry['loc'][-1]), _keys_at(model, entry['loc'][:-1]))}"
    if entry["type"] == "missing":
        return f"missing setting {path!r}"
    return f"setting {path!r}: {entry['msg'][0].lower()}{entry['msg'][1:]}, got {entry['input']!r}"


def _keys_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)
