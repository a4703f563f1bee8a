"""Composition: plugins become objects, and what does not fit together is told before anything trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from userec.capability import Can
from userec.config import Config, Ref, parse
from userec.dataset.events import Coded, Events
from userec.encoder.contract import Encoder
from userec.encoder.table import EmbeddingTable
from userec.errors import UserError, unknown
from userec.evaluator.contract import Evaluator
from userec.kernel.dispatch import Kernels
from userec.objective.contract import Objective
from userec.schema import Schema

Plugins = Mapping[str, Mapping[str, Any]]
"""{kind: {name: class}}; kernels are a list of `Kernel` under each provider's name."""

Describe = Callable[[str, str], str]
"""(kind, name) -> `'din' (userec-target-attention 0.1.0)`."""


def by_name(kind: str, name: str) -> str:
    """The plain description, where no registry is at hand."""
    return repr(name)


class Builder:
    """The `Build` that every plugin is handed: schema, catalogue, training events, tables, nested plugins, kernels."""

    def __init__(
        self,
        plugins: Plugins,
        schema: Schema,
        catalog: Mapping[str, Mapping[str, Tensor]],
        kernels: Kernels,
        train: Events | None = None,
        dim: int | None = None,
    ) -> None:
        self.plugins, self.schema, self.catalog, self.kernels = plugins, schema, catalog, kernels
        self.train, self.dim = train, dim

    @classmethod
    def of(cls, plugins: Plugins, coded: Coded, kernels: Kernels, train: Events | None) -> Builder:
        """The builder of a coded data set."""
        catalog = {
            space: {field: torch.as_tensor(column) for field, column in fields.items()} for space, fields in coded.catalog.items()
        }
        return cls(plugins, coded.schema, catalog, kernels, train)

    def with_dim(self, dim: int) -> Builder:
        """The same builder, telling objectives and evaluators the encoder's width."""
        return Builder(self.plugins, self.schema, self.catalog, self.kernels, self.train, dim)

    def table(self, space: str, dim: int) -> EmbeddingTable:
        """A fresh table of the space. Raises UserError where the data set has no such space."""
        if space not in self.schema.spaces:
            raise unknown("label space", space, self.schema.spaces)
        return EmbeddingTable(self.schema.spaces[space], dim)

    def encoder(self, ref: Ref | str) -> Encoder:
        """An encoder by name."""
        return self._make("encoders", "encoder", ref)

    def objective(self, ref: Ref | str) -> Objective:
        """An objective by name."""
        return self._make("objectives", "objective", ref)

    def evaluator(self, ref: Ref | str) -> Evaluator:
        """An evaluator by name."""
        return self._make("evaluators", "evaluator", ref)

    def op(self, name: str) -> Callable[..., Any]:
        """The kernel of that name."""
        return self.kernels.op(name)

    def gather(self, x: Tensor) -> Tensor:
        """Alone, the identity."""
        return x

    def _make(self, kind: str, word: str, ref: Ref | str) -> Any:
        found, config = configure(self.plugins, kind, word, Ref(name=ref) if isinstance(ref, str) else ref)
        return found(config, self)


def configure(plugins: Plugins, kind: str, word: str, ref: Ref) -> tuple[Any, Config]:
    """The plugin's class and its settings, parsed. Raises UserError: an unknown plugin, or settings it does not take."""
    found = plugins[kind].get(ref.name)
    if found is None:
        raise unknown(word.partition(".")[0], ref.name, plugins[kind])
    return found, parse(found.Config, ref.settings, word)


def complete(plugins: Plugins, kind: str, word: str, ref: Ref) -> Ref:
    """The same reference with every setting, defaults included."""
    _, config = configure(plugins, kind, word, ref)
    return Ref(**{**config.model_dump(mode="json"), "name": ref.name})


def fields_of(schema: Schema) -> frozenset[str]:
    """Every field that an encoder may read: those of the tables, `user`, and `asked.time` where there are times."""
    asked = {"asked.time"} if "time" in schema.fields else set()
    return frozenset({"user", "item", *schema.fields, *asked})


def misfits(encoder: Encoder, other: Objective | Evaluator, schema: Schema) -> list[str]:
    """Every reason why the two do not fit, or nothing."""
    reasons = []
    if missing := other.needs & ~encoder.offers:
        reasons.append(f"needs {missing.words}; {encoder.name!r} offers {encoder.offers.words}")
    if hidden := sorted(other.hides & encoder.reads):
        reasons.append(f"predicts {', '.join(hidden)}, which {encoder.name!r} reads")
    if absent := sorted(other.reads - fields_of(schema)):
        reasons.append(f"reads {', '.join(absent)}, which the data set does not have")
    return reasons


def check(encoder: Encoder, objective: Objective | None, schema: Schema, build: Builder, describe: Describe = by_name) -> None:
    """Refuse an encoder that cannot read the data, or an objective that does not fit it, all reasons at once.

    Raises UserError that also names the objectives that would fit."""
    lines = []
    if absent := sorted(encoder.reads - fields_of(schema)):
        has = ", ".join(sorted(fields_of(schema)))
        lines.append(f"encoder {describe('encoders', encoder.name)} reads {', '.join(absent)}; the data set has {has}")
    if objective is not None and (reasons := misfits(encoder, objective, schema)):
        lines.append(f"cannot compose encoder {describe('encoders', encoder.name)} with objective {objective.name!r}:")
        lines += [f"  {reason}" for reason in reasons]
        fitting = list(_fitting(encoder, schema, build))
        lines.append(f"  would fit: {' or '.join(fitting) if fitting else 'no installed objective'}")
    if lines:
        raise UserError("\n".join(lines))


def _fitting(encoder: Encoder, schema: Schema, build: Builder) -> Iterable[str]:
    for name, found in sorted(build.plugins["objectives"].items()):
        for settings in ({}, *found.variants):
            objective = build.objective(Ref(name=name, **settings))
            if not misfits(encoder, objective, schema):
                yield name + (f"({', '.join(f'{key}={value}' for key, value in settings.items())})" if settings else "")
                break


def trainable(encoder: Encoder) -> bool:
    """Whether it trains by gradient; else by counting."""
    return Can.GRADIENT in encoder.offers
