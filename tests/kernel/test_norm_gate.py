from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "norm_gate"]
FORMS = {kernel.provider: kernel.load() for kernel in KERNELS if not kernel.opt_in}


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.booleans(), st.booleans(), st.integers(0, 2**31))
def test_it_is_nn_layer_norm_times_the_gate(shape, weight, bias, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, gate = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    norm = torch.nn.LayerNorm(shape[-1], eps=1e-3, dtype=torch.float64)
    for y in norm.parameters():
        torch.nn.init.normal_(y, generator=generator)
    if not weight:
        torch.nn.init.ones_(norm.weight)
    if not bias:
        torch.nn.init.zeros_(norm.bias)
    want = norm(x) * gate
    for form in FORMS.values():
        got = form(x, gate, norm.weight if weight else None, norm.bias if bias else None, eps=1e-3)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_mixed_dtypes_under_autocast_give_the_wider(form) -> None:
    generator = torch.Generator().manual_seed(1)
    x, gate = (torch.randn(50, 16, generator=generator) for _ in range(2))
    want = torch.nn.functional.layer_norm(x.bfloat16().double(), (16,), eps=1e-6) * gate.double()
    with torch.autocast("cpu", torch.bfloat16):
        got = form(x.bfloat16(), gate, torch.ones(16))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"gate": torch.ones(2, 1)}, "gate"),
        ({"x": torch.ones(3), "gate": torch.ones(3)}, r"\[N, ..., D\]"),
        ({"weight": torch.ones(2)}, "weight is"),
        ({"bias": torch.ones(3, 1)}, "bias is"),
    ],
)
def test_bad_shapes_are_told(form, change, told) -> None:
    with pytest.raises(UserError, match=told):
        form(**{"x": torch.ones(2, 3), "gate": torch.ones(2, 3)} | change)


def test_the_cost_of_a_call_asks_for_no_optional_argument() -> None:
    kernel = next(kernel for kernel in KERNELS if kernel.reference)
    given = {"x": torch.zeros(3, 4), "gate": torch.zeros(3, 4)}
    assert kernel.cost(given) == kernel.cost({**given, "weight": None, "bias": None})
