"""Evaluator `classification`: which class is a user of (age, gender)? By the model's own head where the task was trained, else by
a logistic probe on its frozen user embeddings, beside the majority class and a probe on the plain bag of items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import Field, PositiveFloat
from scipy.special import softmax

from userec.batch import Batch
from userec.capability import Can
from userec.config import Config, Ref
from userec.encoder.contract import Encoder, has_scores
from userec.evaluator import classes
from userec.evaluator.classes import Judged
from userec.evaluator.contract import Data, Evaluator, Metric, Split
from userec.evaluator.embed import Embedder, Matrix
from userec.evaluator.probe import Probe
from userec.evaluator.scorer import Scorer, users_of
from userec.markers import hookimpl
from userec.schema import FIRST, PAD, Task, answers


class ClassificationConfig(Config):
    """Settings of `classification`."""

    l2: tuple[PositiveFloat, ...] = Field((100.0, 10.0, 1.0, 0.1, 0.01, 0.001), min_length=1)
    """Strengths of the probe, of which the training rows choose; one = no choice."""
    seed: int = Field(0, ge=0)
    """Of the rows held out to choose, and of the resamples: the same for every model."""


@dataclass
class Found:
    """What was found on one split and serves the other."""

    embedders: dict[tuple[str, ...], Embedder] = field(default_factory=dict)
    probes: dict[str, Probe] = field(default_factory=dict)


class Classification(Evaluator):
    """Accuracy, macro-F1 and AUC of every label task. The probe is fitted on the task's training rows, whose histories hold
    training events alone; the encoder stays as it is. Own scores are softmaxed over the classes, so that users can be compared.

    A task one of whose answers' fields the encoder reads (`profile.age` for `age`) is not judged, nor one that is neither trained
    nor can be probed. Questions with several true classes are left out, and users without any event."""

    name = "classification"
    Config = ClassificationConfig
    judges = frozenset({"label"})
    headline = ("accuracy", "macro_f1", "auc")
    baselines = (Ref(name="majority"), Ref(name="bag_of_items"))

    def refuses(self, encoder: Encoder, data: Data) -> list[str]:
        """It needs a label task whose answer the encoder does not read, with a trained head or an embedding to probe."""
        tasks = [task for task in data.schema.all_tasks if task.kind == "label"]
        if not tasks:
            return ["the data set has no label task: there is no class to predict"]
        if not any(_unread(task, encoder, data) for task in tasks):
            read = sorted(encoder.reads & frozenset[str]().union(*(answers(task, data.schema) for task in tasks)))
            return [f"predicts {', '.join(read)}, which {encoder.name!r} reads"]
        if not _tasks(encoder, data):
            return ["offers no user embedding (EMBED_USER) and is trained on no label task"]
        return []

    @torch.no_grad()
    def evaluate(self, encoder: Encoder, data: Data, split: Split) -> Iterable[Metric]:
        """The three metrics of every task that can be judged."""
        found = data.kept.setdefault(self.name, Found())
        for task in _tasks(encoder, data):
            judge = self._by_head if _has_head(task, encoder, data) else self._by_probe
            judged, told = judge(encoder, data, split, task, found)
            protocol = {**told, "ties": "lower-id", "several": "skipped", "empty": "skipped"}
            yield from classes.metrics(judged, task.name, protocol, self.config.seed)

    def _by_head(self, encoder: Encoder, data: Data, split: Split, task: Task, found: Found) -> tuple[Judged, dict[str, str]]:
        scorer = Scorer(encoder, task.name, split, data.schema.spaces[task.space])
        users, truth, scores = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros((0, _count(task, data)))]
        for batch in scorer.portions(data.batches(split, task.name)):
            scorer.read(batch)
            whole = torch.cat([chunk.clone() for _, chunk in scorer.chunks()], 1)  # [B, K]
            users.append(users_of(batch))
            truth.append(_truth(batch))
            scores.append(softmax(whole.double().cpu().numpy(), axis=1))
        return _judged(np.concatenate(users), np.concatenate(truth), np.concatenate(scores)), {"head": "own(softmax)"}

    def _by_probe(self, encoder: Encoder, data: Data, split: Split, task: Task, found: Found) -> tuple[Judged, dict[str, str]]:
        if task.name not in found.probes:
            _, truth, x = self._embed(encoder, data, "train", task, found)
            one = np.flatnonzero(truth >= 0)
            found.probes[task.name] = Probe.fit(x[one], truth[one], _count(task, data), self.config.l2, self.config.seed)
        probe = found.probes[task.name]
        users, truth, x = self._embed(encoder, data, split, task, found)
        return _judged(users, truth, probe(x)), {"head": probe.told, "fit": str(probe.rows)}

    def _embed(
        self, encoder: Encoder, data: Data, split: Split, task: Task, found: Found
    ) -> tuple[np.ndarray, np.ndarray, Matrix]:
        """(user row [N], class [N] or -1, embedding [N, D]), by user. A history that two tasks ask about is encoded once, unless
        the encoder reads what is asked: that differs between them."""
        asks = any(name.startswith("asked.") for name in encoder.reads)
        key = (task.name, split) if asks else ()
        embedder = found.embedders.setdefault(key, Embedder(encoder, data.trained))
        truth = [np.zeros(0, np.int64)]

        def batches() -> Iterator[Batch]:
            for batch in data.batches(split, task.name):
                truth.append(_truth(batch))
                yield batch

        users, x = embedder(batches())
        order = np.argsort(users, kind="stable")
        return users[order], np.concatenate(truth)[order], x[order]


def _judged(users: np.ndarray, truth: np.ndarray, scores: np.ndarray) -> Judged:
    """Those with one class."""
    one = truth >= 0
    return Judged(users[one], truth[one], scores[one])


def _truth(batch: Batch) -> np.ndarray:
    """[B] int64: the one true class, from 0 on; -1 where there are several or it has no id."""
    assert batch.targets is not None
    assert batch.targets.query.ids is not None
    ids = batch.targets.query.ids[:, 0]  # [B, P]
    one = (ids != PAD).sum(1) == 1
    return torch.where(one, ids.amax(1) - FIRST, -1).clamp(min=-1).cpu().numpy()


def _count(task: Task, data: Data) -> int:
    return data.schema.spaces[task.space] - FIRST


def _unread(task: Task, encoder: Encoder, data: Data) -> bool:
    return encoder.reads.isdisjoint(answers(task, data.schema))


def _has_head(task: Task, encoder: Encoder, data: Data) -> bool:
    return task.name in data.trained and has_scores(encoder)


def _tasks(encoder: Encoder, data: Data) -> list[Task]:
    """The label tasks that can be judged."""
    probed = Can.EMBED_USER in encoder.offers
    open_ = [task for task in data.schema.all_tasks if task.kind == "label" and _unread(task, encoder, data)]
    return [task for task in open_ if probed or _has_head(task, encoder, data)]


@hookimpl
def userec_evaluators() -> Iterable[type[Evaluator]]:
    return [Classification]
