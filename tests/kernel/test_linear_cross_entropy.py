from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.cpu import linear_cross_entropy as cpu
from userec.kernel.reference import linear_cross_entropy as reference
from userec.testing import contract
from userec.testing.checks_kernel_calls import check_opcheck

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "linear_cross_entropy"]
BOTH = pytest.mark.parametrize("form", [reference.linear_cross_entropy, cpu.linear_cross_entropy], ids=["torch", "cpu"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean"])


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


def test_the_other_reduction_passes_opcheck_too() -> None:
    check_opcheck(KERNELS, "cpu", "cpu", [case for case in reference.cases() if case.name == "none, no bias"])


def problem(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    shapes = ((rows, 5), (23, 5), (23,))
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    target = torch.randint(23, (rows,), generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), target


@BOTH
@REDUCTIONS
@pytest.mark.parametrize("with_bias", [True, False])
def test_it_is_torch_s_cross_entropy_to_the_last_digits_of_float64(form, reduction: str, with_bias: bool) -> None:
    x, weight, bias, target = problem(600)
    inputs = [x, weight, bias] if with_bias else [x, weight]
    ours = form(x, weight, bias if with_bias else None, target, reduction=reduction)
    theirs = F.cross_entropy(F.linear(x, weight, bias if with_bias else None), target, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for got, want in zip(*(torch.autograd.grad(one, inputs, upstream) for one in (ours, theirs)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@BOTH
def test_the_mean_of_no_rows_is_nothing_and_moves_nothing(form) -> None:
    x, weight, bias, target = problem(0)
    loss = form(x, weight, bias, target, reduction="mean")
    loss.backward()
    assert float(loss.detach()) == 0
    assert not weight.grad.any()


@BOTH
def test_large_logits_stay_finite(form) -> None:
    x, weight, target = torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0]]), torch.tensor([1])
    assert float(form(x, weight, None, target)) == 2e4


@REDUCTIONS
def test_it_runs_without_gradients_and_under_autocast(reduction: str) -> None:
    x, weight, bias, target = problem(600, torch.float32)
    with torch.no_grad():
        quiet = cpu.linear_cross_entropy(x, weight, bias, target, reduction=reduction)
    assert not quiet.requires_grad
    low = x.bfloat16().detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = cpu.linear_cross_entropy(low, weight, bias, target, reduction=reduction)
        out.sum().backward()
    assert out.dtype == torch.float32
    exact = low.detach().float().requires_grad_()
    want = cpu.linear_cross_entropy(exact, weight, bias, target, reduction=reduction)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)  # float32 arithmetic on what bfloat16 kept
    torch.testing.assert_close(low.grad, torch.autograd.grad(want.sum(), exact)[0].bfloat16())


def test_a_torch_without_register_autocast_serves() -> None:
    """2.6 has none."""
    code = "import torch; vars(torch.library).pop('register_autocast', None); import userec.kernel.cpu.sampled_cross_entropy"
    subprocess.run([sys.executable, "-c", f"{code}, userec.kernel.cpu.linear_cross_entropy"], check=True)


@REDUCTIONS
def test_mixed_dtypes_meet_in_the_widest(reduction: str) -> None:
    x, weight, bias, target = problem(9, torch.float32)
    low = x.detach().bfloat16().requires_grad_()
    out = cpu.linear_cross_entropy(low, weight, bias, target, reduction=reduction)
    out.sum().backward()
    want = cpu.linear_cross_entropy(low.detach().float(), weight, bias, target, reduction=reduction)
    assert torch.equal(out, want)
    assert low.grad.dtype == torch.bfloat16
    assert weight.grad.dtype == torch.float32


def test_a_second_derivative_of_the_mean_is_refused() -> None:
    x, weight, bias, target = problem(9)
    loss = cpu.linear_cross_entropy(x, weight, bias, target, reduction="mean")
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.square().sum().backward()


@REDUCTIONS
def test_what_needs_no_gradient_gets_none(reduction: str) -> None:
    x, weight, bias, target = problem(9)
    cpu.linear_cross_entropy(x, weight.detach(), bias.detach(), target, reduction=reduction).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_no_chunk_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []
    original = cpu.losses_of
    monkeypatch.setattr(cpu, "losses_of", lambda logits, target: (shapes.append(len(logits)), original(logits, target))[1])
    x, weight, bias, target = problem(1025, torch.float32)
    cpu.linear_cross_entropy(x, weight, bias, target, reduction="mean").backward()
    assert shapes == [512, 512, 1]


@BOTH
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reduction": "sum"}, "reduction is 'none' or 'mean', not 'sum'"),
        ({"weight": torch.zeros(3, 4)}, r"x \[N, D\] and weight \[V, D\] do not fit: \[2, 5\] and \[3, 4\]"),
        ({"target": torch.zeros(3).long()}, r"target has the shape \[3\], one class a row of x would be \[2\]"),
        ({"bias": torch.zeros(4)}, r"bias has the shape \[4\], one number a row of weight would be \[3\]"),
    ],
)
def test_what_does_not_fit_is_told(form, change, told: str) -> None:
    right = {"x": torch.zeros(2, 5), "weight": torch.zeros(3, 5), "bias": None, "target": torch.zeros(2).long()}
    with pytest.raises(UserError, match=told):
        form(**right | change)
