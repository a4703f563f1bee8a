"""How an encoder learns: by gradient, or by one counting pass. That is the trainer's only branch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from userec.batch import Batch
from userec.encoder.contract import Encoder
from userec.engine.experiment import TrainConfig
from userec.errors import DivergedError
from userec.objective.contract import Objective

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}


def make_optimizer(parameters: Iterable[Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over what requires a gradient."""
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": config.optimizer != "adagrad"}
    if config.optimizer in ("adam", "adamw"):
        settings["betas"] = config.betas
    return OPTIMIZERS[config.optimizer]([p for p in parameters if p.requires_grad], **settings)


def lr_factor(config: TrainConfig, step: int, total: int) -> float:
    """What the learning rate is multiplied with at `step` of `total`: linear warm-up, then the schedule."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    left = 1 - min(1.0, (step - config.warmup) / max(1, total - config.warmup))
    return left if config.schedule == "linear" else 0.5 * (1 - math.cos(math.pi * left))


class GradientLearner:
    """One optimizer step from `accumulate` batches. All chance is seeded from (seed, step), so a step can be redone alone."""

    def __init__(self, encoder: Encoder, objective: Objective, config: TrainConfig, seed: int, device: torch.device) -> None:
        self.encoder, self.objective, self.config, self.seed, self.device = encoder, objective, config, seed, device
        self.parameters = [*encoder.parameters(), *objective.parameters()]
        self.optimizer = make_optimizer(self.parameters, config)
        self.carried: dict[str, Tensor] = {}
        """{name: [B, ...]}: what the last batch left, where the loader carries states on."""

    @property
    def way_out(self) -> str:
        """What to do when numbers grow without bound. A resumed run takes the same steps, so it would end the same way."""
        clip = "set train.clip_norm" if self.config.clip_norm is None else f"lower train.clip_norm ({self.config.clip_norm:g})"
        return f"lower train.lr ({self.config.lr:g}) or {clip}, and start anew in another --out"

    def check_weights(self, step: int) -> None:
        """Raises DivergedError where a weight is not finite: such weights are neither judged nor kept. Buffers may be."""
        named = chain(self.encoder.named_parameters(), self.objective.named_parameters())
        bad = [name for name, weight in named if not torch.isfinite(weight).all()]
        if bad:
            raise DivergedError(f"weights are not finite after step {step} ({bad[0]}): {self.way_out}")

    def step(self, batches: list[Batch], step: int, epoch: float, total: int) -> tuple[dict[str, float], int]:
        """Train on the batches as one; (loss and its parts, targets). Raises DivergedError where the loss is no number."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * lr_factor(self.config, step, total)
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        targets = 0
        for i, batch in enumerate(batches):
            drawn, dropped = np.random.SeedSequence((self.seed, step, i)).generate_state(2, np.uint64)
            rng = torch.Generator().manual_seed(int(drawn))
            torch.manual_seed(int(dropped))
            prepared = self.objective.prepare(batch, rng)
            prepared = dataclasses.replace(prepared, history=dataclasses.replace(prepared.history, epoch=epoch)).to(self.device)
            prepared = self._carry_on(prepared)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                result = self.objective.loss(self.encoder, prepared)
            if not torch.isfinite(result.loss):
                raise DivergedError(
                    f"the loss is {float(result.loss.detach())} at step {step + 1}, epoch {int(epoch) + 1},"
                    f" task {', '.join(map(repr, batch.history.tasks))}: {self.way_out}"
                )
            if prepared.carried is not None and result.state is not None:
                self.carried = {name: value.detach() for name, value in result.state.items()}
            (result.loss if len(batches) == 1 else result.loss * result.targets).backward()
            targets += result.targets
            for name, value in {"loss": result.loss, **result.parts}.items():
                values[name] = values.get(name, 0.0) + float(value.detach()) / len(batches)
        if len(batches) > 1:  # each loss is a mean over its questions: so many questions are one mean
            torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], max(targets, 1))
        if self.config.clip_norm is not None:
            values["grad_norm"] = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm))
        self.optimizer.step()
        return values, targets

    def _carry_on(self, batch: Batch) -> Batch:
        """The batch with the states that its rows go on from: zeros where they begin."""
        if batch.carried is None or not self.carried:
            return batch
        state = {}
        for name, value in self.carried.items():
            fresh = (batch.carried < 0).reshape(-1, *[1] * (value.dim() - 1))
            state[name] = value[batch.carried.clamp(min=0)].masked_fill(fresh, 0)
        return dataclasses.replace(batch, history=dataclasses.replace(batch.history, state=state))


def count(encoder: Encoder, batches: Iterable[Batch], device: torch.device) -> int:
    """One counting pass; the number of events seen."""
    events = 0
    for batch in batches:
        encoder.partial_fit(batch.to(device))
        events += int(batch.history.mask.sum())
    return events
