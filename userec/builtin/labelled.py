"""The objective `labelled`: rows of a label table (age, gender, click, like) against the encoder's scores at the request.

`softmax`: the answer against the whole label space (an age class, the item liked). `bce`: each given candidate is right or
wrong by its label, with drawn negatives beside it where the table holds only positives. `squared`: the score is the number that
a label holds, a rating."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Batch, Encoded, Targets
from userec.capability import Can
from userec.config import Config
from userec.dataset.sampling import Uniform
from userec.encoder.contract import Build, Encoder
from userec.errors import UserError
from userec.markers import hookimpl
from userec.objective import catalogue, prices
from userec.objective.contract import Objective, Step
from userec.schema import FIRST, answers


class LabelledConfig(Config):
    """What a right label costs when it is not found."""

    price: Literal["softmax", "bce", "squared"] = "softmax"
    negatives: Annotated[int, Setting(ge=1)] | None = None
    """`bce`: uniform negatives drawn beside each row; None = the table's own labels alone."""


class Labelled(Objective):
    """One question a row, as the loader put it: `answer` [B, Q], `labels` [B, Q, 1, A]. Reserved ids are never an answer."""

    name = "labelled"
    fidelity = "paper"
    Config = LabelledConfig
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ({"price": "bce"}, {"price": "squared"})

    def __init__(self, config: LabelledConfig, build: Build) -> None:
        super().__init__(config, build)
        self.config: LabelledConfig = config
        if config.price != "bce" and config.negatives is not None:
            raise UserError(f"objective 'labelled': price {config.price!r} draws no negatives; set objective.price=bce")
        self.odds = config.price == "bce"
        self.needs = Can.GRADIENT | (Can.SCORE_CATALOG if config.price == "softmax" else Can.NOTHING)
        self.build = build
        self.fused = build.op("linear_cross_entropy")
        self.group = tuple(task for task in build.schema.all_tasks if not task.events)
        self.hides = frozenset[str]().union(*(answers(task, build.schema) for task in self.group))

    def begin_task(self, encoder: Encoder, tasks: tuple[str, ...], phase: str) -> None:
        """From here on it hides what the group's tasks predict, and no more. Raises UserError where a task has no labels, or
        labels that the price is not made for."""
        self.group = tuple(self.build.schema.task(name) for name in tasks)
        if events := [task.name for task in self.group if task.events]:
            raise UserError(
                f"objective 'labelled' reads labels; task {events[0]!r} is the events themselves: use --objective next_item"
            )
        for task in self.group:
            if (task.kind == "rating") != (self.config.price == "squared"):
                fitting = "squared" if task.kind == "rating" else "softmax or bce"
                raise UserError(
                    f"objective 'labelled': price {self.config.price!r} is not made for task {task.name!r} of kind {task.kind};"
                    f" set objective.price={fitting}"
                )
        self.hides = frozenset[str]().union(*(answers(task, self.build.schema) for task in self.group))

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Weigh the rows: `softmax` asks those with a positive label, `bce` and `squared` all with one, each against `query.ids`
        [B, Q, 1 + K]."""
        targets = batch.targets
        assert targets is not None
        assert targets.answer is not None
        labels: Tensor | None = targets.labels if targets.labels is not None else torch.ones(*targets.answer.shape, 1, 1)
        assert labels is not None
        known = labels > 0 if self.config.price == "softmax" else ~labels.isnan()
        asked = known.flatten(2).any(2) & (targets.answer >= FIRST)
        ids, labels = (None, None) if self.config.price == "softmax" else self._candidates(targets.answer, labels, rng)
        query = dataclasses.replace(targets.query, ids=ids)
        return dataclasses.replace(batch, targets=Targets(query, targets.answer, labels, asked.float()))

    def loss(self, encoder: Encoder, batch: Batch) -> Step:
        """The mean price of the rows; among the parts `accuracy`, but not of a softmax over items, or `rmse`."""
        targets = batch.targets
        assert targets is not None
        asked, answer = catalogue.where_asked(targets)
        encoded = encoder.encode(batch.history)
        parts: dict[str, Tensor] = {}
        if self.config.price == "softmax" and all(task.kind != "label" for task in self.group):
            own = catalogue.mean_cross_entropy(encoder, encoded, targets, self.fused)
        else:
            scores = self._scores(encoder, encoded, targets, asked)
            own = self._price(scores, targets).sum() / max(len(answer), 1)
            if self.config.price == "squared":
                parts["rmse"] = own.detach().sqrt()
            else:
                parts["accuracy"] = self._right(scores.detach(), targets)
        price = partial(self._price, targets=targets)
        extra = catalogue.auxiliary(encoder, encoded, targets.query, asked, price)
        parts |= {name: value.detach() for name, value in extra.items()}
        return Step(sum(extra.values(), own), parts, targets=len(answer))

    def _candidates(self, answer: Tensor, labels: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """ids [B, Q, 1 + K] and labels [B, Q, 1 + K, A]: 0 at a drawn negative, NaN where it hit the answer itself."""
        ids, count = answer.unsqueeze(-1), self.config.negatives
        if count is None:
            return ids, labels
        sampler = Uniform(self.build.schema.spaces[self.group[0].space])
        drawn = sampler.draw(answer.flatten(), count, rng).reshape(*answer.shape, count)
        wrong = labels.new_zeros(*drawn.shape, labels.shape[-1]).masked_fill((drawn == ids).unsqueeze(-1), torch.nan)
        return torch.cat([ids, drawn], -1), torch.cat([labels, wrong], -2)

    def _scores(self, encoder: Encoder, encoded: Encoded, targets: Targets, asked: Tensor) -> Tensor:
        """`softmax`: [N, n - 2], the real ids; else [N, C * A]."""
        if self.config.price == "softmax":
            return catalogue.over_catalogue(encoder, encoded, targets)
        return encoder.score(encoded, targets.query)[asked].flatten(1)

    def _price(self, scores: Tensor, targets: Targets) -> Tensor:
        """[N]"""
        asked, answer = catalogue.where_asked(targets)
        if self.config.price == "softmax":
            return prices.softmax(scores, answer - FIRST)
        assert targets.labels is not None
        price = prices.binary if self.config.price == "bce" else prices.squared
        return price(scores, targets.labels[asked].flatten(1))

    def _right(self, scores: Tensor, targets: Targets) -> Tensor:
        """The share of right answers: the class scored highest, or labels on their side of zero; 0 where nothing is asked."""
        asked, answer = catalogue.where_asked(targets)
        if self.config.price == "softmax":
            return (scores.argmax(-1) == answer - FIRST).float().mean().nan_to_num() if len(answer) else scores.new_zeros(())
        assert targets.labels is not None
        labels = targets.labels[asked].flatten(1)
        observed = ~labels.isnan()
        return (((scores > 0) == (labels > 0.5)) & observed).sum() / observed.sum().clamp(min=1)


@hookimpl
def userec_objectives() -> list[type[Objective]]:
    """The objective."""
    return [Labelled]
