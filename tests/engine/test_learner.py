"""The learning rate's schedule, and the optimizers as torch has them."""

import pytest
import torch

from userec.engine.experiment import TrainConfig
from userec.engine.learner import lr_factor, make_optimizer


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warm_up_is_linear_then_the_schedule_begins_at_one(schedule):
    config = TrainConfig(schedule=schedule, warmup=10)
    assert [lr_factor(config, step, 110) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert lr_factor(config, 10, 110) == 1.0


def test_the_decays_end_at_zero_and_meet_in_the_middle():
    for schedule, quarter in (("linear", 0.75), ("cosine", 0.8535533905932737)):
        config = TrainConfig(schedule=schedule)
        assert lr_factor(config, 100, 100) == pytest.approx(0)
        assert lr_factor(config, 50, 100) == pytest.approx(0.5)
        assert lr_factor(config, 25, 100) == pytest.approx(quarter)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
def test_each_optimizer_lowers_a_loss(name):
    weight = torch.ones(3, requires_grad=True)
    optimizer = make_optimizer([weight, torch.ones(1)], TrainConfig(optimizer=name, lr=0.1, weight_decay=0.01))
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 1
    (weight**2).sum().backward()
    optimizer.step()
    assert (weight < 1).all()
