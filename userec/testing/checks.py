"""Which checks a plugin gets: by its kind, and by what it claims."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from userec.errors import unknown
from userec.testing.build import Subject, installed
from userec.testing.check import Check
from userec.testing.checks_claims import proofs
from userec.testing.checks_dataset import dataset_checks
from userec.testing.checks_encoder import always
from userec.testing.checks_evaluator import evaluator_checks
from userec.testing.checks_kernel import kernel_checks
from userec.testing.checks_objective import objective_checks

Plugins = Mapping[str, Mapping[str, Any]]


def checks_for(kind: str, cls: Any, registry: Any = None, settings: Mapping[str, Any] | None = None) -> list[Check]:
    """The checks of one plugin. `registry` has `.plugins` {kind: {name: class}} for nested names, all installed unless given;
    under `kernels` `cls` is the list of one op's kernels.

    Raises UserError for an unknown kind or settings that its Config refuses."""
    if kind not in KINDS:
        raise unknown("kind of plugin", kind, KINDS)
    plugins = installed if registry is None else (lambda: registry.plugins)
    return [_check(function, *arguments) for function, *arguments in KINDS[kind](cls, dict(settings or {}), plugins)]


def kind_of(cls: Any) -> str:
    """`encoders` for an Encoder, and so on; a list of kernels is `kernels`."""
    from userec.dataset.contract import Dataset
    from userec.encoder.contract import Encoder
    from userec.evaluator.contract import Evaluator
    from userec.objective.contract import Objective

    if isinstance(cls, list):
        return "kernels"
    for kind, room in (("encoders", Encoder), ("objectives", Objective), ("evaluators", Evaluator), ("datasets", Dataset)):
        if isinstance(cls, type) and issubclass(cls, room):
            return kind
    raise TypeError(f"{cls!r} is no data set, encoder, objective, evaluator or list of kernels")


def _check(function: Callable[..., None], *arguments: Any) -> Check:
    name = function.__name__.removeprefix("check_")
    words = [argument for argument in arguments if isinstance(argument, str)]
    return Check("-".join([name, *words]), partial(function, *arguments))


def _encoder_checks(cls: Any, settings: dict[str, Any], plugins: Callable[[], Plugins]) -> Iterable[tuple[Any, ...]]:
    subject = Subject(cls, settings, plugins)
    encoder = subject.fresh()
    for check in (*always(encoder), *proofs(encoder)):
        yield check, subject


KINDS: dict[str, Callable[[Any, dict[str, Any], Callable[[], Plugins]], Iterable[tuple[Any, ...]]]] = {
    "encoders": _encoder_checks,
    "objectives": objective_checks,
    "datasets": dataset_checks,
    "evaluators": evaluator_checks,
    "kernels": kernel_checks,
}
"""{kind: function giving (check, its arguments)}."""
