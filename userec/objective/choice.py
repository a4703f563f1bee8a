"""A question with one right answer: what sets it apart from the other candidates, and at what price.

`price`, `negatives` and `in_batch` give the losses of the literature: softmax over the catalogue (SASRec with CE), sampled
softmax with logQ over shared negatives (GRU4Rec, PinnerFormer), BCE with one negative (SASRec's own), gBCE (gSASRec), BPR,
BPR-max (GRU4Rec)."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field as Setting
from torch import Tensor

from userec.batch import Batch, Targets
from userec.capability import Can
from userec.config import Config
from userec.dataset.sampling import Popularity, Uniform
from userec.encoder.contract import Build, Encoder
from userec.errors import UserError
from userec.objective import catalogue, prices
from userec.objective.contract import Objective, Step
from userec.schema import FIRST


class ChoiceConfig(Config):
    """Against which candidates an answer is held, and the price."""

    negatives: Annotated[int, Setting(ge=1)] | None = None
    """Drawn negatives a question; None, with no answers of the batch either = the whole catalogue."""
    sampler: Literal["uniform", "popularity"] = "uniform"
    alpha: float = Setting(1.0, ge=0)
    """`popularity` draws in proportion to count ** alpha."""
    shared: bool = False
    """One draw of negatives for the whole batch."""
    in_batch: int = Setting(0, ge=0)
    """So many answers of the batch are negatives too, but for those of a question's own row; the draws are shared then."""
    price: Literal["softmax", "bce", "gbce", "bpr", "bpr_max"] = "softmax"
    t: float = Setting(0.75, ge=0, le=1)
    """gBCE's calibration: 0 = plain BCE, 1 = fully calibrated."""
    temperature: float = Setting(1.0, gt=0)
    log_q: bool = True
    """Correct a sampled softmax by each candidate's probability to be among the candidates."""
    regularisation: float = Setting(1.0, ge=0)
    """BPR-max's penalty on the scores of negatives."""
    elu: float = Setting(0.0, ge=0)
    """BPR-max's scores go through ELU with this alpha first; 0 = as they are."""


class Choice(Objective):
    """What asks such questions says which in `ask`; candidates and price are all here."""

    log_p: Tensor  # [n] log-probability of each id to be the answer of a question; unused without `in_batch`. It is an
    # approximation: the share of all training events, of which a question may ask for some alone (not a user's first)
    log_r: Tensor  # [n] log-probability of each id to be drawn; unused where draws are uniform and alone

    def __init__(self, config: Any, build: Build) -> None:
        super().__init__(config, build)
        self.config: Any = config
        self.odds = config.price == "bce"
        self.whole = config.negatives is None and config.in_batch == 0
        self.shared = config.shared or config.in_batch > 0
        if self.whole and config.price != "softmax":
            raise UserError(f"objective {self.name!r}: price {config.price!r} needs drawn negatives; set objective.negatives=256")
        self.needs = Can.GRADIENT | (Can.SCORE_CATALOG if self.whole else Can.NOTHING)
        self.build = build
        self.fused, self.fused_sampled = build.op("linear_cross_entropy"), build.op("sampled_cross_entropy")
        self.register_buffer("log_p", torch.zeros(1), persistent=False)
        self.register_buffer("log_r", torch.zeros(1), persistent=False)
        self._draw_from(build.schema.all_tasks[0].space)

    @abstractmethod
    def ask(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Raw rows -> the questions: history, `query.at`, `answer` and `weight` (1 where a question stands), all [B, Q]."""

    def begin_task(self, encoder: Encoder, tasks: tuple[str, ...], phase: str) -> None:
        """Negatives come from the space of the task, which must be one that the events answer."""
        task = self.build.schema.task(tasks[0])
        if not task.events:
            raise UserError(f"objective {self.name!r} asks for events; task {task.name!r} has labels: use --objective labelled")
        self._draw_from(task.space)

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:
        """`query.ids` is None for the whole catalogue, [B, Q, 1 + K] with the answer in column 0, or, where all share them, the
        K negatives alone: [1, 1, K], those of the batch first."""
        batch = self.ask(batch, rng)
        if self.whole:
            return batch
        assert batch.targets is not None
        asked, answer = catalogue.where_asked(batch.targets)
        ids = self._shared(answer, rng) if self.shared else self._own(asked, answer, rng)
        query = dataclasses.replace(batch.targets.query, ids=ids)
        return dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, query=query))

    def loss(self, encoder: Encoder, batch: Batch) -> Step:
        """The mean price of the asked questions, and what the encoder adds of its own."""
        targets = batch.targets
        assert targets is not None
        asked, answer = catalogue.where_asked(targets)
        encoded = encoder.encode(batch.history)
        price: Callable[[Tensor], Tensor]  # [N, C] -> [N]
        if self.whole:
            price = partial(self._of_all, answer=answer)
            own = catalogue.mean_cross_entropy(encoder, encoded, targets, self.fused, self.config.temperature)
        else:
            log_q = self._log_q(targets)
            price = partial(self._of_drawn, log_q=log_q)
            if self.config.price == "softmax" and Can.DOT_SCORE in encoder.offers:
                own = catalogue.mean_sampled_cross_entropy(
                    encoder, encoded, targets, log_q, self.fused_sampled, self.size, self.config.temperature
                )
            else:
                over = catalogue.over_shared if self.shared else partial(catalogue.over_candidates, size=self.size)
                own = price(over(encoder, encoded, targets)).sum() / max(len(answer), 1)
        extra = catalogue.auxiliary(encoder, encoded, None if self.shared else targets.query, asked, price)
        parts = {name: value.detach() for name, value in ({"own": own} | extra).items()} if extra else {}
        return Step(sum(extra.values(), own), parts, encoded.state, len(answer))

    def _of_all(self, scores: Tensor, answer: Tensor) -> Tensor:
        """[N, n] -> [N]: softmax over the real ids."""
        return prices.softmax(scores[:, FIRST:] / self.config.temperature, answer - FIRST)

    def _of_drawn(self, scores: Tensor, log_q: Tensor) -> Tensor:
        """[N, 1 + K] -> [N]: the configured price."""
        config, scores = self.config, scores / self.config.temperature
        match config.price:
            case "softmax":
                return prices.sampled_softmax(scores, log_q)
            case "bce":
                return prices.bce(scores, log_q)
            case "gbce":
                return prices.gbce(scores, prices.gbce_beta(scores.shape[-1] - 1, self.size - FIRST, config.t), log_q)
            case "bpr":
                return prices.bpr(scores, log_q)
            case _:
                return prices.bpr_max(scores, log_q, config.regularisation, config.elu)

    def _draw_from(self, space: str) -> None:
        """Set the sampler over a space, and how likely its ids are. Raises UserError where nobody counted them."""
        config, self.size = self.config, self.build.schema.spaces[space]
        if self.whole:
            return
        counted = config.sampler == "popularity" or config.in_batch > 0
        if counted and (self.build.train is None or space != "item"):
            wanted = f"sampler {config.sampler!r} with in_batch={config.in_batch} needs the training events of {space!r}"
            raise UserError(f"objective {self.name!r}: {wanted}; set objective.sampler=uniform objective.in_batch=0")
        self.sampler: Uniform | Popularity = Uniform(self.size)
        if counted:
            assert self.build.train is not None
            counts = torch.as_tensor(np.bincount(self.build.train.fields["item"], minlength=self.size))
            self.log_p = _log_of(Popularity(counts)).to(self.log_p.device)
            self.log_r = torch.full_like(self.log_p, -float(np.log(self.size - FIRST)))
            if config.sampler == "popularity":
                self.sampler = Popularity(counts, config.alpha)
                self.log_r = _log_of(self.sampler).to(self.log_r.device)

    def _own(self, asked: Tensor, answer: Tensor, rng: torch.Generator) -> Tensor:
        """[B, Q, 1 + K]: each question's answer and its own negatives; 0 where none is asked."""
        ids = answer.new_zeros(*asked.shape, 1 + self.config.negatives)
        if len(answer):
            ids[asked] = torch.cat([answer.unsqueeze(-1), self.sampler.draw(answer, self.config.negatives, rng)], -1)
        return ids

    def _shared(self, answer: Tensor, rng: torch.Generator) -> Tensor:
        """[1, 1, K]: answers of the batch, fewer where it has fewer, then draws from the space."""
        count = self.config.negatives or 0
        chosen = answer[torch.randperm(len(answer), generator=rng)[: self.config.in_batch]]
        if isinstance(self.sampler, Uniform):
            drawn = torch.randint(FIRST, self.size, (count,), generator=rng)
        else:
            drawn = self.sampler.draw(answer.new_zeros(1), count, rng)[0]
        return torch.cat([chosen, drawn]).view(1, 1, -1)

    def _log_q(self, targets: Targets) -> Tensor:
        """[N, 1 + K]: log-probability of each candidate to be one, in the mixture of both pools; 0 where the price ignores it;
        +inf at an accidental hit. In the batch's answers those of one's own row are hits too."""
        asked, answer = catalogue.where_asked(targets)
        assert targets.query.ids is not None
        own = answer.unsqueeze(-1)  # [N, 1]
        drawn = targets.query.ids[0] if self.shared else targets.query.ids[asked][:, 1:]  # [1|N, K]
        hits = drawn == own  # [N, K]
        pooled = min(self.config.in_batch, len(answer))
        if pooled:
            row = asked.nonzero()[:, :1] * self.size  # [N, 1]
            hits[:, :pooled] = torch.isin(row + drawn[:, :pooled], row + own)
        of_own, of_drawn = self._log_of(own, pooled), self._log_of(drawn, pooled)
        return torch.cat([of_own, torch.where(hits | (drawn < FIRST), torch.inf, of_drawn)], -1)

    def _log_of(self, ids: Tensor, pooled: int) -> Tensor:
        """Log-probability of `ids` where `pooled` candidates are answers of the batch and the others are drawn."""
        config, drawn = self.config, self.config.negatives or 0
        if not config.log_q or config.price != "softmax" or (pooled == 0 and config.sampler == "uniform"):
            return torch.zeros_like(ids, dtype=torch.float32)
        if pooled == 0:
            return self.log_r[ids]
        share = torch.tensor([pooled, drawn], dtype=torch.float32, device=ids.device).log() - float(np.log(pooled + drawn))
        return torch.logaddexp(self.log_p[ids] + share[0], self.log_r[ids] + share[1])


def _log_of(popularity: Popularity) -> Tensor:
    """[n] log-probabilities, finite where an id was never counted: as rare as the rarest."""
    return popularity.p.clamp(min=float(popularity.p[popularity.p > 0].min())).log().float()
