from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.cpu import pair_linear as cpu
from userec.kernel.reference import pair_linear as reference
from userec.testing import Check, contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "pair_linear"]
FORMS = {"torch": reference.pair_linear, "cpu": cpu.pair_linear}
Form = Callable[..., Tensor]


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check: Check) -> None:
    check()


@pytest.fixture(params=sorted(FORMS))
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


def oracle(v: Tensor, x: Tensor, weight: Tensor, bias: Tensor, difference: bool) -> Tensor:
    """Of one pair, number by number, as the features stand: v, x, v - x, v * x."""
    width, out = len(v), []
    for row, start in zip(weight.tolist(), bias.tolist(), strict=True):
        total = start
        for i, (a, b) in enumerate(zip(v.tolist(), x.tolist(), strict=True)):
            total += row[i] * a + row[width + i] * b + row[-width + i] * a * b
            if difference:
                total += row[2 * width + i] * (a - b)
        out.append(total)
    return torch.tensor(out)


def inputs(difference: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, 4), torch.randn(7, 4), torch.randn(5, (3 + difference) * 4), torch.randn(5)


@pytest.mark.parametrize("difference", [True, False])
def test_every_pair_is_the_sum_of_its_features(form: Form, difference: bool) -> None:
    v, x, weight, bias = inputs(difference)
    want = torch.stack([torch.stack([oracle(a, b, weight, bias, difference) for b in x]) for a in v])
    grid = form(v, x, weight, bias, difference=difference)
    torch.testing.assert_close(grid, want, atol=1e-5, rtol=1e-5)
    own = torch.stack([x, x.flip(0), x.roll(2, 0)])
    each = form(v, own, weight, bias, difference=difference)
    torch.testing.assert_close(each[0], want[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(each[1], want[1].flip(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(each[2], want[2].roll(2, 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("named", [[(0, 0)], [(2, 6), (1, 3)], [(1, 5), (1, 4), (2, 5)], [(i % 3, i % 7) for i in range(30)]])
@pytest.mark.parametrize("difference", [True, False])
def test_named_pairs_are_the_grid_s_in_values_and_gradients(form: Form, difference: bool, named: list[tuple[int, int]]) -> None:
    """Fewer pairs than rows, in any order, repeated or not."""
    leaves = [leaf.requires_grad_() for leaf in inputs(difference)]
    which_v, which_x = torch.tensor(named).unbind(1)
    pairs = form(*leaves, which_v, which_x, difference=difference)
    grid = reference.pair_linear(*leaves, difference=difference)[which_v, which_x]
    torch.testing.assert_close(pairs, grid, atol=1e-5, rtol=1e-5)
    for got, want in zip(
        torch.autograd.grad(pairs.square().sum(), leaves), torch.autograd.grad(grid.square().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_few_pairs_of_many_rows_touch_no_other_row() -> None:
    """A chunk of a large batch must not pay for the batch, nor read it."""
    v, x, weight, bias = inputs(True)
    x[0] = x[5:] = torch.nan
    assert cpu.pair_linear(v, x, weight, bias, torch.tensor([0, 2]), torch.tensor([4, 1]), difference=True).isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"which_v": torch.tensor([0])}, "give both, or neither"),
        ({"difference": False}, "must be 4, 4 and 12"),
        ({"x": torch.randn(7, 5)}, "x 5"),
        ({"x": torch.randn(2, 7, 4)}, "each of the 3 v, not 2"),
    ],
)
def test_what_does_not_fit_is_told(form: Form, wrong: dict[str, Any], told: str) -> None:
    v, x, weight, bias = inputs(True)
    with pytest.raises(UserError, match=told):
        form(**{"v": v, "x": x, "weight": weight, "bias": bias, "difference": True, **wrong})


@pytest.mark.parametrize("named", [False, True])
def test_mixed_dtypes_under_autocast_run_both_ways_and_are_right(form: Form, named: bool) -> None:
    v, x, weight, bias = inputs(True)
    which = (torch.tensor([0, 2, 1]), torch.tensor([3, 3, 5])) if named else ()
    leaves = [v.bfloat16().requires_grad_(), *(each.requires_grad_() for each in (x, weight, bias))]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    with torch.autocast("cpu", torch.bfloat16):
        out = form(*leaves, *which, difference=True)
        found = torch.autograd.grad(out.float().sum(), leaves)
    want = reference.pair_linear(*exact, *which, difference=True)
    for one, other in zip((out, *found), (want, *torch.autograd.grad(want.sum(), exact)), strict=True):
        assert float(((one.double() - other).norm() / other.norm()).detach()) < 2e-2
    assert [gradient.dtype for gradient in found] == [leaf.dtype for leaf in leaves]
