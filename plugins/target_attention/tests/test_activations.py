from __future__ import annotations

import torch
from torch import nn
from userec_target_attention.activations import EPS, MOMENTUM, Dice, activation, settled


def formula(x: torch.Tensor, mean: torch.Tensor, var: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    p = 1 / (1 + torch.exp(-(x - mean) / torch.sqrt(var + 1e-9)))
    return p * x + (1 - p) * alpha * x


def dice() -> Dice:
    torch.manual_seed(0)
    module = Dice(4)
    nn.init.normal_(module.alpha)
    return module


def test_training_takes_the_statistics_of_the_batch() -> None:
    module, x = dice(), torch.randn(50, 4) * 3 + 2
    assert EPS == 1e-9
    want = formula(x, x.mean(0), x.var(0, unbiased=False), module.alpha)
    torch.testing.assert_close(module(x), want)
    torch.testing.assert_close(module.mean, MOMENTUM * x.mean(0))
    torch.testing.assert_close(module.var, 1 - MOMENTUM + MOMENTUM * x.var(0))


def test_eval_takes_the_moving_ones_and_moves_them_no_more() -> None:
    module = dice()
    for _ in range(200):
        module(torch.randn(500, 4) * 3 + 2)
    torch.testing.assert_close(module.mean, torch.full((4,), 2.0), atol=0.2, rtol=0)
    torch.testing.assert_close(module.var, torch.full((4,), 9.0), atol=1.0, rtol=0)
    module.eval()
    mean, x = module.mean.clone(), torch.randn(6, 4)
    torch.testing.assert_close(module(x), formula(x, module.mean, module.var, module.alpha))
    torch.testing.assert_close(module(x)[:1], module(x[:1]))
    assert torch.equal(module.mean, mean)


def test_one_row_has_no_statistics() -> None:
    module, x = dice(), torch.randn(1, 4)
    torch.testing.assert_close(module(x), formula(x, torch.zeros(4), torch.ones(4), module.alpha))
    assert module(x[:0]).shape == (0, 4)
    assert not module.mean.any()


def test_what_is_settled_learns_no_statistics() -> None:
    module = nn.Sequential(dice()).train()
    with settled(module):
        module(torch.randn(50, 4) + 5)
        assert not module[0].mean.any()
    module(torch.randn(50, 4) + 5)
    assert module[0].mean.all()


def test_each_name_gives_an_activation_of_rows() -> None:
    x = torch.tensor([[-1.0, 2.0]])
    assert activation("relu", 2)(x).tolist() == [[0.0, 2.0]]
    torch.testing.assert_close(activation("prelu", 2)(x), torch.tensor([[-0.25, 2.0]]))
    torch.testing.assert_close(activation("sigmoid", 2)(x), x.sigmoid())
    assert isinstance(activation("dice", 2), Dice)
