"""The checks of an evaluator: its metrics are told whole, and do not move with how the work is cut."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from userec.config import parse
from userec.dataset.data import SplitData
from userec.dataset.events import Coded, code
from userec.dataset.loader import BatchConfig
from userec.dataset.split import Division, SplitConfig, divide
from userec.engine.compose import Builder, misfits
from userec.evaluator.contract import Data, Evaluator, Metric
from userec.kernel.dispatch import Kernels
from userec.testing.build import Case, kernels_of
from userec.testing.check import holds
from userec.testing.checks_config import check_config, check_words
from userec.testing.tiny import TinyDataset
from userec.testing.toys import PLUGINS, Dot


@functools.cache
def tiny_data() -> tuple[Coded, Division]:
    """The tiny data set, coded and divided by `leave_last`."""
    coded = code(TinyDataset(TinyDataset.Config(), Path()))
    return coded, divide(coded, parse(SplitConfig, {"name": "leave_last"}, "split"))


@dataclass(frozen=True, eq=False)
class Judge(Case):
    """An evaluator under test, with the toy dot-product encoder over the tiny data set, as if trained for log-odds on every task
    of items that the evaluator judges; on `next` where there is none."""

    def parts(self, rows: int = 64) -> tuple[Evaluator, Any, Data]:
        """(evaluator, encoder, data in batches of `rows`); the weights are drawn anew the same each time."""
        coded, division = tiny_data()
        plugins = {**self.plugins(), "encoders": {**self.plugins()["encoders"], **PLUGINS["encoders"]}}
        build = Builder.of(plugins, coded, Kernels(kernels_of(plugins)), division.train)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = build.encoder(Dot.name)
            for p in encoder.parameters():
                torch.nn.init.normal_(p)
            encoder.begin_task(("next",), "train")
        evaluator = self.cls(self.config, build.with_dim(encoder.dim))
        judged = [task.name for task in coded.schema.all_tasks if task.kind in evaluator.judges and task.space == "item"]
        data = SplitData(
            coded,
            division,
            trained=tuple(judged) or ("next",),
            window=None,
            fields=encoder.reads,
            seed=0,
            config=parse(BatchConfig, {"rows": rows, "eval_rows": rows}, "batch"),
            odds=True,
        )
        return evaluator, encoder.eval(), data

    @torch.no_grad()
    def metrics(self, rows: int = 64) -> list[Metric] | None:
        """Its metrics on the test split; None where it does not fit the toy or the data."""
        evaluator, encoder, data = self.parts(rows)
        if misfits(encoder, evaluator, data.schema) or evaluator.refuses(encoder, data):
            return None
        return list(evaluator.evaluate(encoder, data, "test"))


def check_claims(judge: Judge) -> None:
    """`needs`, `reads` and `hides` are what the engine takes them for."""
    check_words(judge.name, judge.parts()[0])


def check_told_whole(judge: Judge) -> None:
    """Each metric has a lower-case name, a definition, a finite value inside its interval, and per-user values that match n."""
    found = judge.metrics()
    if found is None:
        return
    holds(found, f"{judge.name}: evaluate gives no metric")
    for m in found:
        told = f"{judge.name}: metric {m.metric!r} of task {m.task!r}"
        holds(m.metric and m.metric == m.metric.lower(), f"{told}: the name is not lower case")
        holds(m.definition, f"{told}: no definition")
        holds(np.isfinite(m.value), f"{told}: the value is {m.value}")
        if np.isfinite(m.low) or np.isfinite(m.high):
            holds(
                m.low - 1e-9 <= m.value <= m.high + 1e-9,
                f"{told}: the value {m.value:.4g} lies outside its interval {m.low:.4g}..{m.high:.4g}",
            )
        holds(m.better in ("higher", "lower"), f"{told}: better is {m.better!r}")
        if m.values is not None:
            holds(m.users is not None and len(m.users) == len(m.values), f"{told}: per-user values without their users")
    keys = [(m.task, m.metric, m.slice, m.period) for m in found]
    twice = sorted({str(key) for key in keys if keys.count(key) > 1})
    holds(not twice, f"{judge.name}: metrics told twice: {', '.join(twice)}")


def check_repeatable_metrics(judge: Judge) -> None:
    """Evaluated twice, the same numbers, intervals included."""
    _compare(judge, judge.metrics(), judge.metrics(), "when evaluated twice: non-determinism", 0.0)


def check_metric_batches(judge: Judge) -> None:
    """Batches of 7 users or of 64: the same numbers."""
    _compare(judge, judge.metrics(7), judge.metrics(64), "with the users in a batch: batch dependence", 1e-6)


def _compare(judge: Judge, one: list[Metric] | None, two: list[Metric] | None, fault: str, tolerance: float) -> None:
    if one is None or two is None:
        return
    holds(len(one) == len(two), f"{judge.name}: the number of metrics changes {fault}")
    for a, b in zip(one, two, strict=True):
        holds((a.task, a.metric, a.slice) == (b.task, b.metric, b.slice), f"{judge.name}: the order of metrics changes {fault}")
        for word in ("value", "low", "high", "n"):
            x, y = float(getattr(a, word)), float(getattr(b, word))
            equal = x == y or (np.isnan(x) and np.isnan(y)) or abs(x - y) <= tolerance * max(1.0, abs(x))
            holds(equal, f"{judge.name}: {a.metric} of task {a.task!r}: {word} {x:.6g} becomes {y:.6g} {fault}")


def evaluator_checks(cls: type[Evaluator], settings: dict[str, Any], plugins: Callable[[], Any]) -> Iterable[tuple[Any, Judge]]:
    """All of them."""
    judge = Judge(cls, settings, plugins)
    assert judge.config is not None
    checks = (check_claims, check_config, check_told_whole, check_repeatable_metrics, check_metric_batches)
    return [(check, judge) for check in checks]
