from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import profile

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.cpu import linear_cross_entropy as linear
from userec.kernel.cpu import sampled_cross_entropy as cpu
from userec.kernel.reference import sampled_cross_entropy as reference
from userec.testing import contract
from userec.testing.checks_kernel_calls import check_opcheck

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "sampled_cross_entropy"]
BOTH = pytest.mark.parametrize("form", [reference.sampled_cross_entropy, cpu.sampled_cross_entropy], ids=["torch", "cpu"])
SHARED = pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean"])


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


@pytest.mark.parametrize("name", ["mean, shared, no bias", "none, own", "none, shared, few classes", "none, own, few classes"])
def test_every_way_passes_opcheck(name: str) -> None:
    check_opcheck(KERNELS, "cpu", "cpu", [case for case in reference.cases() if case.name == name])


def problem(rows: int = 7, classes: int = 60, count: int = 5, shared: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(rows)
    shapes = {"x": (rows, 4), "weight": (classes, 4), "bias": (classes,)}
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    target = torch.randint(max(classes, 1), (rows,), generator=generator)
    negatives = torch.randint(max(classes, 1), (count,) if shared else (rows, count), generator=generator)
    return {name: x.requires_grad_() for name, x in drawn.items()} | {"target": target, "negatives": negatives}


def gradients(loss: Tensor, call: dict[str, Any]) -> list[Tensor]:
    return list(torch.autograd.grad(loss.sum(), [call[name] for name in ("x", "weight", "bias")]))


@SHARED
def test_the_reference_is_torch_s_cross_entropy_of_each_row_s_candidates(shared: bool) -> None:
    call = problem(shared=shared)
    log_q = torch.randn(7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    log_q[2, 3] = log_q[4, 1] = torch.inf
    x, weight, bias = (call[name].detach() for name in ("x", "weight", "bias"))
    want = []
    for row, answer in enumerate(call["target"].tolist()):
        ids = [answer, *call["negatives"].expand(7, -1)[row].tolist()]
        logits = [float(x[row] @ weight[i] + bias[i] - log_q[row, c]) for c, i in enumerate(ids) if log_q[row, c] < torch.inf]
        want.append(F.cross_entropy(torch.tensor([logits], dtype=torch.float64), torch.tensor([0])))
    torch.testing.assert_close(reference.sampled_cross_entropy(**call, log_q=log_q), torch.stack(want), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        reference.sampled_cross_entropy(**call, log_q=log_q, reduction="mean"), torch.stack(want).mean(), rtol=1e-12, atol=1e-12
    )


@BOTH
@REDUCTIONS
@pytest.mark.parametrize("classes", [9, 200])
def test_all_other_classes_as_negatives_are_the_full_cross_entropy(form, reduction: str, classes: int) -> None:
    call = problem(classes=classes)
    call["negatives"] = torch.stack([torch.arange(classes)[torch.arange(classes) != own] for own in call["target"]])
    ours = form(**call, reduction=reduction)
    full = {name: call[name] for name in ("x", "weight", "bias", "target")}
    theirs = linear.linear_cross_entropy(**full, reduction=reduction)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)
    for got, want in zip(gradients(ours, call), gradients(theirs, call), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@BOTH
@SHARED
def test_a_uniform_log_q_corrects_nothing(form, shared: bool) -> None:
    call = problem(shared=shared)
    plain, uniform = form(**call), form(**call, log_q=torch.full((7, 6), -3.7, dtype=torch.float64))
    torch.testing.assert_close(plain, uniform, rtol=1e-12, atol=1e-12)
    for got, want in zip(gradients(plain, call), gradients(uniform, call), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@BOTH
@SHARED
@pytest.mark.parametrize("classes", [9, 60])
def test_infinity_voids_a_candidate(form, shared: bool, classes: int) -> None:
    call = problem(classes=classes, shared=shared)
    log_q = torch.zeros(7, 6, dtype=torch.float64)
    log_q[:, 4:] = torch.inf
    ours = form(**call, log_q=log_q)
    call_less = call | {"negatives": call["negatives"][..., :3]}
    theirs = form(**call_less)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for got, want in zip(gradients(ours, call), gradients(theirs, call), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


@BOTH
@SHARED
def test_an_accidental_hit_counts_unless_log_q_voids_it(form, shared: bool) -> None:
    x, weight, target = torch.ones(1, 2), torch.ones(3, 2), torch.tensor([1])
    negatives = torch.tensor([1]) if shared else torch.tensor([[1]])
    assert float(form(x, weight, None, target, negatives)) == pytest.approx(math.log(2))
    assert float(form(x, weight, None, target, negatives, torch.tensor([[0.0, torch.inf]]))) == 0


@REDUCTIONS
@pytest.mark.parametrize("count", [1, 40])
def test_sorted_and_dense_candidates_cost_the_same_in_chunks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, reduction: str, count: int
) -> None:
    call = problem(rows=120, count=count)
    want = reference.sampled_cross_entropy(**call, reduction=reduction)
    expected = gradients(want, call)
    for dense, chunk in ((1000, 2**19), (0, 2**19), (0, 100), (0, 1)):
        monkeypatch.setattr(cpu, "DENSE", dense)
        monkeypatch.setattr(cpu, "CHUNK_CANDIDATES", chunk)
        got = cpu.sampled_cross_entropy(**call, reduction=reduction)
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)
        for one, other in zip(gradients(got, call), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("classes", [100, 5000])
def test_no_embedding_a_candidate_is_ever_held(classes: int) -> None:
    torch.manual_seed(3)
    x, weight = torch.randn(300, 64, requires_grad=True), torch.randn(classes, 64, requires_grad=True)
    negatives = torch.randint(classes, (300, 50))
    with profile(profile_memory=True) as seen:
        cpu.sampled_cross_entropy(x, weight, None, negatives[:, 0], negatives, reduction="mean").backward()
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert classes * 64 * 4 <= largest or classes == 100  # the profiler sees inside the op: the gradient of weight
    assert largest <= max(classes * 64 * 4, 51 * 300 * 8 * 2)


@SHARED
def test_a_second_derivative_of_the_mean_is_refused(shared: bool) -> None:
    call = problem(shared=shared)
    (first,) = torch.autograd.grad(cpu.sampled_cross_entropy(**call, reduction="mean"), call["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.square().sum().backward()


@SHARED
@REDUCTIONS
def test_it_runs_without_gradients_and_under_autocast(shared: bool, reduction: str) -> None:
    call = {name: x.detach().float() if x.is_floating_point() else x for name, x in problem(40, shared=shared).items()}
    with torch.no_grad():
        assert not cpu.sampled_cross_entropy(**call | {"x": call["x"].clone().requires_grad_()}).requires_grad
    low = call["x"].bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = cpu.sampled_cross_entropy(**call | {"x": low}, reduction=reduction)
        out.sum().backward()
    assert out.dtype == torch.float32
    exact = low.detach().float().requires_grad_()
    want = cpu.sampled_cross_entropy(**call | {"x": exact}, reduction=reduction)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(low.grad, torch.autograd.grad(want.sum(), exact)[0].bfloat16())


def test_it_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cpu.sampled_cross_entropy(**problem()).sum().backward()


@SHARED
@REDUCTIONS
def test_no_rows_of_no_classes_cost_nothing(shared: bool, reduction: str) -> None:
    call = problem(0, classes=0, count=0, shared=shared)
    loss = cpu.sampled_cross_entropy(**call, reduction=reduction)
    assert float(loss.detach().sum()) == 0
    assert [x.shape for x in gradients(loss, call)] == [(0, 4), (0, 4), (0,)]


@BOTH
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reduction": "sum"}, "sampled_cross_entropy: reduction is 'none' or 'mean', not 'sum'"),
        ({"target": torch.zeros(3).long()}, r"target has the shape \[3\]"),
        ({"negatives": torch.zeros(3, 4).long()}, r"negatives have the shape \[3, 4\]: shared \[K\], or a row's own \[2, K\]"),
        ({"log_q": torch.zeros(4)}, r"log_q has the shape \[4\], one for the answer and each negative would be \[2, 5\]"),
    ],
)
def test_what_does_not_fit_is_told(form, change: dict[str, Any], told: str) -> None:
    right = {"x": torch.zeros(2, 5), "weight": torch.zeros(3, 5), "bias": None}
    ids = {"target": torch.zeros(2).long(), "negatives": torch.zeros(2, 4).long()}
    with pytest.raises(UserError, match=told):
        form(**right | ids | change)


@SHARED
@pytest.mark.parametrize("wrong", [-100, 60])
@pytest.mark.parametrize("name", ["target", "negatives"])
def test_an_id_outside_weight_is_told(shared: bool, wrong: int, name: str) -> None:
    call = problem(shared=shared)
    call[name].view(-1)[3] = wrong
    with pytest.raises(UserError, match=f"{name} has ids outside the 60 rows of weight"):
        cpu.sampled_cross_entropy(**call)
