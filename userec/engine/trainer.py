"""The training loop: epochs or steps, validation, early stopping, best weights, checkpoints that a run resumes from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from userec.batch import Batch
from userec.dataset.loader import TrainLoader
from userec.engine import checkpoint
from userec.engine.experiment import TrainConfig
from userec.engine.learner import GradientLearner
from userec.errors import UserError
from userec.evaluator.contract import Metric

CHECKPOINT_SECONDS = 300.0
"""A run killed loses at most so much training."""
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
    done: bool = False


class Trainer:
    """Trains one encoder on one loader. `validate()` gives the monitored metric, or None where there is none."""

    def __init__(
        self,
        learner: GradientLearner,
        loader: TrainLoader,
        config: TrainConfig,
        validate: Callable[[], Metric | None],
        notify: Callable[[int, int, dict[str, float]], None],
        folder: Path | None,
        about: dict[str, Any],
    ) -> None:
        self.learner, self.loader, self.config, self.validate = learner, loader, config, validate
        self.notify, self.folder, self.about = notify, folder, about
        self.progress = Progress()
        self.best: dict[str, torch.Tensor] = {}
        self.saved, self.told, self.validated = time.monotonic(), 0.0, -1
        per_epoch = -(-loader.steps(0) // config.accumulate)
        self.total = config.steps if config.steps is not None else config.epochs * per_epoch

    def fit(self, resume: bool = False) -> Progress:
        """Train to the end, restore the best weights, and say where they came from."""
        if resume:
            self._restore()
        state = self.progress
        while not self._finished():
            for batches in self._groups(state.epoch, state.position):
                self._tell(self._step(batches))
                if self._due():
                    self._validate()
                else:
                    self._save_now_and_then()
                if self.config.steps is not None and self._finished():
                    break
            else:
                self._end_epoch()
        state.done = True
        self._save("last")
        if self.best:
            self.learner.encoder.load_state_dict(self.best)
        return state

    def _finished(self) -> bool:
        steps, state = self.config.steps, self.progress
        return state.done or (state.step >= steps if steps is not None else state.epoch >= self.config.epochs)

    def _due(self) -> bool:
        """Whether to validate inside an epoch: every so many steps, and at the very last one."""
        every, step = self.config.validate_steps, self.progress.step
        return (every is not None and step % every == 0) or step == self.config.steps

    def _end_epoch(self) -> None:
        state = self.progress
        state.epoch, state.position = state.epoch + 1, 0
        last = self.config.steps is None and state.epoch >= self.config.epochs
        due = self.config.validate_steps is None and state.epoch % self.config.validate_every == 0
        if (due or last) and self.validated != state.step:
            self._validate()

    def _tell(self, values: dict[str, float]) -> None:
        now = time.monotonic()
        if now - self.told >= TELL_SECONDS:
            self.told = now
            self.notify(self.progress.step, self.total, {f"train/{name}": value for name, value in values.items()})

    def _save_now_and_then(self) -> None:
        now = time.monotonic()
        if now - self.saved >= CHECKPOINT_SECONDS:
            self._save("last")

    def _groups(self, epoch: int, start: int) -> Iterator[list[Batch]]:
        batches = iter(self.loader.batches(epoch, start))
        while group := list(islice(batches, self.config.accumulate)):
            yield group

    def _step(self, batches: list[Batch]) -> dict[str, float]:
        state = self.progress
        self.learner.encoder.train()
        began = time.perf_counter()
        epoch = state.epoch + state.position / max(1, self.loader.steps(state.epoch))
        values, targets = self.learner.step(batches, state.step, epoch, self.total)
        state.seconds += time.perf_counter() - began
        state.step, state.position, state.targets = state.step + 1, state.position + len(batches), state.targets + targets
        return values

    def _validate(self) -> None:
        state = self.progress
        self.validated = state.step
        metric = self.validate()
        if metric is None or math.isnan(metric.value):
            self._save("last")
            return
        self.notify(state.step, self.total, {f"valid/{self.config.monitor}": metric.value})
        better = state.best is None or (metric.value > state.best if metric.better == "higher" else metric.value < state.best)
        if better:
            state.best, state.best_step, state.since_best = metric.value, state.step, 0
            self.best = {key: value.detach().clone() for key, value in self.learner.encoder.state_dict().items()}
            self._save("best")
        else:
            state.since_best += 1
            state.done = self.config.patience is not None and state.since_best >= self.config.patience
        self._save("last")

    def _save(self, name: str) -> None:
        if self.folder is None:
            return
        self.saved = time.monotonic()
        tensors = {f"encoder.{key}": value for key, value in self.learner.encoder.state_dict().items()}
        tensors |= {f"objective.{key}": value for key, value in self.learner.objective.state_dict().items()}
        about = {**self.about, "step": self.progress.step, "progress": vars(self.progress)}
        if name == "last":
            optimizer, about["groups"] = checkpoint.flatten_optimizer(self.learner.optimizer)
            tensors |= optimizer
        checkpoint.save(self.folder, name, tensors, about)

    def _restore(self) -> None:
        if self.folder is None or (found := checkpoint.load(self.folder, "last")) is None:
            return
        tensors, about = found
        try:
            self.learner.encoder.load_state_dict(checkpoint.part(tensors, "encoder"))
            self.learner.objective.load_state_dict(checkpoint.part(tensors, "objective"))
        except RuntimeError as error:
            why = str(error).splitlines()[-1].strip()
            raise UserError(f"--resume: {self.folder} does not fit, the data or a plugin changed ({why})") from None
        checkpoint.restore_optimizer(self.learner.optimizer, tensors, about["groups"])
        self.progress = Progress(**about["progress"])
        if (best := checkpoint.load(self.folder, "best")) is not None:
            self.best = checkpoint.part(best[0], "encoder")
