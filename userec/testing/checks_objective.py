"""The checks of an objective: what it asks is fair and seeded, what it prices is a number that trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from userec.batch import Batch, Targets
from userec.capability import Can
from userec.encoder.contract import Encoder
from userec.engine.compose import misfits
from userec.objective.contract import Objective, Step
from userec.testing.build import Case, tiny_build
from userec.testing.check import finite, holds, same
from userec.testing.checks_config import check_config, check_words
from userec.testing.tiny import pad, tiny_batch, tiny_schema
from userec.testing.toys import PLUGINS, Dot, ManyTask, Stateful, Target, UserId


@dataclass(frozen=True, eq=False)
class Posed(Case):
    """An objective under test, with a toy encoder that fits it and a task that it can be asked."""

    def pair(self, seed: int = 0) -> tuple[Encoder, Objective, str]:
        """(encoder, objective, task), the task begun for both."""
        schema = tiny_schema()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            build = tiny_build({**self.plugins(), "encoders": {**self.plugins()["encoders"], **PLUGINS["encoders"]}})
            refused = []
            for toy in (Dot, ManyTask, Stateful, Target, UserId):
                encoder = build.encoder(toy.name)
                objective = self.cls(self.config, build.with_dim(encoder.dim))
                check_words(self.name, objective)
                if reasons := misfits(encoder, objective, schema):
                    refused += reasons
                    continue
                task = self._task(objective)
                if task == "next" or Can.MANY_TASKS in encoder.offers:
                    encoder.begin_task((task,), "train")
                    objective.begin_task(encoder, (task,), "train")
                    return encoder.eval(), objective, task
        raise AssertionError(f"{self.name}: no toy encoder fits: {'; '.join(dict.fromkeys(refused))}")

    def _task(self, objective: Objective) -> str:
        """`next` where it makes its own questions from events; else a task with labels, whose questions the loader puts."""
        return "next" if objective.ahead > 0 or not self._wants_targets(objective) else "group"

    def _wants_targets(self, objective: Objective) -> bool:
        try:
            return objective.prepare(tiny_batch(length=9), seeded()).targets is None
        except (AssertionError, AttributeError):
            return True

    def batch(self, task: str, seed: int = 0, length: int = 9, shortest: int = 2) -> Batch:
        """Raw training rows of the task."""
        return tiny_batch(seed, 6, length, task, shortest)


def seeded(seed: int = 3) -> torch.Generator:
    """The generator that the learner would hand over."""
    return torch.Generator().manual_seed(seed)


def leaves(value: Any, path: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) of everything inside a batch."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from leaves(entry, f"{path}.{key}")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for one in dataclasses.fields(value):
            yield from leaves(getattr(value, one.name), f"{path}.{one.name}")


def stepped(posed: Posed, change: Callable[[Batch], Batch] = lambda batch: batch) -> Step:
    """One loss of the prepared batch, changed by `change`, in eval mode: no dropout, the same random state each time."""
    encoder, objective, task = posed.pair()
    prepared = change(objective.prepare(posed.batch(task), seeded()))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return objective.loss(encoder, prepared)


def check_claims(posed: Posed) -> None:
    """`needs`, `reads`, `hides` and `ahead` are what the engine takes them for, and a toy encoder fits."""
    _, objective, _ = posed.pair()
    holds(
        isinstance(objective.ahead, int) and objective.ahead >= 0,
        f"{posed.name}: ahead is {objective.ahead!r}, not a count of events",
    )


def check_prepare_seeded(posed: Posed) -> None:
    """`prepare` twice with equal generators gives equal batches, whatever the global random state."""
    _, objective, task = posed.pair()
    found = []
    for state in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(state)
            found.append(dict(leaves(objective.prepare(posed.batch(task), seeded()))))
    for path, value in found[0].items():
        other = found[1].get(path)
        equal = other is not None and value.shape == other.shape and torch.equal(value.nan_to_num(), other.nan_to_num())
        holds(equal, f"{posed.name}: prepare gives another {path} for the same generator: chance outside rng")


def check_prepare_pure(posed: Posed) -> None:
    """`prepare` leaves its input as it was."""
    _, objective, task = posed.pair()
    batch = posed.batch(task)
    before = {path: value.clone() for path, value in leaves(batch)}
    objective.prepare(batch, seeded())
    changed = [path for path, value in leaves(batch) if not torch.equal(value.nan_to_num(), before[path].nan_to_num())]
    holds(not changed, f"{posed.name}: prepare writes into {', '.join(changed)}: batches are values")


def check_answer_hidden(posed: Posed) -> None:
    """No item stands twice in a row: its answer never stands at or before a question; where CAUSAL is not needed, nowhere."""
    _, objective, task = posed.pair()
    if task != "next":
        return
    batch = objective.prepare(posed.batch(task), seeded())
    holds(batch.targets is not None, f"{posed.name}: prepare gives no targets")
    assert batch.targets is not None
    answers, items = positives(batch.targets), batch.history.events["item"]  # [B, Q, P], [B, L]
    if answers is None:
        return
    at = batch.targets.query.at[..., None]
    seen = torch.arange(items.shape[1]) <= at if Can.CAUSAL in objective.needs else torch.ones_like(at, dtype=torch.bool)
    leak = ((answers[..., None] == items[:, None, None]) & seen[:, :, None] & (answers[..., None] > 0)).any(-1)  # [B, Q, P]
    where = "at or before its question" if Can.CAUSAL in objective.needs else "in the history, and CAUSAL is not needed"
    holds(not leak.any(), f"{posed.name}: {int(leak.sum())} answers of {leak.numel()} stand {where}: answer in history")


def positives(targets: Targets) -> Tensor | None:
    """[B, Q, P] ids that are right answers where weight is not 0, else 0; None where labels are of no given ids."""
    if targets.answer is not None:
        found = targets.answer[..., None]
    elif targets.labels is not None and targets.query.ids is not None:
        right = (targets.labels.nan_to_num() > 0).any(-1)
        found = targets.query.ids.expand_as(right) * right
    else:
        return None
    return found if targets.weight is None else found * (targets.weight[..., None] > 0)


def check_loss(posed: Posed) -> None:
    """The loss is a finite scalar, its parts are detached, and questions were counted."""
    step = stepped(posed)
    holds(step.loss.shape == (), f"{posed.name}: loss has shape {tuple(step.loss.shape)}, not a scalar: wrong shape")
    finite(posed.name, "loss", step.loss, "no number in the loss")
    attached = [name for name, part in step.parts.items() if part.requires_grad]
    holds(not attached, f"{posed.name}: parts {', '.join(attached)} still carry a gradient: detach what is only logged")
    holds(step.targets > 0, f"{posed.name}: targets is {step.targets}: the questions answered are not counted")


def check_loss_trains(posed: Posed) -> None:
    """A gradient flows from the loss into the encoder and into the objective's own parameters, and is a number."""
    encoder, objective, task = posed.pair()
    objective.loss(encoder, objective.prepare(posed.batch(task), seeded())).loss.backward()
    grads = [p.grad for p in encoder.parameters() if p.grad is not None]
    holds(any(g.any() for g in grads), f"{posed.name}: no gradient reaches the encoder: gradient that never flows")
    silent = [name for name, p in objective.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    holds(not silent, f"{posed.name}: {', '.join(silent)} of the objective gets no gradient: gradient that never flows")
    holds(all(g.isfinite().all() for g in grads), f"{posed.name}: the encoder's gradient is not a number: no number in gradient")


def check_loss_padding(posed: Posed) -> None:
    """Pads appended to the prepared history: the loss stays."""
    longer = stepped(posed, lambda batch: replace(batch, history=pad(batch.history, 3)))
    same(posed.name, "the loss changes when 3 pads are appended", longer.loss, stepped(posed).loss, "padding dependence")


def check_weight(posed: Posed) -> None:
    """A question of weight 0 costs nothing, whatever stands as its answer."""

    def change(batch: Batch) -> Batch:
        targets = batch.targets
        assert targets is not None
        if targets.weight is None or targets.answer is None:
            return batch
        return replace(batch, targets=replace(targets, answer=torch.where(targets.weight > 0, targets.answer, 5)))

    same(
        posed.name,
        "the loss changes with the answer of a question of weight 0",
        stepped(posed, change).loss,
        stepped(posed).loss,
        "weight",
    )


def check_nothing_to_ask(posed: Posed) -> None:
    """A batch of rows too short to be asked anything costs 0, and no NaN."""
    encoder, objective, task = posed.pair()
    if task != "next":
        return
    step = objective.loss(encoder, objective.prepare(posed.batch(task, length=1 + objective.ahead, shortest=1), seeded()))
    finite(posed.name, "loss of rows of which some are too short to be asked", step.loss, "no number in the loss")
    batch = posed.batch(task, length=1, shortest=1)
    batch = replace(batch, history=pad(batch.history, objective.ahead))
    step = objective.loss(encoder, objective.prepare(batch, seeded()))
    finite(posed.name, "loss of rows that are all too short to be asked", step.loss, "no number in the loss")


def objective_checks(cls: Any, settings: dict[str, Any], plugins: Callable[[], Any]) -> Iterable[tuple[Any, Posed]]:
    """All of them."""
    posed = Posed(cls, settings, plugins)
    assert posed.config is not None
    checks = (check_claims, check_config, check_prepare_seeded, check_prepare_pure, check_answer_hidden, check_loss)
    more = (check_loss_trains, check_loss_padding, check_weight, check_nothing_to_ask)
    return [(check, posed) for check in (*checks, *more)]
