"""What a check needs of the world: the engine's own `Builder` over the tiny schema, and a plugin made with it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from userec.batch import History
from userec.capability import Can
from userec.config import Config, parse
from userec.encoder.contract import Encoder
from userec.engine.compose import Builder
from userec.kernel.contract import Kernel
from userec.kernel.dispatch import Kernels
from userec.schema import Schema
from userec.testing.fit import Trace, count, train
from userec.testing.tiny import tiny_catalog, tiny_events, tiny_history, tiny_schema


@functools.cache
def installed() -> Mapping[str, Mapping[str, Any]]:
    """{kind: {name: class}} of everything installed, loaded once."""
    from userec.registry import load

    return load().plugins


def kernels_of(plugins: Mapping[str, Mapping[str, Any]]) -> list[Kernel]:
    """All kernels in `plugins["kernels"]`, {op: [Kernel, ...]}."""
    return [kernel for kernels in plugins.get("kernels", {}).values() for kernel in kernels]


def tiny_build(
    plugins: Mapping[str, Mapping[str, Any]] | None = None, schema: Schema | None = None, dim: int | None = None
) -> Builder:
    """`Builder` over the tiny schema. `plugins` {kind: {name: class}}: what a nested name may mean, all installed by default."""
    plugins = installed() if plugins is None else plugins
    schema = tiny_schema() if schema is None else schema
    return Builder(plugins, schema, tiny_catalog(schema), Kernels(kernels_of(plugins)), None, dim)


@dataclass(frozen=True, eq=False)
class Case:
    """A plugin class and its settings, under test. `plugins` gives those it may nest."""

    cls: Any
    settings: Mapping[str, Any] = field(default_factory=dict)
    plugins: Callable[[], Mapping[str, Mapping[str, Any]]] = installed

    @property
    def name(self) -> str:
        """The plugin's name, for messages."""
        return getattr(self.cls, "name", self.cls.__name__)

    @cached_property
    def config(self) -> Config:
        """The settings, parsed. Raises UserError."""
        return parse(self.cls.Config, self.settings, "settings")


@dataclass(frozen=True, eq=False)
class Subject(Case):
    """An encoder under test."""

    @cached_property
    def schema(self) -> Schema:
        """The tiny schema, and the fields that the class declares beyond it."""
        return tiny_schema(self.cls.reads if isinstance(self.cls.reads, frozenset) else ())

    @cached_property
    def config(self) -> Config:
        """The settings, parsed."""
        return parse(self.cls.Config, self.settings, "settings")

    def construct(
        self, schema: Schema | None = None, catalog: Mapping[str, Any] | None = None, restored: bool = False
    ) -> Encoder:
        """A bare encoder; no task has begun. It is handed training events, but not where it is to be restored."""
        schema = self.schema if schema is None else schema
        build = tiny_build(self.plugins(), schema)
        build.train = None if restored else tiny_events(schema)
        if catalog is not None:
            build.catalog = catalog
        return self.cls(self.config, build)

    def fresh(self, seed: int = 0, restored: bool = False) -> Encoder:
        """An untrained encoder whose first task has begun, in eval mode; `seed` draws its weights."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = self.construct(restored=restored)
            encoder.begin_task(self.tasks, encoder.phases[0])
        return encoder.eval()

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The first group of tasks that it does not refuse."""
        groups = [tuple(task.name for task in group) for group in self.schema.tasks]
        encoder = self.construct()
        return next((group for group in groups if not encoder.refuses(group)), groups[0])

    @cached_property
    def length(self) -> int:
        """Events a row in most checks: 8, or the encoder's window where that is less."""
        return min(8, self.fresh().window or 8)

    def history(self, seed: int = 0, rows: int = 6, shortest: int = 0, length: int | None = None) -> History:
        """A tiny history with every field."""
        length = self.length if length is None else length
        return tiny_history(seed, rows, length, schema=self.schema, tasks=self.tasks, shortest=min(shortest, length))

    @cached_property
    def _fitted(self) -> tuple[Encoder, Trace | None]:
        encoder = self.fresh()
        history = self.history(seed=3, rows=16, shortest=1, length=self.length + 1)
        if Can.GRADIENT not in encoder.offers:
            count(encoder, [history], self.schema)
            return encoder, None
        return encoder, train(encoder, history, self.schema)

    def fitted(self) -> Encoder:
        """A copy of an encoder trained for some steps (or one counting pass), in eval mode."""
        return copy.deepcopy(self._fitted[0])

    @property
    def trace(self) -> Trace:
        """What training it showed."""
        found = self._fitted[1]
        assert found is not None
        return found


def restricted(catalog: Mapping[str, Mapping[str, Any]], fields: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The catalogue with those fields alone."""
    kept = set(fields)
    return {space: {name: x for name, x in columns.items() if name in kept} for space, columns in catalog.items()}
