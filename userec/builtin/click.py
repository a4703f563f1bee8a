"""Evaluator `click`: does a candidate that was clicked score higher than one that was not, and is its score a probability?

A click task is judged by its own labels. An item task has none that are wrong: beside each positive stands one item drawn
uniformly, the same for every model, and every name carries `~uniform1`, because such negatives are easier than what people
were shown and did not click, and their share, one half, is of our making."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from userec.config import Config, Ref
from userec.encoder.contract import Encoder
from userec.evaluator import binary
from userec.evaluator.binary import Judged
from userec.evaluator.contract import Data, Evaluator, Metric, Split
from userec.evaluator.scorer import Scorer, draw, users_of
from userec.markers import hookimpl
from userec.schema import FIRST

RIGHT = 0.5
"""A label above it is right; the objective `labelled` draws the same line."""


class ClickConfig(Config):
    """Settings of `click`."""

    weight: Literal["rows", "equal"] = "rows"
    """What a user counts in GAUC: his judged rows, or one."""
    bins: PositiveInt = 10
    """Bins of equal width of the calibration error."""
    seed: int = Field(0, ge=0)
    """Of the drawn negatives and the resamples: the same for every model."""


class Click(Evaluator):
    """AUC over all rows, GAUC inside users; and where scores are log-odds log-loss and expected calibration error (ECE).

    The last two read a score as a probability. Scores that were trained to rank (softmax, BPR) or merely count are none, so there
    the two are left out, not reported as if they meant something. Of drawn negatives they also tell how far the share of wrong
    rows in training was from one half.

    ECE has no interval: it is a sum of absolute gaps, to which every resample adds its own noise, so that a percentile interval
    lies above the value and may leave it out. An item that occurs in held-out rows alone is scored by its untrained
    row, and drawn like any other."""

    name = "click"
    Config = ClickConfig
    judges = frozenset({"click", "item"})
    headline = ("auc", "gauc", "logloss", "ece")
    baselines = (Ref(name="popularity"), Ref(name="category_seen"), Ref(name="category_count"))

    config: ClickConfig

    def refuses(self, encoder: Encoder, data: Data) -> list[str]:
        """It needs an item or click task with a trained head."""
        return [] if self._tasks(data) else ["no item or click task is trained: there is no click to judge"]

    def evaluate(self, encoder: Encoder, data: Data, split: Split) -> Iterable[Metric]:
        """Every metric of every trained click or item task."""
        for task in self._tasks(data):
            yield from self._judge(encoder, data, split, task)

    def _tasks(self, data: Data) -> list[str]:
        return [task.name for task in data.schema.all_tasks if task.kind in self.judges and task.name in data.trained]

    def _judge(self, encoder: Encoder, data: Data, split: Split, task: str) -> Iterator[Metric]:
        drawn = data.schema.task(task).kind == "item"
        judged = self._rows(encoder, data, split, task, drawn)
        mark, told = ("~uniform1", {"negatives": f"uniform(seed={self.config.seed},not=answers)"}) if drawn else ("", {})

        def define(name: str, facts: Mapping[str, object]) -> tuple[str, str, str]:
            return task, name + mark, f"{name}{mark}[{','.join(f'{key}={value}' for key, value in {**facts, **told}.items())}]"

        seed = self.config.seed
        named = define("auc", {"over": "rows", "ties": "half"})
        yield Metric.measured(*named, judged.users, binary.auc(judged), seed=seed)
        users, gauc = binary.gauc(judged, self.config.weight == "rows")
        kept = f"{len(users)} of {len(judged.users)}"
        named = define("gauc", {"weight": self.config.weight, "ties": "half", "users": f"both-classes({kept})"})
        yield Metric.measured(*named, users, gauc, seed=seed)
        if data.odds:
            named = define("logloss", {"over": "rows", "log": "natural", "p": "sigmoid(score)"})
            yield Metric.measured(*named, judged.users, binary.log_loss(judged), better="lower", seed=seed)
            named = define("ece", {"bins": self.config.bins, "width": "equal", "over": "rows", "p": "sigmoid(score)"})
            error = binary.calibration_error(judged, self.config.bins)
            yield Metric(*named, error, n=len(judged.users), better="lower", users=judged.users)

    @torch.no_grad()
    def _rows(self, encoder: Encoder, data: Data, split: Split, task: str, drawn: bool) -> Judged:
        """Every judged candidate with its score; with `drawn` also one negative a positive."""
        size = data.schema.spaces[data.schema.task(task).space]
        scorer = Scorer(encoder, task, split, size)
        users, scores, right = [np.zeros(0, np.int64)], [np.zeros(0)], [np.zeros(0, bool)]
        for batch in data.batches(split, task):
            scorer.read(batch)
            ids, values = scorer.labelled  # [B, P]
            if drawn:
                asked = users_of(batch) + (0 if batch.ends is None else batch.ends.cpu().numpy() << 32)
                wrong = self._negatives(ids, size, asked)
                values = torch.cat([values, torch.zeros_like(values).masked_fill(wrong < FIRST, torch.nan)], 1)
                ids = torch.cat([ids, wrong], 1)
            people, found, labels = scorer.judged(ids, values)
            users.append(people)
            scores.append(found)
            right.append(labels > RIGHT)
        return Judged.of(np.concatenate(users), np.concatenate(scores), np.concatenate(right))

    def _negatives(self, ids: Tensor, size: int, asked: np.ndarray) -> Tensor:
        """[B, P] drawn ids: as many as a row's real `ids` [B, P], none of them; 0 where there are no more. `asked` [B] names the
        question, by user and end: another one of the same user draws anew.

        Rows of as many answers are drawn together: what is drawn then does not depend on who else is in the batch."""
        answers = ids.cpu().numpy()
        counts = (answers >= FIRST).sum(1)
        out = np.zeros_like(answers)
        for count in np.unique(counts[counts > 0]):
            rows = np.flatnonzero(counts == count)
            row, place = np.nonzero(answers[rows] >= FIRST)
            barred = row, answers[rows][row, place]
            out[rows, :count] = draw(int(count), size, asked[rows], barred, self.config.seed)
        return torch.from_numpy(out).to(ids.device)


@hookimpl
def userec_evaluators() -> Iterable[type[Evaluator]]:
    return [Click]
