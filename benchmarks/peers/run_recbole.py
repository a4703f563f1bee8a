"""RecBole 1.2.1 on MovieLens-1M, from the atomic file that write_recbole.py leaves, by its own dataset, trainer and full-sort
evaluation; one line of JSON.

What breaks it today stays outside: its environment holds numpy 1.26, which still has what numpy 2 took away;
`recbole.quick_start`, alone in needing a ray that no longer runs, is not imported; its checkpoints, which torch 2.6 refuses to
load, are not written."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from protocol import (
    DROPOUT,
    HEADS,
    INNER,
    LAYERS,
    MASK,
    NAME,
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
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

NAMES = {"sasrec": "SASRec", "bert4rec": "BERT4Rec", "gru4rec": "GRU4Rec"}
ROWS = 256
"""Prefixes a batch: trains more targets a second than 2,048."""
EVALUATED = {50: (256, 4096, 256), 200: (256, 256)}
"""Batch sizes of its evaluation that are tried, in order; at length 200, 4,096 take 16 GB and are slower."""


class Enough(Exception):
    """So many batches were asked for."""


def settings(given: Any, folder: Path) -> dict[str, Any]:
    """Its configuration, with what all systems share."""
    transformer = {
        "hidden_size": WIDTH,
        "n_layers": LAYERS,
        "n_heads": HEADS.get(given.model),
        "inner_size": INNER.get(given.model),
        "hidden_dropout_prob": DROPOUT,
        "attn_dropout_prob": given.attention_dropout,
        "hidden_act": "relu" if given.model == "sasrec" else "gelu",
        "mask_ratio": MASK,
        "ft_ratio": 0.0,  # else every other batch has one target a row
    }
    recurrent = {"embedding_size": WIDTH, "hidden_size": WIDTH, "num_layers": LAYERS, "dropout_prob": DROPOUT}
    return {
        **(recurrent if given.model == "gru4rec" else transformer),
        "loss_type": "CE",
        "data_path": str(given.atomic),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "TIME_FIELD": "timestamp",
        "MAX_ITEM_LIST_LENGTH": given.length,
        "train_neg_sample_args": None,
        "learner": "adam",
        "learning_rate": RATE,
        "train_batch_size": ROWS,
        "eval_batch_size": ROWS,
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "metrics": ["NDCG", "Hit", "MRR"],
        "topk": [TOP],
        "valid_metric": f"NDCG@{TOP}",
        "use_gpu": False,
        "state": "ERROR",
        "show_progress": False,
        "seed": given.seed,
        "reproducibility": False,
        "checkpoint_dir": str(folder),
    }


def train(trainer: Any, batches: Any, watch: Watch, steps: int | None, targets: int | None) -> None:
    """Its own epochs until so many batches, or targets, are trained."""

    def loss(interaction: Any) -> Any:
        masked = "MASK_INDEX" in interaction.interaction
        watch.begin(int((interaction["MASK_INDEX"] > 0).sum()) if masked else len(interaction))
        if len(watch.times) > steps if steps is not None else watch.trained >= (targets or 0):
            raise Enough
        return trainer.model.calculate_loss(interaction)

    try:
        for epoch in range(1000):
            trainer._train_epoch(batches, epoch, loss_func=loss)
    except Enough:
        pass


def scores(trainer: Any, data: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users, items, scores [users, items]) of its evaluation batches."""
    users, rows = [], []
    trainer.model.eval()
    inside = data._dataset
    with torch.no_grad():
        for interaction, *_ in data:
            users.append(inside.id2token("user_id", interaction["user_id"].numpy()).astype(np.int64))
            rows.append(trainer.model.full_sort_predict(interaction).view(len(interaction), -1)[:, 1:].numpy())
    items = inside.id2token("item_id", np.arange(1, inside.item_num)).astype(np.int64)
    return np.concatenate(users), items, np.concatenate(rows)


def main() -> None:
    """Measure, or train and judge."""
    given = words(__doc__)
    imported, peaks = since_start(), Peaks()
    peaks.at("imported")
    warnings.simplefilter("ignore")
    sys.argv = sys.argv[:1]  # RecBole reads it too
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # it writes logs where it stands
        config = Config(model=NAMES[given.model], dataset=NAME, config_dict=settings(given, Path(name)))
        init_seed(config["seed"], config["reproducibility"])
        dataset = create_dataset(config)
        train_data, valid_data, test_data = data_preparation(config, dataset)
        model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        trainer.eval_collector.data_collect(train_data)
        ready = since_start()
        peaks.at("ready")
        watch = Watch(given.warm)
        train(trainer, train_data, watch, None if given.targets else given.warm + given.steps, given.targets)
        found = {"import_s": imported, "ready_s": ready, "startup_s": ready - imported, "items": dataset.item_num - 1}
        found["batch"] = f"{ROWS} prefixes"
        found |= watch.told()
        peaks.at("trained")
        if given.targets:
            found |= judge(ratings(given.data_dir), *scores(trainer, valid_data))
        taken: list[tuple[int, float]] = []
        for rows in () if given.targets else EVALUATED[given.length]:
            config["eval_batch_size"] = rows
            data = type(test_data)(config, test_data._dataset, test_data._sampler)
            began = time.perf_counter()
            trainer.evaluate(data, load_best_model=False)
            taken.append((rows, time.perf_counter() - began))
            if "evaluated" not in peaks:  # a larger batch is tried for its speed alone
                peaks.at("evaluated")
        if taken:
            rows, seconds = min(taken, key=lambda one: one[1])
            found |= {
                "evaluate_s": seconds,
                "evaluate_batch": f"{rows} users",
                "evaluations": taken,
                "evaluated": len(test_data._dataset),
            }
        packages = ["recbole", "torch", "numpy", "pandas"]
        tell("recbole", given, packages, {**found, "peaks_mb": peaks, "peak_mb": max(peaks.values())})
        os.chdir("/")


if __name__ == "__main__":
    main()
