"""One run: load, compose, train, evaluate beside the baselines, report."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from userec.config import Ref, parse
from userec.dataset import cache
from userec.dataset.contract import Dataset
from userec.dataset.events import Coded
from userec.dataset.split import Division, divide, target_hash
from userec.engine import checkpoint
from userec.engine.compose import Builder, Plugins, complete, configure
from userec.engine.device import device_of, peak_rss_mb
from userec.engine.experiment import Experiment, read_file, resolve, to_toml
from userec.engine.session import Host, Model, Run, Session, counts_of, evaluator_ref
from userec.errors import UserError, unknown
from userec.evaluator.contract import Evaluator
from userec.kernel.cpu.products import choice
from userec.kernel.dispatch import Kernels
from userec.report import SCHEMA, write_json, write_per_user

JUDGED = ("evaluators", "slices")
"""Settings that a resumed run may change: what has been trained stays, and is judged anew. Once training is done, so may the
settings under `evaluator`: until then validation goes by them."""

PACE = ("checkpoint_seconds",)
"""Settings of `train` that do not touch the result: a resumed run may change them too."""

VERSIONS = ("userec", "torch", "numpy", "pandas", "scipy", "pyarrow")


def settle(plugins: Plugins, said: Mapping[str, Any], dataset: Dataset) -> Experiment:
    """Every value of the run, defaults of every plugin included; what is misspelt or mistyped is told before any data is read.

    Raises UserError."""
    tasks = {task.name: task for group in dataset.tasks for task in group}
    task = said.get("task")
    if task is not None and task not in tasks:
        raise unknown("task", str(task), tasks)
    encoder, _ = configure(plugins, "encoders", "encoder", Ref(**said["encoder"]))
    experiment = resolve(said, encoder.recipe, tasks[task] if task is not None else next(iter(tasks.values())))
    for name in (*(experiment.evaluators or ()), *experiment.evaluator):
        if name not in plugins["evaluators"]:
            raise unknown("evaluator", name, plugins["evaluators"])
    names = sorted(plugins["evaluators"])
    if experiment.evaluators is not None:  # and the one that validation goes by
        names = [name for name in names if name in experiment.evaluators or experiment.train.monitor.startswith(f"{name}/")]
    refs = [complete(plugins, "evaluators", f"evaluator.{name}", evaluator_ref(experiment, name)) for name in names]
    return experiment.model_copy(
        update={
            "dataset": Ref(**{**dataset.config.model_dump(mode="json"), "name": experiment.dataset.name}),
            "encoder": complete(plugins, "encoders", "encoder", experiment.encoder),
            "objective": experiment.objective and complete(plugins, "objectives", "objective", experiment.objective),
            "evaluator": {ref.name: ref.settings for ref in refs},
        }
    )


def check_folder(out: Path, experiment: Experiment, resume: bool) -> None:
    """See that the run's folder is free, or holds this very run. Raises UserError where it does not, or cannot be written."""
    settings = out / "experiment.toml"
    if resume and not settings.is_file():
        raise UserError(f"--resume: {out} holds no run (no experiment.toml); leave --resume out to start one there")
    found = checkpoint.latest(out / "checkpoint") or {}
    free = (*JUDGED, "evaluator") if found.get("progress", {"done": True})["done"] else JUDGED
    if resume and (differing := [key for key in _differences(read_file(settings), experiment) if key not in free]):
        raise UserError(f"--resume: {settings} was made with other settings ({', '.join(differing)}); use another --out")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is not empty; choose another folder, or --resume to go on with the run in it")
    parent = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write to --out {out}: {parent} is {'not writable' if parent.is_dir() else 'no folder'}")


def check_data(out: Path, session: Session) -> None:
    """See that the run in `out` was trained on this very data. Raises UserError where it was not."""
    before = (checkpoint.latest(out / "checkpoint") or {}).get("data", session.fingerprint)
    if before != session.fingerprint:
        told = f"({before} then, {session.fingerprint} now)"
        raise UserError(f"--resume: the run in {out} was trained on other data {told}; use another --out")


def _differences(said: Mapping[str, Any], experiment: Experiment) -> list[str]:
    before = parse(Experiment, said, "").model_dump(mode="json")
    now = experiment.model_dump(mode="json")
    both = before["evaluator"].keys() & now["evaluator"].keys()
    for values in (before, now):
        values["train"] = {key: value for key, value in values["train"].items() if key not in PACE}
        values["evaluator"] = {name: values["evaluator"][name] for name in both}
    return [key for key in now if before[key] != now[key]]


def run(
    host: Host, said: Mapping[str, Any], dataset: Dataset, name: str, cache_folder: Path | None, out: Path, resume: bool
) -> dict[str, Any]:
    """Run the experiment that `said` describes on `dataset`, known as `name`; the report, as written to `out`.

    Raises UserError for anything the user can mend."""
    began = time.perf_counter()
    experiment = settle(host.plugins, said, dataset)
    device = device_of(experiment.device)
    kernels = Kernels(kernel for provided in host.plugins["kernels"].values() for kernel in provided)
    check_folder(out, experiment, resume)
    coded = cache.load(dataset, cache_folder)
    for note in coded.notes:
        host.tell(note)
    division = divide(coded, experiment.split)
    host.tell(f"split {division.name}: {division.note}")
    about = Run(experiment.encoder.name, name, experiment, out)
    session = Session(host, about, coded, division, Builder.of(host.plugins, coded, kernels, division.train), device)
    model = session.compose(experiment)
    evaluators, skipped = choose_evaluators(session, model)
    if resume:
        check_data(out, session)
    _write_settings(out, experiment, coded, model)
    write_json(out / "checkpoint" / "made_by.json", session.made_by(experiment))
    load_s = time.perf_counter() - began
    host.notify("userec_run_started", run=about)
    session.train(model, out / "checkpoint", resume)
    _tell_best(host, model)
    rows = session.evaluate(model, evaluators)
    baselines, left = session.baselines(experiment, evaluators)
    report = {
        "schema": SCHEMA,
        "experiment": experiment.model_dump(mode="json"),
        "dataset": {"name": name, **counts_of(coded), "target_hash": target_hash(coded, division), "split": _split(division)},
        "environment": _environment(host, device, kernels),
        "metrics": [row.as_json(with_encoder=False) for row in rows],
        "baselines": [row.as_json(with_encoder=True) for row in baselines],
        "timing": {"load_s": load_s, **_timing(model)},
        "best": {"step": model.progress.best_step, "monitor": experiment.train.monitor, "value": model.progress.best},
        "notes": list(coded.notes),
        "peak_rss_mb": peak_rss_mb(),
        "skipped": [*skipped, *left],
    }
    write_per_user(out / "per_user.parquet", [*rows, *baselines], coded.vocabulary["user"].values)
    write_json(out / "report.json", report)
    host.notify("userec_run_finished", run=about, report=report)
    return report


def _environment(host: Host, device: torch.device, kernels: Kernels) -> dict[str, Any]:
    precision, why = choice()
    return {
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {device}",
        "versions": {package: version(package) for package in VERSIONS},
        "plugins": dict(host.about),
        "kernels": kernels.chosen(),
        "large_products": {"precision": precision, "why": why},
    }


def _timing(model: Model) -> dict[str, float]:
    """Seconds in training steps, and in validations and evaluation; baselines are in neither."""
    progress = model.progress
    speed = progress.targets / progress.seconds if progress.seconds else 0.0
    return {"train_s": progress.seconds, "evaluate_s": model.evaluate_s, "epochs": progress.epoch, "targets_per_s": speed}


def choose_evaluators(session: Session, model: Model) -> tuple[list[Evaluator], list[dict[str, str]]]:
    """All that fit, and for what does not, the reason. One that the user named must fit, else UserError."""
    named = model.experiment.evaluators
    chosen: list[Evaluator] = []
    skipped: list[dict[str, str]] = []
    for name in named if named is not None else sorted(session.build.plugins["evaluators"]):
        evaluator = session.evaluator(model, name)
        reasons = session.refusals(model, evaluator)
        if not reasons:
            chosen.append(evaluator)
            skipped += [{"evaluator": name, "reason": reason} for reason in _untrained(session, model, evaluator)]
        elif named is not None:
            raise UserError(
                "\n".join([f"evaluator {name!r} does not fit {model.name!r}:", *(f"  {reason}" for reason in reasons)])
            )
        else:
            skipped.append({"evaluator": name, "reason": "; ".join(reasons)})
    return chosen, skipped


def _untrained(session: Session, model: Model, evaluator: Evaluator) -> list[str]:
    """Tasks of its kinds that it cannot judge for want of a trained head; classes of users are probed."""
    tasks = session.coded.schema.all_tasks
    others = [task.name for task in tasks if task.kind in evaluator.judges - {"label"} and task.name not in model.trained]
    if not others:
        return []
    word, trained = "tasks" if others[1:] else "task", ", ".join(model.trained) or "none"
    return [f"{word} {', '.join(others)}: {model.name!r} is trained on {trained}"]


def _split(division: Division) -> dict[str, Any]:
    return {"name": division.name, "target": division.config.target, "leaky": division.leaky, "note": division.note}


def _write_settings(out: Path, experiment: Experiment, coded: Coded, model: Model) -> None:
    """`experiment.toml`, and the external ids of every space that the encoder may meet: they travel with the checkpoint."""
    spaces = [space for space in coded.vocabulary if space != "user" or "user" in model.encoder.reads]
    (out / "checkpoint").mkdir(parents=True, exist_ok=True)
    part = out / "experiment.toml.part"
    part.write_text(to_toml(experiment), encoding="utf-8")
    os.replace(part, out / "experiment.toml")
    write_json(out / "checkpoint" / "vocabulary.json", {space: coded.vocabulary[space].values.tolist() for space in spaces})


def _tell_best(host: Host, model: Model) -> None:
    progress = model.progress
    if progress.best is not None:
        where = f"step {progress.best_step} of {progress.step}"
        host.tell(f"best weights: {where}, validation {model.experiment.train.monitor} {progress.best:.4f}")
