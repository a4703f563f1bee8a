from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.cpu import hstu_attention as cpu
from userec.kernel.reference import hstu_attention as reference
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "hstu_attention"]
BOTH = pytest.mark.parametrize("form", [reference.hstu_attention, cpu.hstu_attention], ids=["torch", "cpu"])
Form = Callable[..., Tensor]


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


def call() -> dict[str, Any]:
    """A case of users of several lengths, both tables, in float32."""
    case = next(iter(reference.cases()))
    arguments = case.make(torch.Generator().manual_seed(2))
    return {name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in arguments.items()}


@BOTH
@pytest.mark.parametrize("autocast", [False, True])
def test_narrow_queries_and_keys_meet_wide_values(form: Form, autocast: bool) -> None:
    given = call()
    for name in ("q", "k"):
        given[name] = given[name].bfloat16()
    leaves = {name: given[name].requires_grad_() for name in ("q", "k", "v", "position_table", "time_table")}
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = form(**given)
        found = torch.autograd.grad(out.float().square().sum(), list(leaves.values()))
    want = reference.hstu_attention(**{**given, **exact})
    tolerance = 2e-2 if autocast else 1e-4
    torch.testing.assert_close(out.double(), want, rtol=tolerance, atol=tolerance)
    for name, one, other in zip(leaves, found, torch.autograd.grad(want.square().sum(), list(exact.values())), strict=True):
        assert one.dtype == leaves[name].dtype
        assert float((one.double() - other).norm() / other.norm()) < 2e-2


@BOTH
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"k": torch.zeros(3, 2, 16)}, r"q and k must be \[S, H, D\]"),
        ({"v": torch.zeros(3, 2, 8)}, r"q and k must be \[S, H, D\] and v \[S, H, Dv\]"),
        ({"position_table": torch.zeros(40, 3)}, r"position_table is \[40, 3\]: give a row or more of 1 or 2 heads"),
        ({"time_table": torch.zeros(12)}, r"time_table is \[12\]"),
        ({"time": None}, "time_table needs time, asked and edges"),
        ({"asked": torch.zeros(3).long()}, r"asked is \[3\]"),
        ({"edges": torch.arange(12)}, r"edges is \[12\], but .* want \[11\]"),
    ],
)
def test_what_does_not_fit_is_told(form: Form, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        form(**{**call(), **wrong})
