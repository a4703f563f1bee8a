"""The training loop: epochs or steps, validation, early stopping, best weights, checkpoints that a run resumes from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from userec.batch import Batch
from userec.dataset.loader import TrainLoader
from userec.dataset.stream import StreamLoader
from userec.engine import checkpoint
from userec.engine.experiment import TrainConfig
from userec.engine.learner import GradientLearner
from userec.errors import DivergedError, UserError
from userec.evaluator.contract import Metric

TELL_SECONDS = 1.0
"""Observers hear of training no oftener."""


@dataclass
class Progress:
    """Where training stands; all of it is in the checkpoint."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches of this epoch already taken
    targets: int = 0
    seconds: float = 0.0
    best: float | None = None
    best_step: int | None = None
    since_best: int = 0
    validated: int = 0  # step of the last validation
    done: bool = False


class Trainer:
    """Trains one encoder on one loader. `validate()` gives the monitored metric, or None where there is none.

    An interrupt (KeyboardInterrupt) leaves a checkpoint `last` from which the run goes on as if nothing had been, unless it comes
    inside a step; while a `shield()` lasts, whoever gave it holds interrupts back."""

    def __init__(
        self,
        learner: GradientLearner,
        loader: TrainLoader | StreamLoader,
        config: TrainConfig,
        validate: Callable[[], Metric | None],
        notify: Callable[[int, int, dict[str, float]], None],
        folder: Path | None,
        about: dict[str, Any],
        shield: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.learner, self.loader, self.config, self.validate = learner, loader, config, validate
        self.notify, self.folder, self.about, self.shield = notify, folder, about, shield
        self.progress = Progress()
        self.whole = True  # false inside a step, when weights and progress do not match
        self.best: dict[str, torch.Tensor] = {}
        self.saved, self.told = time.monotonic(), 0.0
        per_epoch = -(-loader.steps(0) // config.accumulate)
        self.total = config.steps if config.steps is not None else config.epochs * per_epoch

    def fit(self, resume: bool = False) -> Progress:
        """Train to the end, restore the best weights, and say where they came from. Raises DivergedError, UserError."""
        if resume:
            self._restore()
        try:
            try:
                self._train()
            except KeyboardInterrupt:
                if self.whole:
                    self._save("last")
                raise
        except DivergedError as error:
            raise DivergedError(f"{error}\n{self._last_good()}") from None
        if self.best:
            self.learner.encoder.load_state_dict(self.best)
        return self.progress

    def _train(self) -> None:
        state = self.progress
        if not state.done:
            self._settle()  # a validation that was interrupted
        while not self._finished():
            for batches in self._groups(state.epoch, state.position):
                self._tell(self._step(batches))
                self._settle()
                if self._finished():
                    break
            else:
                with self.shield():
                    state.epoch, state.position = state.epoch + 1, 0
                self._settle()
        state.done = True
        self._save("last")

    def _finished(self) -> bool:
        steps, state = self.config.steps, self.progress
        return state.done or (state.step >= steps if steps is not None else state.epoch >= self.config.epochs)

    def _settle(self) -> None:
        """Validate where that is due, else save now and then."""
        state = self.progress
        if self._due() and state.validated != state.step:
            self._validate()
        elif time.monotonic() - self.saved >= self.config.checkpoint_seconds:
            self._save("last")

    def _due(self) -> bool:
        """Whether to validate here: every so many steps or at the end of every so many epochs, and at the very end."""
        config, state = self.config, self.progress
        if config.validate_steps is not None and state.step % config.validate_steps == 0:
            return True
        if config.steps is not None and state.step == config.steps:
            return True
        if state.position > 0:
            return False
        last = config.steps is None and state.epoch >= config.epochs
        return last or (config.validate_steps is None and state.epoch % config.validate_every == 0)

    def _tell(self, values: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.told >= TELL_SECONDS:
            self.told = now
            self.notify(self.progress.step, self.total, {f"train/{name}": value for name, value in values.items()})

    def _groups(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        batches = iter(self.loader.batches(epoch, start))
        while group := list(islice(batches, self.config.accumulate)):
            yield group

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        state = self.progress
        with self.shield():
            self.learner.encoder.train()
            began = time.perf_counter()
            epoch = state.epoch + state.position / max(1, self.loader.steps(state.epoch))
            self.whole = False
            values, targets = self.learner.step(batches, state.step, epoch, self.total)
            state.seconds += time.perf_counter() - began
            state.step, state.position, state.targets = state.step + 1, state.position + len(batches), state.targets + targets
            self.whole = True
        return values

    def _validate(self) -> None:
        state, name = self.progress, self.config.monitor
        self.learner.check_weights(state.step)
        metric = self.validate()
        if metric is not None:
            self.notify(state.step, self.total, {f"valid/{name}": metric.value})
            if math.isinf(metric.value) or (math.isnan(metric.value) and state.best is not None):
                raise DivergedError(f"{name} is {metric.value} after step {state.step}: {self.learner.way_out}")
        with self.shield():
            self.whole = False
            state.validated = state.step
            better = metric is not None and self._judge(metric)
            self.whole = True
            if better:
                self._save("best")
            self._save("last")

    def _judge(self, metric: Metric) -> bool:
        """Whether these weights are the best yet; they are kept then. An undefined metric (NaN) picks none."""
        state = self.progress
        if math.isnan(metric.value):
            return False
        if state.best is None or (metric.value > state.best if metric.better == "higher" else metric.value < state.best):
            state.best, state.best_step, state.since_best = metric.value, state.step, 0
            self.best = {key: value.detach().clone() for key, value in self.learner.encoder.state_dict().items()}
            return True
        state.since_best += 1
        state.done = self.config.patience is not None and state.since_best >= self.config.patience
        return False

    def _save(self, name: str) -> None:
        """Write checkpoint `name`. Raises DivergedError where a weight is not finite: what stands there is better."""
        if self.folder is None:
            return
        self.learner.check_weights(self.progress.step)
        with self.shield():
            tensors = {f"encoder.{key}": value for key, value in self.learner.encoder.state_dict().items()}
            tensors |= {f"objective.{key}": value for key, value in self.learner.objective.state_dict().items()}
            about = {**self.about, "step": self.progress.step, "total": self.total, "progress": vars(self.progress)}
            if name == "last":
                optimizer, about["groups"] = checkpoint.flatten_optimizer(self.learner.optimizer)
                tensors |= optimizer | {f"carried.{key}": value for key, value in self.learner.carried.items()}
            checkpoint.save(self.folder, name, tensors, about)
            self.saved = time.monotonic()

    def _last_good(self) -> str:
        """Which checkpoint is left, in words."""
        found = None if self.folder is None else checkpoint.latest(self.folder)
        if found is None:
            return "no checkpoint had been written before"
        return f"the last good checkpoint stands in {self.folder} (step {found['step']})"

    def _restore(self) -> None:
        if self.folder is None or (found := checkpoint.load(self.folder, "last")) is None:
            return
        tensors, about = found
        try:
            self.learner.encoder.load_state_dict(checkpoint.part(tensors, "encoder"))
            self.learner.objective.load_state_dict(checkpoint.part(tensors, "objective"))
            checkpoint.restore_optimizer(self.learner.optimizer, tensors, about["groups"])
            self.learner.carried = {key: x.to(self.learner.device) for key, x in checkpoint.part(tensors, "carried").items()}
            self.progress = Progress(**about["progress"])
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            why = str(error).splitlines()[-1].strip()
            raise UserError(f"--resume: {self.folder} does not fit, the data or a plugin changed ({why})") from None
        if (best := checkpoint.load(self.folder, "best")) is not None:
            self.best = checkpoint.part(best[0], "encoder")
