from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Generator

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.cpu.retention_step import retention_step as cpu
from userec.kernel.reference.retention_step import retention_step as reference
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "retention_step"]
BOTH = pytest.mark.parametrize("form", [reference, cpu], ids=["torch", "cpu"])


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


def test_the_reference_is_the_recurrence_number_by_number() -> None:
    generator = Generator().manual_seed(0)
    q, k, v = (torch.randn(3, 2, width, generator=generator, dtype=torch.float64) for width in (4, 4, 5))
    state = torch.randn(3, 2, 4, 5, generator=generator, dtype=torch.float64)
    decay = torch.tensor([0.9, 0.5], dtype=torch.float64)
    out, after = reference(q, k, v, decay, state)
    for user in range(3):
        for head in range(2):
            want = decay[head] * state[user, head] + torch.outer(k[user, head], v[user, head])
            torch.testing.assert_close(after[user, head], want)
            torch.testing.assert_close(out[user, head], q[user, head] @ want)


@BOTH
def test_a_state_stays_in_float32_and_is_not_changed_in_place(form: Callable[..., Any]) -> None:
    state = torch.ones(2, 1, 4, 4)
    ones = torch.ones(2, 1, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, after = form(ones, ones, ones, torch.tensor([1 - 2**-12]), state)
    assert (out.dtype, after.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(after, torch.full_like(state, 2 - 2**-12))
    assert torch.equal(state, torch.ones_like(state))


@BOTH
def test_what_does_not_fit_is_told_in_one_line(form: Callable[..., Any]) -> None:
    q, state = torch.zeros(2, 1, 4), torch.zeros(2, 1, 4, 4)
    with pytest.raises(UserError, match=r"state is \(1, 1, 4, 4\), but q .* want \(2, 1, 4, 4\)"):
        form(q, q, q, torch.ones(1), state[:1])
    with pytest.raises(UserError, match=r"v is \(1, 1, 4\)"):
        form(q, q, q[:1], torch.ones(1), state)
    with pytest.raises(UserError, match="decay gets no gradient"):
        form(q, q, q, torch.ones(1, requires_grad=True), state)
