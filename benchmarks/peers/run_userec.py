"""userec on MovieLens-1M, by its own cache, loader, learner and evaluator `ranking`; one line of JSON."""

from __future__ import annotations

import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # torch's own optimisers import it when the first is made, lightning when it is imported: an import for both
from protocol import (
    BETAS,
    DROPOUT,
    HEADS,
    INNER,
    LAYERS,
    MASK,
    RATE,
    TOP,
    WIDTH,
    Peaks,
    Watch,
    judge,
    ratings,
    since_start,
    tell,
    words,
)
from userec_datasets.movielens import MovieLens1M

from userec.dataset import cache
from userec.engine.learner import GradientLearner
from userec.engine.session import Model, Session
from userec.evaluator.scorer import Scorer, users_of
from userec.objective.catalogue import where_asked
from userec.registry import load
from userec.schema import FIRST
from userec.testing import open_session

FOREVER = 1_000_000


def settings(given: Any) -> dict[str, Any]:
    """What a user would say in a file of settings: the shared setting over the model's own recipe. Judged after equal training,
    it is trained as RecTools trains: Adam at a constant rate, and as many users a batch, drawn whatever their length."""
    about = {"name": given.model, "dim": WIDTH, "layers": LAYERS, "window": given.length}
    if given.model == "gru4rec":
        encoder: dict[str, Any] = {**about, "dropout_embedding": DROPOUT, "dropout_hidden": 0.0}
        objective: dict[str, Any] = {"name": "next_item", "negatives": None, "price": "softmax"}
    else:
        encoder = {**about, "heads": HEADS[given.model], "inner": INNER[given.model], "dropout": DROPOUT}
        encoder["attention_dropout"] = given.attention_dropout
        objective = {"name": "next_item"} if given.model == "sasrec" else {"name": "cloze", "mask": MASK}
    said = {"encoder": encoder, "objective": objective, "split": {"name": "leave_last"}, "seed": given.seed}
    said["evaluator"] = {"ranking": {"ks": [TOP], "beyond": []}}  # the metrics of the peers, and intervals
    if given.targets:
        said["train"] = {
            "optimizer": "adam",
            "lr": RATE,
            "betas": BETAS,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup": 0,
        }
        said["batch"] = {"windows": "last", "rows": given.rows, "tokens": None, "bucket": 1}
    elif given.model != "gru4rec":
        said["batch"] = {"windows": "last"}  # each user's newest window, as RecTools trains on
    return said


def most(rows: int, tokens: int | None) -> str:
    """The size of a batch in words."""
    return f"{rows:,} users" if tokens is None else f"{tokens:,} events, at most {rows:,} users"


class Training:
    """The batches of a session's own loader, trained by its own learner, epoch after epoch."""

    def __init__(self, session: Session, model: Model, total: int) -> None:
        experiment, encoder = session.run.experiment, model.encoder
        assert experiment.objective is not None
        encoder.begin_task(("next",), "train")
        self.objective = model.build.objective(experiment.objective)
        self.objective.begin_task(encoder, ("next",), "train")
        self.learner = GradientLearner(encoder.train(), self.objective, experiment.train, experiment.seed, session.device)
        self.loader = session.loader(model, ("next",), self.objective)
        self.total = total
        self.loader.plan(0)

    def asked(self) -> int:
        """Questions of an epoch."""
        rng = torch.Generator().manual_seed(0)
        prepared = (self.objective.prepare(batch, rng).targets for batch in self.loader.batches(0))
        return sum(len(where_asked(targets)[1]) for targets in prepared if targets is not None)

    def go(self, watch: Watch) -> None:
        """All steps."""
        step = 0
        for epoch in count():
            steps = self.loader.steps(epoch)
            for i, batch in enumerate(self.loader.batches(epoch)):
                watch.begin(0)
                watch.targets[-1] = self.learner.step([batch], step, epoch + i / steps, self.total)[1]
                step += 1
                if step == self.total:
                    watch.begin(0)
                    return


@torch.no_grad()
def scores(session: Session, model: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users, items, scores [users, items]) of the validation questions."""
    view = session.view(model, session.evaluator(model, "ranking"))
    items = session.coded.vocabulary["item"].values
    scorer = Scorer(model.encoder.eval(), "next", "valid", len(items) + FIRST)
    users, rows = [], []
    for batch in scorer.portions(view.batches("valid", "next")):
        scorer.read(batch)
        users.append(users_of(batch))
        rows.append(torch.cat([part.clone() for _, part in scorer.chunks()], 1).numpy())
    names = session.coded.vocabulary["user"].values
    return names[np.concatenate(users)].astype(np.int64), items.astype(np.int64), np.concatenate(rows)


@torch.no_grad()
def evaluate(session: Session, model: Model) -> int:
    """All users ranked and their metrics made; how many users there are."""
    evaluator = session.evaluator(model, "ranking")
    return max(metric.n for metric in evaluator.evaluate(model.encoder.eval(), session.view(model, evaluator), "test"))


def main() -> None:
    """Measure, or train and judge."""
    given = words(__doc__)
    plugins = load().plugins
    imported, peaks = since_start(), Peaks()
    peaks.at("imported")
    with tempfile.TemporaryDirectory() as folder:
        coded = cache.load(MovieLens1M(MovieLens1M.Config(), given.data_dir), Path(folder))
        torch.manual_seed(given.seed)
        session = open_session(plugins, coded, settings(given))
        model = session.compose(session.run.experiment)
        training = Training(session, model, given.warm + given.steps if not given.targets else FOREVER)
        ready = since_start()
        peaks.at("ready")
        found = {"import_s": imported, "ready_s": ready, "startup_s": ready - imported}
        batch = session.run.experiment.batch
        found |= {"batch": most(batch.rows, batch.tokens), "evaluate_batch": most(batch.eval_rows, batch.eval_tokens)}
        found["items"] = coded.schema.spaces["item"] - FIRST
        if given.targets:
            training.total = round(given.targets / training.asked() * training.loader.steps(0))
        watch = Watch(0 if given.targets else given.warm)
        training.go(watch)
        found |= watch.told()
        peaks.at("trained")
        if given.targets:
            found |= judge(ratings(given.data_dir), *scores(session, model))
        else:
            taken = []
            for _ in range(2):
                began = time.perf_counter()
                found["evaluated"] = evaluate(session, model)
                taken.append(time.perf_counter() - began)
            found["evaluate_s"] = min(taken)
            peaks.at("evaluated")
        tell(
            "userec", given, ["userec", "torch", "numpy", "pandas"], {**found, "peaks_mb": peaks, "peak_mb": max(peaks.values())}
        )


if __name__ == "__main__":
    main()
