"""RecTools 0.19 on MovieLens-1M, by its own data preparation, Lightning trainer, `recommend` and metrics; one line of JSON."""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as lightning
import torch
from protocol import (
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
    ordered,
    ratings,
    since_start,
    tell,
    words,
)
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import MRR, NDCG, HitRate, calc_metrics
from rectools.models import BERT4RecModel, SASRecModel

EVALUATED = (256, 1024, 4096, 256)
"""Batch sizes of its evaluation that are tried, in order, its default first."""


class Clock(lightning.Callback):
    """Tells the watch of every batch; `ready` is when the trainer is about to take the first."""

    def __init__(self, watch: Watch, peaks: Peaks) -> None:
        self.watch, self.peaks, self.ready = watch, peaks, 0.0

    def __deepcopy__(self, memo: Any) -> Clock:
        """RecTools fits with a copy of its trainer; the clock is the same."""
        return self

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Data, model and optimiser stand."""
        self.ready = since_start()
        self.peaks.at("ready")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Every real target of the batch is trained."""
        self.watch.begin(int((batch["y"] != 0).sum()))

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """The end of the last batch."""
        self.watch.begin(0)


def dataset(frame: pd.DataFrame) -> Dataset:
    """Events as RecTools takes them."""
    times = pd.to_datetime(frame["time"], unit="s")
    columns = {Columns.User: frame["user"], Columns.Item: frame["item"], Columns.Weight: 1.0, Columns.Datetime: times}
    return Dataset.construct(pd.DataFrame(columns))


def build(given: Any, clock: Clock) -> Any:
    """The model with the settings that all systems share. The weights of attention have a dropout of their own."""
    limit = {"max_epochs": given.epochs} if given.epochs else {"max_epochs": 1000, "max_steps": given.warm + given.steps}

    def trainer() -> lightning.Trainer:
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        return lightning.Trainer(**limit, **quiet, devices=1, accelerator="cpu", callbacks=[clock])

    shared = {
        "n_blocks": LAYERS,
        "n_factors": WIDTH,
        "n_heads": HEADS[given.model],
        "dropout_rate": DROPOUT,
        "session_max_len": given.length,
        "loss": "softmax",
        "lr": RATE,
        "batch_size": given.rows,
        "get_trainer_func": trainer,
        "recommend_torch_device": "cpu",
    }
    if given.model == "sasrec":
        return SASRecModel(**shared)
    inner = {"ff_factors_multiplier": INNER[given.model] // WIDTH}
    return BERT4RecModel(**shared, mask_prob=MASK, transformer_layers_kwargs=inner)


def attention_dropout(model: Any, dropout: float) -> None:
    """Set it once RecTools has built its modules: it has one setting for all dropouts."""
    build_model = model._init_torch_model

    def built(item_model: Any) -> Any:
        network = build_model(item_model)
        for module in network.modules():
            if isinstance(module, torch.nn.MultiheadAttention):
                module.dropout = dropout
        return network

    model._init_torch_model = built


def scores(model: Any, known: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users, items, scores [users, items]) by the model's own two towers."""
    users = known.user_id_map.external_ids
    prepared = model.data_preparator.transform_dataset_u2i(known, users)
    loader = model.data_preparator.get_dataloader_recommend(prepared, model.recommend_batch_size)
    of_users, of_items = model.lightning_model._get_user_item_embeddings(loader, "cpu")
    extra = model.data_preparator.n_item_extra_tokens
    items = model.data_preparator.item_id_map.external_ids[extra:]
    with torch.no_grad():
        found = (of_users @ of_items[extra:].T).numpy()
    return prepared.user_id_map.external_ids, items.astype(np.int64), found


def main() -> None:
    """Measure, or train and judge."""
    given = words(__doc__)
    imported, peaks = since_start(), Peaks()
    peaks.at("imported")
    warnings.simplefilter("ignore")
    lightning.seed_everything(given.seed)
    frame, after = ordered(ratings(given.data_dir))
    watch = Watch(given.warm)
    clock = Clock(watch, peaks)
    model = build(given, clock)
    attention_dropout(model, given.attention_dropout)
    model.fit(dataset(frame[after >= 2]))
    peaks.at("trained")
    items = model.data_preparator.item_id_map.size - model.data_preparator.n_item_extra_tokens
    found = {"import_s": imported, "ready_s": clock.ready, "startup_s": clock.ready - imported, "items": items, **watch.told()}
    found["batch"] = f"{given.rows} users"
    if given.epochs:
        found |= judge(frame, *scores(model, dataset(frame[after >= 2])))
    elif not given.no_evaluation:
        known, asked = dataset(frame[after >= 1]), frame[after == 0]
        answers = asked.rename(columns={"user": Columns.User, "item": Columns.Item})[[Columns.User, Columns.Item]]
        metrics = {"ndcg": NDCG(k=TOP), "hr": HitRate(k=TOP), "mrr": MRR(k=TOP)}
        taken: list[tuple[int, float]] = []
        for rows in EVALUATED:
            model.recommend_batch_size = rows
            began = time.perf_counter()
            lists = model.recommend(known.user_id_map.external_ids, known, k=TOP, filter_viewed=True)
            calc_metrics(metrics, lists, answers)
            taken.append((rows, time.perf_counter() - began))
            if "evaluated" not in peaks:  # a larger batch is tried for its speed alone
                peaks.at("evaluated")
        rows, seconds = min(taken, key=lambda one: one[1])
        found |= {"evaluate_s": seconds, "evaluate_batch": f"{rows} users", "evaluations": taken, "evaluated": len(asked)}
    packages = ["rectools", "torch", "numpy", "pandas", "pytorch-lightning"]
    tell("rectools", given, packages, {**found, "peaks_mb": peaks, "peak_mb": max(peaks.values())})


if __name__ == "__main__":
    main()
