from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from userec.objective import prices

INF = math.inf


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_sampled_softmax_over_all_other_items_is_the_full_cross_entropy() -> None:
    full = scores(3, 4, 11)
    answer = torch.randint(11, (3, 4), generator=torch.Generator().manual_seed(1))
    others = torch.stack([torch.tensor([i for i in range(11) if i != a]) for a in answer.flatten().tolist()]).reshape(3, 4, 10)
    ids = torch.cat([answer.unsqueeze(-1), others], -1)
    assert torch.allclose(prices.sampled_softmax(full.gather(-1, ids)), prices.softmax(full, answer), rtol=0, atol=1e-12)
    expected = F.cross_entropy(full.flatten(0, 1), answer.flatten(), reduction="none").reshape(3, 4)
    assert torch.allclose(prices.softmax(full, answer), expected, rtol=0, atol=1e-12)


def test_a_uniform_log_q_changes_nothing_and_another_does() -> None:
    s = scores(2, 3, 6)
    uniform = torch.full((1, 1, 6), math.log(1 / 50), dtype=torch.float64)
    assert torch.allclose(prices.sampled_softmax(s, uniform), prices.sampled_softmax(s), rtol=0, atol=1e-12)
    log_q = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.1], dtype=torch.float64).log()
    by_hand = -(torch.softmax(s - log_q, -1)[..., 0]).log()
    assert torch.allclose(prices.sampled_softmax(s, log_q), by_hand, rtol=0, atol=1e-12)
    assert (prices.sampled_softmax(s, log_q) - prices.sampled_softmax(s)).abs().min() > 1e-3


def test_gbce_without_calibration_is_bce() -> None:
    s = scores(2, 3, 6)
    assert torch.equal(prices.gbce(s, prices.gbce_beta(5, 100, 0.0)), prices.bce(s))


@pytest.mark.parametrize(("t", "beta"), [(0.0, 1.0), (0.75, 0.306), (1.0, 0.075)])
def test_gbce_beta_of_the_paper(t: float, beta: float) -> None:
    assert prices.gbce_beta(256, 3416, t) == pytest.approx(beta, abs=5e-4)


def test_gbce_beta_of_more_negatives_than_items_is_one_and_so_it_is_of_none() -> None:
    assert prices.gbce_beta(50, 10, 1.0) == 1.0
    assert prices.gbce_beta(0, 10, 0.75) == 1.0


def test_values_by_hand() -> None:
    s = torch.tensor([[[1.0, -0.5, 2.0]]], dtype=torch.float64)
    refused = -math.log(1 - sigmoid(-0.5)) - math.log(1 - sigmoid(2.0))
    assert float(prices.bce(s)) == pytest.approx((-math.log(sigmoid(1.0)) + refused) / 3)
    assert float(prices.gbce(s, 0.3)) == pytest.approx((-0.3 * math.log(sigmoid(1.0)) + refused) / 3)
    assert float(prices.bpr(s)) == pytest.approx(-(math.log(sigmoid(1.5)) + math.log(sigmoid(-1.0))) / 2)
    w = [math.exp(-0.5), math.exp(2.0)]
    w = [x / sum(w) for x in w]
    won = w[0] * sigmoid(1.5) + w[1] * sigmoid(-1.0)
    penalty = w[0] * 0.25 + w[1] * 4.0
    assert float(prices.bpr_max(s, regularisation=0.7)) == pytest.approx(-math.log(won) + 0.7 * penalty)


SAMPLED = {
    "softmax": prices.sampled_softmax,
    "bce": prices.bce,
    "gbce": lambda s, q=None: prices.gbce(s, 0.3, q),
    "bpr": prices.bpr,
    "bpr_max": prices.bpr_max,
}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_voided_candidate_is_as_if_it_had_not_been_drawn(name: str) -> None:
    s = scores(2, 3, 5).requires_grad_()
    log_q = torch.zeros(2, 3, 5, dtype=torch.float64)
    log_q[..., 2] = INF
    price = SAMPLED[name](s, log_q)
    assert torch.allclose(price, SAMPLED[name](s[..., [0, 1, 3, 4]]), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(price.sum(), s)
    assert torch.isfinite(gradient).all()
    assert (gradient[..., 2] == 0).all()


@pytest.mark.parametrize("name", SAMPLED)
def test_all_negatives_void_stays_finite(name: str) -> None:
    s = scores(1, 2, 4).requires_grad_()
    log_q = torch.tensor([0.0, INF, INF, INF], dtype=torch.float64)
    price = SAMPLED[name](s, log_q)
    (gradient,) = torch.autograd.grad(price.sum(), s)
    assert torch.isfinite(price).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", SAMPLED)
def test_extreme_scores_stay_finite_in_float32(name: str) -> None:
    s = torch.tensor([[[-90.0, 90.0, 0.0], [90.0, -90.0, -90.0]]], requires_grad=True)
    price = SAMPLED[name](s)
    (gradient,) = torch.autograd.grad(price.sum(), s)
    assert torch.isfinite(price).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", SAMPLED)
def test_gradients_in_float64(name: str) -> None:
    log_q = scores(2, 2, 4, seed=3) / 4
    log_q[0, 0, 2] = INF
    assert torch.autograd.gradcheck(lambda s: SAMPLED[name](s, log_q), (scores(2, 2, 4).requires_grad_(),))


@pytest.mark.parametrize("name", SAMPLED)
def test_raising_the_positive_lowers_the_price(name: str) -> None:
    s = scores(3, 2, 5)
    better = s.clone()
    better[..., 0] += 0.5
    assert (SAMPLED[name](better) < SAMPLED[name](s)).all()


def test_binary_ignores_what_was_not_observed() -> None:
    s = scores(2, 1, 3)
    labels = torch.tensor([[[1.0, 0.0, math.nan]], [[math.nan, math.nan, math.nan]]], dtype=torch.float64)
    price = prices.binary(s, labels)
    expected = (F.softplus(-s[0, 0, 0]) + F.softplus(s[0, 0, 1])) / 2
    assert float(price[0, 0]) == pytest.approx(float(expected))
    assert float(price[1, 0]) == 0


def test_squared_is_the_mean_over_what_was_observed() -> None:
    scores = torch.tensor([[[1.0, 5.0, 2.0]], [[0.0, 0.0, 0.0]]], requires_grad=True)
    labels = torch.tensor([[[3.0, torch.nan, 2.5]], [[torch.nan] * 3]])
    found = prices.squared(scores, labels)
    assert found[:, 0].tolist() == pytest.approx([(4 + 0.25) / 2, 0.0])
    found.sum().backward()
    assert scores.grad is not None
    assert scores.grad[0, 0].tolist() == pytest.approx([-2.0, 0.0, -0.5])
    assert not scores.grad[1].any()
