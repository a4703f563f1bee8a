"""A session holds the data, the builder and the machine; every model of a run, baselines too, is made and judged by it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from userec.batch import Batch
from userec.capability import Can
from userec.config import Ref
from userec.dataset.data import SplitData
from userec.dataset.events import Coded
from userec.dataset.loader import TrainLoader
from userec.dataset.split import Division, target_hash
from userec.dataset.stream import StreamLoader
from userec.encoder.contract import Encoder, has_scores
from userec.engine import checkpoint
from userec.engine.compose import Builder, Describe, Plugins, by_name, check, configure, misfits, trainable
from userec.engine.experiment import Experiment, resolve
from userec.engine.learner import GradientLearner, count
from userec.engine.trainer import Progress, Trainer
from userec.errors import UserError, unknown
from userec.evaluator.contract import Evaluator, Metric, Split
from userec.evaluator.slices import restrict, slices_of
from userec.objective.contract import Objective
from userec.report import Row
from userec.schema import FIRST, Task

SPLITS: tuple[Split, ...] = ("valid", "test")


def silent(hook: str, **values: Any) -> None:
    """No observers."""


def nameless(kind: str, name: str) -> Mapping[str, str]:
    """The name alone, where nobody knows who brought it."""
    return {"name": name}


@dataclass(frozen=True)
class Host:
    """What the engine is handed by whoever starts it; the engine itself imports no plugin."""

    plugins: Plugins
    notify: Callable[..., None] = silent
    """`notify(hook, **values)` calls every observer."""
    describe: Describe = by_name
    tell: Callable[[str], None] = print
    """Called with each line that the user should read."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Distributions and their versions, for the report."""
    origin: Callable[[str, str], Mapping[str, str]] = nameless
    """(kind, name) -> {name, distribution, version}, for the checkpoints."""
    shield: Callable[[], AbstractContextManager[Any]] = nullcontext
    """While `with shield():` lasts, an interrupt waits: so a training step or a checkpoint is whole."""


@dataclass
class Run:
    """A run as observers see it."""

    model: str
    dataset: str
    experiment: Experiment
    out: Path | None
    total_steps: int = 0
    kept: dict[str, Any] = field(default_factory=dict)
    """Room for observers: what one opens at the start it finds here at the end, under its own name."""


class View:
    """A data set as an evaluator sees it: on the encoder's device; where that is asked for, with a fixed sample of its users, or
    one task of it alone."""

    def __init__(self, data: SplitData, device: torch.device, users: int | None = None, task: str | None = None) -> None:
        self.data, self.device, self.users = data, device, users
        self.schema = data.schema if task is None else replace(data.schema, tasks=((data.schema.task(task),),))
        self.trained, self.seed, self.odds, self.kept = data.trained, data.seed, data.odds, data.kept
        self.popularity = data.popularity.to(device)

    @property
    def repeats(self) -> float:
        """See `Data`."""
        return self.data.repeats

    def batches(self, split: Split, task: str, users: int | None = None) -> Iterator[Batch]:
        """See `Data`."""
        for batch in self.data.batches(split, task, users or (None if split == "train" else self.users)):
            yield batch.to(self.device)

    def pieces(self, split: Split, back: int, *, events: int, shots: int = 1, gap: int = 0) -> Iterator[Batch]:
        """See `Data`."""
        for batch in self.data.pieces(split, back, events=events, shots=shots, gap=gap):
            yield batch.to(self.device)

    def seen(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """See `Data`."""
        rows, ids = self.data.seen(batch)
        return rows.to(self.device), ids.to(self.device)

    def questions(self, split: Split, task: str) -> int:
        """See `Data`."""
        total = self.data.questions(split, task)
        return total if self.users is None else min(total, self.users)


@dataclass
class Model:
    """A composed encoder, and the data as it reads it."""

    name: str
    encoder: Encoder
    experiment: Experiment
    stages: list[tuple[tuple[str, ...], str]]
    """(task group, phase), in training order."""
    trained: tuple[str, ...]
    """The tasks of all stages; none where the encoder only embeds."""
    build: Builder
    odds: bool = False
    """Whether its scores are log-odds."""
    progress: Progress = field(default_factory=Progress)
    evaluate_s: float = 0.0


class Session:
    """Made once a run, from the coded data and how it is divided."""

    def __init__(self, host: Host, run: Run, coded: Coded, division: Division, build: Builder, device: torch.device) -> None:
        self.host, self.run, self.coded, self.division, self.build, self.device = host, run, coded, division, build, device
        self.slices = slices_of(run.experiment.slices, coded, division)

    def compose(self, experiment: Experiment) -> Model:
        """Build the encoder, and refuse, with every reason, what cannot be trained together."""
        torch.manual_seed(experiment.seed)
        encoder = self.build.encoder(experiment.encoder).to(self.device)
        build = self.build.with_dim(encoder.dim)
        known = ", ".join(sorted(build.plugins["objectives"]))
        if trainable(encoder) and experiment.objective is None:
            raise UserError(f"encoder {encoder.name!r} names no objective for this task: choose one with --objective ({known})")
        if not trainable(encoder) and experiment.objective is not None:
            raise UserError(f"encoder {encoder.name!r} counts, it does not train by gradient: leave --objective out")
        objective = build.objective(experiment.objective) if experiment.objective is not None else None
        task = task_of(self.coded, experiment.task)
        if not has_scores(encoder):  # it learns from what people did, whatever the others learn from
            task = next((one for one in self.coded.schema.all_tasks if one.events), task)
        stages: list[tuple[tuple[str, ...], str]] = [((task.name,), phase) for phase in encoder.phases]
        if objective is not None:
            objective.begin_task(encoder, *stages[0])  # what it hides may depend on the task
        check(encoder, objective, self.coded.schema, build, self.host.describe)
        if experiment.batch.carry is not None:
            self._check_carry(encoder, objective, experiment.batch.carry, task.name)
        if reasons := [reason for tasks, _ in stages for reason in encoder.refuses(tasks)]:
            raise UserError("\n".join(dict.fromkeys(reasons)))
        trained = tuple(dict.fromkeys(task for group, _ in stages for task in group if has_scores(encoder)))
        odds = objective is not None and objective.odds
        return Model(encoder.name, encoder, experiment, stages, trained, build, odds)

    def view(self, model: Model, evaluator: Evaluator, users: int | None = None, task: str | None = None) -> View:
        """The data with the fields that the model and the evaluator read."""
        data = SplitData(
            self.coded,
            self.division,
            trained=model.trained,
            window=model.encoder.window,
            fields=model.encoder.reads | evaluator.reads,
            seed=model.experiment.seed,
            config=model.experiment.batch,
            odds=model.odds,
        )
        return View(data, self.device, users, task)

    def train(self, model: Model, folder: Path | None = None, resume: bool = False) -> None:
        """Train through all stages; checkpoints go to `folder`, best weights are restored."""
        for i, (tasks, phase) in enumerate(model.stages):
            place = folder if folder is None or len(model.stages) == 1 else folder / f"{i}-{'-'.join(tasks)}-{phase}"
            if i:  # heads made here are the same whether the stages before were trained just now or resumed
                torch.manual_seed(int(np.random.SeedSequence((model.experiment.seed, i)).generate_state(1)[0]))
            model.encoder.begin_task(tasks, phase)
            if trainable(model.encoder):
                self._train_by_gradient(model, tasks, phase, place, resume)
            else:
                self._count(model, tasks)
            model.encoder.end_task(tasks, phase)
            if not trainable(model.encoder):
                self._keep(model, tasks, place)
        model.encoder.eval()

    @cached_property
    def fingerprint(self) -> str:
        """What was trained on and asked for: a resumed run must find the same. Features of users and items are not in it."""
        train, labels = self.division.train, self.division.train_labels
        columns = [train.offsets, *(train.fields[name] for name in sorted(train.fields))]
        columns += [column for task in sorted(labels) for column in (labels[task].user, labels[task].id, labels[task].value)]
        seen = 0
        for column in columns:
            seen = zlib.crc32(np.ascontiguousarray(column).tobytes(), seen)
        return f"{target_hash(self.coded, self.division)}-{seen:08x}"

    def made_by(self, experiment: Experiment) -> dict[str, Mapping[str, str]]:
        """Who brought the encoder, the objective and the data set: {word: {name, distribution, version}}."""
        named = [("encoder", "encoders", experiment.encoder.name), ("dataset", "datasets", self.run.dataset)]
        if experiment.objective is not None:
            named.append(("objective", "objectives", experiment.objective.name))
        return {word: self.host.origin(kind, name) for word, kind, name in named}

    def loader(self, model: Model, tasks: tuple[str, ...], objective: Objective | None) -> TrainLoader | StreamLoader:
        """Training rows of a task group, cut as the encoder can use them and the objective, None = counting, asks."""
        encoder, config = model.encoder, model.experiment.batch
        reads = encoder.reads if objective is None else encoder.reads | objective.reads
        told: dict[str, Any] = {"task": tasks[0], "fields": reads, "seed": model.experiment.seed, "config": config}
        if config.carry is not None:
            return StreamLoader(self.coded, self.division, carry=config.carry, **told)
        ahead = 0 if objective is None else objective.ahead
        whole = objective is None or objective.windows or Can.ANY_POSITION in encoder.offers
        window = None if objective is None else encoder.window
        return TrainLoader(self.coded, self.division, window=window, ahead=ahead, whole=whole, **told)

    def _check_carry(self, encoder: Encoder, objective: Objective | None, carry: int, task: str) -> None:
        """Raises UserError where a state cannot be carried from batch to batch: the encoder has none, or what it reads is not
        every event in order (an objective that cuts or hides more than the event that follows)."""
        name, missing = f"batch.carry={carry}", (Can.CARRY_STATE | Can.ANY_POSITION) & ~encoder.offers
        if objective is None:
            raise UserError(f"{name} is for training by gradient; encoder {encoder.name!r} counts: leave batch.carry out")
        if missing:
            raise UserError(f"{name} needs {missing.words}; encoder {encoder.name!r} offers {encoder.offers.words}")
        if encoder.window is not None and carry > encoder.window:
            raise UserError(f"{name} is more than encoder.window={encoder.window}: a stretch must fit into the window")
        if not self.coded.schema.task(task).events:
            raise UserError(f"{name} reads events one after another; task {task!r} has labels: leave batch.carry out")
        if objective.windows or objective.ahead != 1:
            asks = "asks for the next event of each; objective"
            raise UserError(
                f"{name} {asks} {objective.name!r} asks for others: use --objective next_item or leave batch.carry out"
            )

    def _train_by_gradient(self, model: Model, tasks: tuple[str, ...], phase: str, folder: Path | None, resume: bool) -> None:
        encoder, experiment = model.encoder, model.experiment
        assert experiment.objective is not None
        objective = model.build.objective(experiment.objective).to(self.device)
        objective.begin_task(encoder, tasks, phase)
        encoder.to(self.device)
        loader = self.loader(model, tasks, objective)
        if loader.steps(0) == 0:
            raise UserError(
                f"no training rows for task {tasks[0]!r}: split {self.division.name!r} left none; choose another --split"
            )
        learner = GradientLearner(encoder, objective, experiment.train, experiment.seed, self.device)
        about = {**self._about(model, tasks), "phase": phase}
        validate = self._validation(model, tasks)
        trainer = Trainer(learner, loader, experiment.train, validate, self._notify, folder, about, self.host.shield)
        self.run.total_steps = trainer.total
        model.progress = trainer.fit(resume)
        objective.end_task(encoder, tasks, phase)

    def _count(self, model: Model, tasks: tuple[str, ...]) -> None:
        loader = self.loader(model, tasks, None)
        began = time.perf_counter()
        targets = count(model.encoder, loader.batches(0), self.device)
        model.progress = Progress(epoch=1, targets=targets, seconds=time.perf_counter() - began, done=True)

    def _keep(self, model: Model, tasks: tuple[str, ...], folder: Path | None) -> None:
        """What counting came to, once the task has ended: a checkpoint `best`."""
        if folder is not None:
            tensors = {f"encoder.{key}": value for key, value in model.encoder.state_dict().items()}
            with self.host.shield():
                checkpoint.save(folder, "best", tensors, {**self._about(model, tasks), "step": 0})

    def _about(self, model: Model, tasks: tuple[str, ...]) -> dict[str, Any]:
        """What every checkpoint says of itself."""
        made_by = self.made_by(model.experiment)
        return {"model": model.name, "made_by": made_by, "data": self.fingerprint, "tasks": list(tasks)}

    def _notify(self, step: int, total: int, values: dict[str, float]) -> None:
        self.host.notify("userec_progress", run=self.run, step=step, values=values)

    def _validation(self, model: Model, tasks: tuple[str, ...]) -> Callable[[], Metric | None]:
        """The monitored metric of the first task on the validation split; None where nobody can say it."""
        monitor = model.experiment.train.monitor
        name, _, metric_name = monitor.partition("/")
        evaluator = self.evaluator(model, name)
        if reasons := misfits(model.encoder, evaluator, self.coded.schema):
            return self._unmonitored(monitor, reasons)
        view = self.view(model, evaluator, model.experiment.train.validate_users, tasks[0])
        reasons = evaluator.refuses(model.encoder, view)
        if not view.questions("valid", tasks[0]):
            reasons = [*reasons, f"split {self.division.name!r} holds no validation question of task {tasks[0]!r}"]
        if reasons:
            return self._unmonitored(monitor, reasons)

        def validate(seen: View = view) -> Metric | None:
            began = time.perf_counter()
            model.encoder.eval()
            seen.kept.clear()  # what was found with other weights
            with torch.no_grad():
                found = list(evaluator.evaluate(model.encoder, seen, "valid"))
            model.evaluate_s += time.perf_counter() - began
            metrics = {m.metric.partition("~")[0]: m for m in found if m.task == tasks[0] or not evaluator.judges}
            if metric_name not in metrics:
                raise unknown("metric", metric_name, metrics, f"train.monitor = {monitor!r}")
            return metrics[metric_name]

        validate(self.view(model, evaluator, 2, tasks[0]))  # a monitor that is no metric is told before anything trains
        return validate

    def _unmonitored(self, monitor: str, reasons: list[str]) -> Callable[[], Metric | None]:
        self.host.tell(f"no validation by {monitor}: {reasons[0]}; training runs to its end and the last weights are kept")
        return lambda: None

    def evaluator(self, model: Model, name: str) -> Evaluator:
        """The evaluator of that name with the run's settings of it."""
        return model.build.evaluator(evaluator_ref(model.experiment, name))

    def refusals(self, model: Model, evaluator: Evaluator) -> list[str]:
        """Why the evaluator does not fit the model on this data; nothing where it does."""
        reasons = misfits(model.encoder, evaluator, self.coded.schema)
        return reasons or evaluator.refuses(model.encoder, self.view(model, evaluator))

    def evaluate(self, model: Model, evaluators: Iterable[Evaluator]) -> list[Row]:
        """Every metric of every evaluator on both splits, stamped."""
        rows = []
        began = time.perf_counter()
        model.encoder.eval()
        with torch.no_grad():
            for evaluator in evaluators:
                view = self.view(model, evaluator)
                for split in SPLITS:
                    for metric in evaluator.evaluate(model.encoder, view, split):
                        parts = (restrict(metric, part, model.experiment.split.seed) for part in self.slices)
                        told = [metric, *(part for part in parts if part is not None)]
                        rows += [Row(model.name, evaluator.name, split, one) for one in told]
        model.evaluate_s += time.perf_counter() - began
        return rows

    def baselines(self, experiment: Experiment, evaluators: Iterable[Evaluator]) -> tuple[list[Row], list[dict[str, str]]]:
        """The evaluators' own baselines, fitted on the same events and judged the same way; and why one is left out."""
        rows: list[Row] = []
        skipped: list[dict[str, str]] = []
        made: dict[str, Model | str] = {}
        for evaluator in evaluators:
            for ref in evaluator.baselines:
                if ref.name == experiment.encoder.name:
                    continue
                key = ref.model_dump_json()
                if key not in made:
                    made[key] = self._baseline(experiment, ref)
                found = made[key]
                reasons = [found] if isinstance(found, str) else self.refusals(found, evaluator)
                if isinstance(found, Model) and not reasons:
                    rows += self.evaluate(found, [evaluator])
                skipped += [{"evaluator": evaluator.name, "reason": f"baseline {ref.name!r}: {reason}"} for reason in reasons]
        return rows, skipped

    def _baseline(self, experiment: Experiment, ref: Ref) -> Model | str:
        """The baseline, fitted; or why it does not fit the data."""
        task = task_of(self.coded, experiment.task)
        try:
            model = self.compose(baseline_of(experiment, ref, self.build.plugins, task))
        except UserError as error:
            return str(error).splitlines()[0]
        self.train(model)
        return model


def baseline_of(experiment: Experiment, ref: Ref, plugins: Plugins, task: Task) -> Experiment:
    """The same run with another encoder: its own recipe, the same data, split, task, evaluators and seed."""
    said = experiment.model_dump(exclude={"encoder", "objective", "train", "batch"})
    found, _ = configure(plugins, "encoders", "encoder", ref)
    return resolve({**said, "encoder": ref.model_dump()}, found.recipe, task)


def evaluator_ref(experiment: Experiment, name: str) -> Ref:
    """The evaluator with the settings that the experiment has for it."""
    return Ref(**{**experiment.evaluator.get(name, {}), "name": name})


def task_of(coded: Coded, name: str | None) -> Task:
    """The task of that name, or the first one. Raises UserError."""
    tasks = {task.name: task for task in coded.schema.all_tasks}
    if name is None:
        return coded.schema.all_tasks[0]
    if name not in tasks:
        raise unknown("task", name, tasks)
    return tasks[name]


def counts_of(coded: Coded) -> dict[str, int]:
    """Users with events, items and events."""
    users = int((coded.events.lengths > 0).sum())
    return {"users": users, "items": coded.schema.spaces["item"] - FIRST, "events": int(coded.events.offsets[-1])}
