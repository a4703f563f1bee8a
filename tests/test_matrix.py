"""The matrix: every installed encoder with every objective and evaluator, every data set with every objective: a pair runs a
step, or is refused with a reason."""

import math

import pytest
import torch

from userec.dataset.events import code
from userec.dataset.locate import home_of
from userec.errors import UserError
from userec.evaluator.contract import Metric
from userec.registry import load
from userec.testing import open_session
from userec.testing.tiny import TinyDataset
from userec.testing.toys import TOYS

REGISTRY = load()
PLUGINS = {**REGISTRY.plugins, "encoders": {**REGISTRY.plugins["encoders"], **{toy.name: toy for toy in TOYS}}}
TASKS = ("next", "click", "group", "score")
STEP = {"steps": 1, "validate_users": 8}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return code(TinyDataset(TinyDataset.Config(), tmp_path_factory.mktemp("tiny")))


def objectives():
    """Every objective with its defaults and each of its variants."""
    return [(name, dict(settings)) for name, found in sorted(PLUGINS["objectives"].items()) for settings in ({}, *found.variants)]


def a_step(coded, encoder, task, objective=None):
    """(session, model) after one step of training, or the reason why there is none."""
    said = {"encoder": {"name": encoder}, "task": task, "train": STEP, "split": {"name": "leave_last"}, "batch": {"rows": 16}}
    if objective is not None:
        said["objective"] = {"name": objective[0], **objective[1]}
    try:
        session = open_session(PLUGINS, coded, said)
        model = session.compose(session.run.experiment)
        session.train(model)
    except UserError as error:
        return str(error)
    return session, model


def weights(model):
    return [value for value in model.encoder.state_dict().values() if value.is_floating_point()]


def is_reason(found):
    return isinstance(found, str) and len(found) > 20 and "Error" not in found and "Traceback" not in found


@pytest.mark.parametrize("encoder", sorted(PLUGINS["encoders"]))
def test_encoder_with_every_objective(encoder, tiny):
    trained, refused = 0, []
    for task in TASKS:
        for objective in (None, *objectives()):
            found = a_step(tiny, encoder, task, objective)
            if isinstance(found, str):
                assert is_reason(found), found
                refused.append(found)
                continue
            trained += 1
            assert all(torch.isfinite(value).all() for value in weights(found[1]))
            assert found[1].progress.targets > 0
    assert trained, f"{encoder} trains on nothing: {refused}"


@pytest.mark.parametrize("encoder", sorted(PLUGINS["encoders"]))
def test_encoder_with_every_evaluator(encoder, tiny):
    judged = set()
    for task in TASKS:
        found = a_step(tiny, encoder, task)
        if isinstance(found, str):
            assert is_reason(found), found
            continue
        session, model = found
        for name in sorted(PLUGINS["evaluators"]):
            evaluator = session.evaluator(model, name)
            reasons = session.refusals(model, evaluator)
            if reasons:
                assert all(len(reason) > 10 for reason in reasons), reasons
                continue
            rows = [row.metric for row in session.evaluate(model, [evaluator])]
            assert rows, f"{name} fits {encoder} on {task} and says nothing"
            assert all(isinstance(m, Metric) and m.definition and m.n >= 0 for m in rows)
            assert any(math.isfinite(m.value) for m in rows), [m.metric for m in rows]
            judged.add(name)
    assert judged, f"no evaluator judges {encoder}"


@pytest.mark.parametrize("dataset", sorted(PLUGINS["datasets"]))
def test_data_set_with_every_objective(dataset, tmp_path):
    found = REGISTRY.find("datasets", dataset)
    home, sample = home_of(found, None, {"USEREC_CACHE": str(tmp_path)}, force_sample=True)
    assert sample, f"{dataset} has no sample"
    coded = code(found(found.Config(), home))
    trained = set()
    for task in coded.schema.all_tasks:
        for objective in objectives():
            step = a_step(coded, "toy-many-task", task.name, objective)
            if isinstance(step, str):
                assert is_reason(step), step
            else:
                trained.add(task.name)
                assert step[1].progress.targets > 0
    assert trained == {task.name for task in coded.schema.all_tasks}
