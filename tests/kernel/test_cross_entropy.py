from __future__ import annotations

import pytest
import torch
from torch import Tensor

from userec.builtin.kernels import userec_kernels
from userec.kernel.contract import Kernel
from userec.kernel.cpu import cross_entropy as cpu
from userec.kernel.reference import cross_entropy as reference

KERNELS = {kernel.provider: kernel for kernel in userec_kernels() if kernel.op == "linear_cross_entropy"}


def within(kernel: Kernel, out: Tensor, expected: Tensor) -> None:
    """The relative error is at most what the kernel promises for the dtype of `out`; an exact zero may be a rounding off."""
    tolerance = kernel.tolerance[str(out.dtype).removeprefix("torch.")]
    assert float((out.detach().double() - expected.detach()).norm()) <= tolerance * (float(expected.detach().norm()) + 1e-12)


def problem(
    rows: int, dtype: torch.dtype, with_bias: bool, classes: int = 23, width: int = 5
) -> tuple[list[Tensor | None], Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight = 3 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    bias = torch.randn(classes, generator=generator, dtype=torch.float64) if with_bias else None
    target = torch.randint(classes, (rows,), generator=generator)
    return [t if t is None else t.to(dtype).requires_grad_() for t in (x, weight, bias)], target


@pytest.mark.parametrize("rows", [0, 1, 511, 512, 513])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_each_form_keeps_its_tolerance_of_the_float64_reference(
    rows: int, with_bias: bool, reduction: str, dtype: torch.dtype, kernel: Kernel
) -> None:
    ours, target = problem(rows, dtype, with_bias)
    theirs = [t if t is None else t.detach().double().requires_grad_() for t in ours]
    out = kernel.load()(*ours, target, reduction=reduction)
    expected = reference.linear_cross_entropy(*theirs, target, reduction=reduction)  # type: ignore[arg-type]
    within(kernel, out, expected)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs, wanted_of = ([t for t in side if t is not None] for side in (ours, theirs))
    gradients = torch.autograd.grad(out, inputs, upstream.to(dtype))
    wanted = torch.autograd.grad(expected, wanted_of, upstream)
    for gradient, want in zip(gradients, wanted, strict=True):
        assert gradient.shape == want.shape
        within(kernel, gradient, want)


def test_it_is_torch_s_cross_entropy() -> None:
    (x, weight, bias), target = problem(40, torch.float64, True)
    assert x is not None
    assert weight is not None
    expected = torch.nn.functional.cross_entropy(torch.nn.functional.linear(x, weight, bias), target, reduction="none")
    torch.testing.assert_close(reference.linear_cross_entropy(x, weight, bias, target), expected)


def test_the_reference_passes_gradcheck() -> None:
    (x, weight, bias), target = problem(4, torch.float64, True, classes=6, width=3)
    assert torch.autograd.gradcheck(lambda *inputs: reference.linear_cross_entropy(*inputs, target), (x, weight, bias))


def test_large_logits_stay_finite() -> None:
    x, weight, target = torch.tensor([[1e4]]), torch.tensor([[1.0], [-1.0]]), torch.tensor([1])
    assert float(cpu.linear_cross_entropy(x, weight, None, target)) == 2e4


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_it_runs_without_gradients_and_under_autocast(reduction: str) -> None:
    (x, weight, bias), target = problem(600, torch.float32, True)
    assert x is not None
    assert weight is not None
    with torch.no_grad():
        quiet = cpu.linear_cross_entropy(x, weight, bias, target, reduction=reduction)
    assert not quiet.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        low = x.bfloat16().detach().requires_grad_()
        out = cpu.linear_cross_entropy(low, weight, bias, target, reduction=reduction)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert low.grad is not None
    assert low.grad.dtype == torch.bfloat16
    torch.testing.assert_close(out.detach(), quiet, atol=0.2, rtol=0.05)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_strided_and_expanded_inputs_pass(reduction: str) -> None:
    torch.manual_seed(0)
    base = torch.randn(4, 6, dtype=torch.float64)
    x = base.t()[1:].detach().requires_grad_()  # [5, 4], strided
    weight = torch.randn(1, 4, dtype=torch.float64).expand(9, 4).requires_grad_()
    target = torch.arange(5)
    ours = torch.autograd.grad(cpu.linear_cross_entropy(x, weight, None, target, reduction=reduction).sum(), (x, weight))
    theirs = torch.autograd.grad(reference.linear_cross_entropy(x, weight, None, target, reduction=reduction).sum(), (x, weight))
    for gradient, want in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, want)


def test_no_chunk_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[int] = []
    original = cpu._losses
    monkeypatch.setattr(cpu, "_losses", lambda logits, target: (shapes.append(len(logits)), original(logits, target))[1])
    (x, weight, bias), target = problem(1025, torch.float32, False)
    cpu.linear_cross_entropy(x, weight, bias, target, reduction="mean").backward()  # type: ignore[arg-type]
    assert shapes == [512, 512, 1]
