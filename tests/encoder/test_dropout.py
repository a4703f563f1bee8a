from __future__ import annotations

import pytest
import torch

from userec.encoder.blocks.dropout import Dropout


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_share_p_is_zero_and_the_others_grow(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(401, 250, dtype=dtype, requires_grad=True)
    y = Dropout(p)(x)
    assert y.dtype == dtype
    zero = y == 0
    assert abs(float(zero.double().mean()) - p) < 4 * (p * (1 - p) / x.numel()) ** 0.5
    assert torch.allclose(y[~zero].double(), torch.tensor(1 / (1 - p)).double(), rtol=1e-4 if dtype != torch.bfloat16 else 1e-2)
    y.backward(torch.full_like(y, 3.0))
    assert x.grad is not None
    assert torch.allclose(x.grad, 3 * y)


def test_neighbours_rows_and_columns_are_dropped_apart() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(2000, 64)) > 0).double()
    noise = 4 / kept.numel() ** 0.5
    for lag in range(1, 9):
        assert abs(float(((kept[:, lag:] - 0.5) * (kept[:, :-lag] - 0.5)).mean()) * 4) < noise * 1.2
    assert abs(float(((kept[1:] - 0.5) * (kept[:-1] - 0.5)).mean()) * 4) < noise * 1.2
    assert (kept.mean(0) - 0.5).abs().max() < 5 * 0.5 / 2000**0.5


def test_the_mask_is_the_seeds() -> None:
    x, drop = torch.randn(7, 5), Dropout(0.3)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(drop(x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_close_to_one_nearly_all_is_dropped() -> None:
    torch.manual_seed(0)
    assert (Dropout(0.999999)(torch.ones(1000, 10)) == 0).double().mean() > 0.998


@pytest.mark.parametrize("p", [1.0, -0.1, 1.5, float("nan")])
def test_what_is_no_share_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match=rf"dropout p={p}: "):
        Dropout(p)


def test_nothing_is_dropped_in_evaluation_nor_at_zero() -> None:
    x = torch.randn(5, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5)(torch.empty(0, 3)).shape == (0, 3)
