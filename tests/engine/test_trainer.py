"""The training loop: the same end whatever the way there."""

import copy

import pytest
import torch

from userec.dataset.events import code
from userec.engine import checkpoint
from userec.engine.learner import GradientLearner
from userec.engine.session import Session
from userec.errors import DivergedError, UserError
from userec.evaluator.contract import Metric
from userec.registry import load
from userec.testing import open_session
from userec.testing.tiny import TinyDataset


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    registry = load(only=())
    coded = code(TinyDataset(TinyDataset.Config(), tmp_path_factory.mktemp("home")))
    return registry, coded


NEXT_ITEM = {"name": "next_item"}


def session_of(parts, toy, batch=None, objective=NEXT_ITEM, **train):
    registry, coded = parts
    plugins = {**registry.plugins, "encoders": {**registry.plugins["encoders"], toy.name: toy}}
    said = {"encoder": {"name": toy.name}} | ({} if objective is None else {"objective": objective})
    said |= {"split": {"name": "leave_last"}, "batch": {"rows": 8, **(batch or {})}, "train": train}
    session = open_session(plugins, coded, said)
    return session, session.run.experiment


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
        session, experiment = session_of(parts, toy, epochs=2)
        model = session.compose(experiment.model_copy(update={"seed": seed}))
        session.train(model)
        found.append(weights(model))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


@pytest.mark.parametrize(
    ("train", "batch"), [({"epochs": 4}, {}), ({"steps": 17, "validate_steps": 4}, {}), ({"steps": 17}, {"carry": 2})]
)
def test_a_run_cut_in_the_middle_and_resumed_ends_as_if_nothing_had_been(parts, train, batch, tmp_path, monkeypatch):
    from userec.testing import toys

    toy = toys.Stateful if batch else toys.Dot
    session, experiment = session_of(parts, toy, batch, **train)
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
    session, experiment = session_of(parts, toy, batch, **train, checkpoint_seconds=0)
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
    session, experiment = session_of(parts, toy, epochs=20, patience=2)
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
    session, experiment = session_of(parts, toy, epochs=1, accumulate=2)
    model = session.compose(experiment)
    session.train(model)
    other, plain = session_of(parts, toy, epochs=1)
    single = other.compose(plain)
    other.train(single)
    assert model.progress.step == -(-single.progress.step // 2)
    assert model.progress.targets == single.progress.targets


def test_a_monitor_that_is_no_metric_is_told(parts, toy):
    session, experiment = session_of(parts, toy, epochs=2, monitor="ranking/nothing@1")
    with pytest.raises(UserError, match=r"unknown metric 'nothing@1' in train.monitor"):
        session.train(session.compose(experiment))


def validations(monkeypatch, *values):
    """The monitored metric as given, one value a validation; an exception is raised. The list of those still to come."""
    left = list(values)

    def validation(self, model, tasks):
        def validate():
            value = left.pop(0)
            if isinstance(value, BaseException):
                raise value
            return None if value is None else Metric("next", "ndcg@10", "", value)

        return validate

    monkeypatch.setattr(Session, "_validation", validation)
    return left


def standing(folder):
    """Steps of `best` and `last`, None where there is none."""
    found = (checkpoint.load(folder, name) for name in ("best", "last"))
    return tuple(one and one[1]["step"] for one in found)


@pytest.mark.parametrize("train", [{"epochs": 4}, {"steps": 30, "validate_steps": 7}, {"epochs": 3, "validate_steps": 7}])
def test_a_validation_that_is_interrupted_is_made_up_for(parts, toy, train, tmp_path, monkeypatch):
    session, experiment = session_of(parts, toy, **train)
    left = validations(monkeypatch, *(0.1 * step for step in range(9)))
    whole = session.compose(experiment)
    session.train(whole, tmp_path / "whole")
    asked = 9 - len(left)
    left = validations(monkeypatch, 0.0, KeyboardInterrupt(), *(0.1 * step for step in range(1, 9)))
    with pytest.raises(KeyboardInterrupt):
        session.train(session.compose(experiment), tmp_path / "cut")
    best, last = standing(tmp_path / "cut")
    assert best < last, "training of before the validation is kept"
    resumed = session.compose(experiment)
    session.train(resumed, tmp_path / "cut", resume=True)
    assert 10 - len(left) == asked + 1, "the one that was interrupted twice, no other"
    assert same(weights(whole), weights(resumed))
    assert {**vars(whole.progress), "seconds": 0} == {**vars(resumed.progress), "seconds": 0}


def test_an_interrupt_inside_a_step_leaves_the_checkpoint_of_before(parts, toy, tmp_path, monkeypatch):
    session, experiment = session_of(parts, toy, steps=9, validate_steps=3)
    validations(monkeypatch, 0.1, 0.2, 0.3)
    step = GradientLearner.step

    def interrupted(self, batches, number, epoch, total):
        found = step(self, batches, number, epoch, total)  # weights have moved, progress has not
        if number == 4:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(GradientLearner, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.train(session.compose(experiment), tmp_path)
    assert standing(tmp_path) == (3, 3)


@pytest.mark.parametrize("values", [(0.1, 0.2, float("nan")), (0.1, 0.2, float("inf"))])
def test_a_metric_that_stops_being_a_number_stops_the_run(parts, toy, values, tmp_path, monkeypatch):
    session, experiment = session_of(parts, toy, steps=9, validate_steps=3)
    validations(monkeypatch, *values)
    with pytest.raises(DivergedError, match=rf"ranking/ndcg@10 is {values[-1]} after step 9: lower train.lr") as told:
        session.train(session.compose(experiment), tmp_path)
    assert f"the last good checkpoint stands in {tmp_path} (step 6)" in str(told.value)
    assert standing(tmp_path) == (6, 6)


def test_a_metric_that_the_data_leaves_undefined_picks_no_weights(parts, toy, tmp_path, monkeypatch):
    session, experiment = session_of(parts, toy, steps=9, validate_steps=3)
    validations(monkeypatch, *[float("nan")] * 3)
    model = session.compose(experiment)
    session.train(model, tmp_path)
    assert (model.progress.best, standing(tmp_path)) == (None, (None, 9))


@pytest.mark.parametrize("where", ["judged", "judged and kept nowhere", "kept now and then", "kept at the end"])
def test_weights_that_are_not_finite_are_never_kept(parts, toy, where, tmp_path, monkeypatch):
    train = {"kept now and then": {"checkpoint_seconds": 0}, "kept at the end": {}}.get(where, {"validate_steps": 3})
    session, experiment = session_of(parts, toy, steps=9 if where != "kept at the end" else 6, **train)
    validations(monkeypatch, *[0.1] * 3 if where != "kept at the end" else [None])
    step = GradientLearner.step

    def spoilt(self, batches, number, epoch, total):
        found = step(self, batches, number, epoch, total)
        if number == 5:
            with torch.no_grad():
                next(self.encoder.parameters())[3, 2] = float("inf")
        return found

    monkeypatch.setattr(GradientLearner, "step", spoilt)
    kept = {"judged": 3, "kept now and then": 5}.get(where)
    with pytest.raises(DivergedError) as told:
        session.train(session.compose(experiment), None if where == "judged and kept nowhere" else tmp_path)
    assert "weights are not finite after step 6" in str(told.value)
    assert ("the last good checkpoint" if kept else "no checkpoint had been written before") in str(told.value)
    found = checkpoint.load(tmp_path, "last")
    assert (found and found[1]["step"]) == kept
    assert found is None or all(torch.isfinite(value).all() for value in found[0].values())


def test_training_stops_early_inside_an_epoch_too(parts, toy, monkeypatch):
    session, experiment = session_of(parts, toy, epochs=20, validate_steps=2, patience=1)
    left = validations(monkeypatch, 0.2, 0.1, 0.9)
    model = session.compose(experiment)
    session.train(model)
    assert (len(left), model.progress.step, model.progress.best_step) == (1, 4, 2)


def test_a_checkpoint_of_other_data_is_told(parts, toy, tmp_path):
    session, experiment = session_of(parts, toy, epochs=1)
    session.train(session.compose(experiment), tmp_path)
    tensors, about = checkpoint.load(tmp_path, "last")
    for spoilt in ({**about, "progress": {"steps": 3}}, {key: value for key, value in about.items() if key != "groups"}):
        checkpoint.save(tmp_path, "last", tensors, spoilt)
        with pytest.raises(UserError, match="does not fit, the data or a plugin changed"):
            session.train(session.compose(experiment), tmp_path, resume=True)


def test_a_state_that_is_carried_makes_stretches_a_whole(parts):
    from userec.testing import toys

    session, experiment = session_of(parts, toys.Stateful, {"carry": 3, "rows": 4})
    model = session.compose(experiment)
    model.encoder.begin_task(("next",), "train")
    model.encoder.items.reset(std=1.0)
    objective = model.build.objective("next_item")  # over the whole catalogue: nothing is drawn
    learner = GradientLearner(
        model.encoder.eval(), objective, experiment.train.model_copy(update={"lr": 1e-30}), 0, torch.device("cpu")
    )
    stream = session.loader(model, ("next",), objective)
    parted = [learner.step([batch], 0, 0.0, 9) for batch in stream.batches(0)]
    rows = session.loader(session.compose(session_of(parts, toys.Stateful)[1]), ("next",), objective)
    whole = [learner.step([batch], 0, 0.0, 9) for batch in rows.batches(0)]
    losses = [sum(values["loss"] * targets for values, targets in found) for found in (parted, whole)]
    assert sum(targets for _, targets in parted) == sum(targets for _, targets in whole)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    learner.carried = {}
    forgetful = []
    for batch in stream.batches(0):
        forgetful.append(learner.step([batch], 0, 0.0, 9))
        learner.carried = {}
    assert sum(values["loss"] * targets for values, targets in forgetful) != pytest.approx(losses[1], rel=1e-4)


def test_what_cannot_carry_a_state_is_refused(parts, toy):
    from userec.testing import toys

    class Short(toys.Stateful):
        def __init__(self, config, build):
            super().__init__(config, build)
            self.window = 2

    session, experiment = session_of(parts, toy, {"carry": 3})
    with pytest.raises(UserError, match=r"batch\.carry=3 needs CARRY_STATE; encoder 'toy-dot' offers"):
        session.compose(experiment)
    session, experiment = session_of(parts, Short, {"carry": 3})
    with pytest.raises(UserError, match=r"batch\.carry=3 is more than encoder\.window=2"):
        session.compose(experiment)


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "cloze"},
        {"name": "future"},
        {"name": "future", "window": 1, "question": "each"},
        {"name": "future", "question": "last"},
    ],
)
def test_a_state_is_carried_under_a_question_for_the_next_event_alone(parts, settings):
    from userec.testing import toys

    session, experiment = session_of(parts, toys.Stateful, {"carry": 3}, settings)
    with pytest.raises(UserError, match=rf"batch\.carry=3 .*; objective '{settings['name']}' .*use --objective next_item"):
        session.compose(experiment)


def test_an_encoder_that_counts_has_no_state_to_carry(parts):
    from userec.testing import toys

    session, experiment = session_of(parts, toys.Counting, {"carry": 3}, None)
    with pytest.raises(UserError, match=r"batch\.carry=3 .*encoder 'toy-counting' counts: leave batch\.carry out"):
        session.compose(experiment)
