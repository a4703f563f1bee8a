"""The objective `next_item`: at each asked position, the item that really followed against the others.

`price` and `negatives` give the losses of the literature: softmax over the catalogue (SASRec with CE), sampled softmax with
logQ, BCE with one negative (SASRec's own), gBCE (gSASRec), BPR, BPR-max (GRU4Rec)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Batch, Targets
from userec.capability import Can
from userec.config import Config
from userec.dataset.sampling import InBatch, Popularity, Uniform
from userec.encoder.contract import Build, Encoder
from userec.errors import UserError
from userec.markers import hookimpl
from userec.objective import catalogue, prices, questions
from userec.objective.contract import Objective, Step
from userec.schema import FIRST


class NextItemConfig(Config):
    """Which positions are asked, against which candidates, at what price."""

    positions: Literal["all", "last"] | Annotated[int, Setting(ge=1)] = "all"
    """Every position, the last one, or so many random ones a row."""
    negatives: Annotated[int, Setting(ge=1)] | None = None
    """Drawn negatives a question; None = the whole catalogue."""
    sampler: Literal["uniform", "popularity", "in_batch"] = "uniform"
    alpha: float = Setting(1.0, ge=0)
    """`popularity` draws in proportion to count ** alpha."""
    shared: bool = False
    """One draw of negatives for the whole batch; `in_batch` always is."""
    price: Literal["softmax", "bce", "gbce", "bpr", "bpr_max"] = "softmax"
    t: float = Setting(0.75, ge=0, le=1)
    """gBCE's calibration: 0 = plain BCE, 1 = fully calibrated."""
    temperature: float = Setting(1.0, gt=0)
    log_q: bool = True
    """Correct a sampled softmax by each candidate's probability to be drawn."""
    regularisation: float = Setting(1.0, ge=0)
    """BPR-max's penalty on the scores of negatives."""


class NextItem(Objective):
    """Every following event of a row is a question; see `NextItemConfig` for what it costs."""

    name = "next_item"
    fidelity = "paper"
    Config = NextItemConfig
    ahead = 1
    variants: ClassVar[tuple[Mapping[str, Any], ...]] = ({"negatives": 100}, {"negatives": 100, "positions": "last"})
    log_p: Tensor  # [n] log-probability of each id to be drawn; unused where draws are uniform

    def __init__(self, config: NextItemConfig, build: Build) -> None:
        super().__init__(config, build)
        self.config: NextItemConfig = config
        self.odds = config.price == "bce"
        if config.negatives is None and config.price != "softmax":
            raise UserError(f"objective 'next_item': price {config.price!r} needs drawn negatives; set objective.negatives=256")
        self.needs = Can.GRADIENT
        self.needs |= Can.NOTHING if config.positions == "last" else Can.CAUSAL
        self.needs |= Can.SCORE_CATALOG if config.negatives is None else Can.NOTHING
        self.build, self.positions = build, config.positions
        self.shared = config.shared or config.sampler == "in_batch"
        self.fused, self.fused_sampled = build.op("linear_cross_entropy"), build.op("sampled_cross_entropy")
        self.register_buffer("log_p", torch.zeros(1), persistent=False)
        self._draw_from(build.schema.all_tasks[0].space)

    def begin_task(self, encoder: Encoder, tasks: tuple[str, ...], phase: str) -> None:
        """Negatives come from the space of the task, which must be one that the events answer.

        Where one encoding answers one position only, the loader cuts a row a question, and the last position alone is asked."""
        task = self.build.schema.task(tasks[0])
        if not task.events:
            raise UserError(
                f"objective 'next_item' asks for the next event; task {task.name!r} has labels: use --objective labelled"
            )
        if Can.ANY_POSITION not in encoder.offers:
            self.positions = "last"
        self._draw_from(task.space)

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Rows of window + 1 events -> questions. `query.ids` is [B, Q, 1 + K] with the answer in column 0, or, where all share
        them, the K negatives alone: [1, 1, K]."""
        batch = questions.next_item(batch, self.positions, rng)
        if self.config.negatives is None:
            return batch
        assert batch.targets is not None
        asked, answer = catalogue.where_asked(batch.targets)
        ids = (self._shared if self.shared else self._own)(asked, answer, self.config.negatives, rng)
        query = dataclasses.replace(batch.targets.query, ids=ids)
        return dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, query=query))

    def loss(self, encoder: Encoder, batch: Batch) -> Step:
        """The mean price of the asked questions, and what the encoder adds of its own."""
        targets = batch.targets
        assert targets is not None
        asked, answer = catalogue.where_asked(targets)
        encoded = encoder.encode(batch.history)
        price: Callable[[Tensor], Tensor]  # [N, C] -> [N]
        if self.config.negatives is None:
            price = partial(self._whole, answer=answer)
            own = catalogue.mean_cross_entropy(encoder, encoded, targets, self.fused, self.config.temperature)
        else:
            log_q = self._log_q(targets)
            price = partial(self._drawn, log_q=log_q)
            if self.config.price == "softmax" and Can.DOT_SCORE in encoder.offers:
                own = catalogue.mean_sampled_cross_entropy(
                    encoder, encoded, targets, log_q, self.fused_sampled, self.size, self.config.temperature
                )
            else:
                over = catalogue.over_shared if self.shared else partial(catalogue.over_candidates, size=self.size)
                own = price(over(encoder, encoded, targets)).sum() / max(len(answer), 1)
        extra = catalogue.auxiliary(encoder, encoded, None if self.shared else targets.query, asked, price)
        parts = {name: value.detach() for name, value in ({"own": own} | extra).items()} if extra else {}
        return Step(sum(extra.values(), own), parts, targets=len(answer))

    def _whole(self, scores: Tensor, answer: Tensor) -> Tensor:
        """[N, n] -> [N]: softmax over the real ids."""
        return prices.softmax(scores[:, FIRST:] / self.config.temperature, answer - FIRST)

    def _drawn(self, scores: Tensor, log_q: Tensor) -> Tensor:
        """[N, 1 + K] -> [N]: the configured price."""
        scores = scores / self.config.temperature
        match self.config.price:
            case "softmax":
                return prices.sampled_softmax(scores, log_q)
            case "bce":
                return prices.bce(scores, log_q)
            case "gbce":
                return prices.gbce(scores, prices.gbce_beta(scores.shape[-1] - 1, self.size - FIRST, self.config.t), log_q)
            case "bpr":
                return prices.bpr(scores, log_q)
            case "bpr_max":
                return prices.bpr_max(scores, log_q, self.config.regularisation)

    def _draw_from(self, space: str) -> None:
        """Set the sampler over a space, and `log_p`. Raises UserError where its ids were never counted."""
        self.size = self.build.schema.spaces[space]
        if self.config.negatives is None:
            return
        if self.config.sampler == "uniform":
            self.sampler: Uniform | Popularity | InBatch = Uniform(self.size)
            return
        if self.build.train is None or space != "item":
            wanted = f"sampler {self.config.sampler!r} needs the training events of {space!r}"
            raise UserError(f"objective 'next_item': {wanted}; set objective.sampler=uniform")
        counts = np.bincount(self.build.train.fields["item"], minlength=self.size)
        popularity = Popularity(torch.as_tensor(counts), self.config.alpha if self.config.sampler == "popularity" else 1.0)
        log_p = popularity.p.clamp(min=float(popularity.p[popularity.p > 0].min())).log().float()  # finite where never counted
        self.sampler = popularity if self.config.sampler == "popularity" else InBatch(log_p)
        self.log_p = log_p.to(self.log_p.device)

    def _own(self, asked: Tensor, answer: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """[B, Q, 1 + K]: each question's answer and its own negatives; 0 where none is asked."""
        ids = answer.new_zeros(*asked.shape, 1 + count)
        if len(answer):
            ids[asked] = torch.cat([answer.unsqueeze(-1), self.sampler.draw(answer, count, rng)[0]], -1)
        return ids

    def _shared(self, asked: Tensor, answer: Tensor, count: int, rng: torch.Generator) -> Tensor:
        """[1, 1, K]: from the space, or other rows' answers (fewer where the batch has fewer)."""
        if isinstance(self.sampler, Uniform):
            return torch.randint(FIRST, self.size, (1, 1, count), generator=rng)
        positives = answer if self.config.sampler == "in_batch" else answer.new_zeros(1)
        return self.sampler.draw(positives, count, rng)[0][:1].reshape(1, 1, -1)

    def _log_q(self, targets: Targets) -> Tensor:
        """[N, 1 + K]: log-probability of each candidate to be drawn, 0 where the price ignores it; +inf at an accidental hit.

        In a batch the answers of one's own row are hits too."""
        asked, answer = catalogue.where_asked(targets)
        assert targets.query.ids is not None
        own = answer.unsqueeze(-1)  # [N, 1]
        drawn = targets.query.ids[0] if self.shared else targets.query.ids[asked][:, 1:]  # [1|N, K]
        row = asked.nonzero()[:, :1] * self.size
        hits = torch.isin(row + drawn, row + own) if self.config.sampler == "in_batch" else drawn == own  # [N, K]
        corrects = self.config.log_q and self.config.price == "softmax" and self.config.sampler != "uniform"
        of_own, of_drawn = (self.log_p[x] if corrects else torch.zeros_like(x, dtype=torch.float32) for x in (own, drawn))
        return torch.cat([of_own, torch.where(hits | (drawn < FIRST), torch.inf, of_drawn)], -1)


@hookimpl
def userec_objectives() -> list[type[Objective]]:
    """The objective."""
    return [NextItem]
