"""The training loop: the same end whatever the way there."""

import copy

import pytest
import torch

from userec.dataset.events import code
from userec.dataset.split import divide
from userec.engine.compose import Builder
from userec.engine.experiment import resolve
from userec.engine.session import Host, Run, Session
from userec.errors import UserError
from userec.evaluator.contract import Metric
from userec.kernel.dispatch import Kernels
from userec.registry import load
from userec.schema import NEXT
from userec.testing.tiny import TinyDataset


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    registry = load(only=())
    coded = code(TinyDataset(TinyDataset.Config(), tmp_path_factory.mktemp("home")))
    return registry, coded


def session_of(parts, toy, **train):
    registry, coded = parts
    plugins = {**registry.plugins, "encoders": {**registry.plugins["encoders"], toy.name: toy}}
    said = {"encoder": {"name": toy.name}, "dataset": {"name": "tiny"}, "objective": {"name": "next_item"}}
    said |= {"split": {"name": "leave_last"}, "batch": {"rows": 8}, "train": train}
    experiment = resolve(said, {}, NEXT)
    division = divide(coded, experiment.split)
    kernels = Kernels(kernel for provided in plugins["kernels"].values() for kernel in provided)
    build = Builder.of(plugins, coded, kernels, division.train)
    told = []
    session = Session(
        Host(plugins, tell=told.append), Run(toy.name, "tiny", experiment, None), coded, division, build, torch.device("cpu")
    )
    return session, experiment, told


def weights(model):
    return {key: value.clone() for key, value in model.encoder.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def toy():
    from userec.testing import toys

    return toys.Dot


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(parts, toy):
    found = []
    for seed in (0, 0, 1):
        session, experiment, _ = session_of(parts, toy, epochs=2)
        model = session.compose(experiment.model_copy(update={"seed": seed}))
        session.train(model)
        found.append(weights(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize("train", [{"epochs": 4}, {"steps": 17, "validate_steps": 4}])
def test_a_run_cut_in_the_middle_and_resumed_ends_as_if_nothing_had_been(parts, toy, train, tmp_path, monkeypatch):
    session, experiment, _ = session_of(parts, toy, **train)
    whole = session.compose(experiment)
    session.train(whole, tmp_path / "whole")

    from userec.engine import trainer

    class Cut(Exception):
        pass

    steps = []
    step = trainer.Trainer._step

    def cut(self, batches):
        if len(steps) == 9:
            raise Cut
        steps.append(1)
        return step(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_step", cut)
    session, experiment, _ = session_of(parts, toy, **train, checkpoint_seconds=0)
    half = session.compose(experiment)
    with pytest.raises(Cut):
        session.train(half, tmp_path / "half")
    monkeypatch.setattr(trainer.Trainer, "_step", step)
    resumed = session.compose(experiment.model_copy(update={"seed": experiment.seed}))
    session.train(resumed, tmp_path / "half", resume=True)
    assert same(weights(whole), weights(resumed))
    assert whole.progress.best == resumed.progress.best
    assert whole.progress.targets == resumed.progress.targets


def test_the_best_weights_are_restored_and_training_stops_early(parts, toy, monkeypatch):
    session, experiment, _ = session_of(parts, toy, epochs=20, patience=2)
    values = iter([0.1, 0.3, 0.2, 0.2, 0.9])
    kept = []

    def validation(self, model, tasks):
        def validate():
            kept.append(copy.deepcopy(weights(model)))
            return Metric("next", "ndcg@10", "", next(values))

        return validate

    monkeypatch.setattr(Session, "_validation", validation)
    model = session.compose(experiment)
    session.train(model)
    assert len(kept) == 4
    assert same(weights(model), kept[1])
    assert (model.progress.best, model.progress.epoch) == (0.3, 4)


def test_accumulation_is_one_step_of_both_batches(parts, toy):
    session, experiment, _ = session_of(parts, toy, epochs=1, accumulate=2)
    model = session.compose(experiment)
    session.train(model)
    other, plain, _ = session_of(parts, toy, epochs=1)
    single = other.compose(plain)
    other.train(single)
    assert model.progress.step == -(-single.progress.step // 2)
    assert model.progress.targets == single.progress.targets


def test_a_monitor_that_is_no_metric_is_told(parts, toy):
    session, experiment, _ = session_of(parts, toy, epochs=2, monitor="ranking/nothing@1")
    with pytest.raises(UserError, match=r"unknown metric 'nothing@1' in train.monitor"):
        session.train(session.compose(experiment))
