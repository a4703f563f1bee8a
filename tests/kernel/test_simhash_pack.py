from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "simhash_pack"]
FORMS = {kernel.provider: kernel.load() for kernel in KERNELS if not kernel.opt_in}


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 5), st.integers(1, 4), st.sampled_from([1, 31, 63, 64, 65, 128, 129]), st.integers(0, 2**31))
def test_each_bit_is_the_sign_of_a_projection(rows, width, bits, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, planes = (torch.randint(-2, 3, shape, generator=generator).float() for shape in ((rows, width), (width, bits)))
    signs = [[sum(a * b for a, b in zip(row, column, strict=True)) > 0 for column in planes.T.tolist()] for row in x.tolist()]
    want = [sum(bit << place for place, bit in enumerate(row)) for row in signs]
    for form in FORMS.values():
        words = form(x, planes)
        assert words.dtype == torch.int64
        assert words.shape == (rows, -(-bits // 64))
        got = [sum((word % 2**64) << 64 * place for place, word in enumerate(row)) for row in words.tolist()]
        assert got == want


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_no_gradient_passes_and_mixed_dtypes_meet(form) -> None:
    x = torch.tensor([[1.0, -1.0]], requires_grad=True)
    words = form(x, torch.tensor([[1.0, 1.0, -1.0], [0.0, 1.0, 0.0]], dtype=torch.bfloat16))
    assert not words.requires_grad
    assert words.tolist() == [[0b001]]  # the second is a tie


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_autocast_changes_no_code(form) -> None:
    generator = torch.Generator().manual_seed(0)
    x, planes = torch.randn(500, 32, generator=generator), torch.randn(32, 64, generator=generator)
    plain = form(x, planes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(form(x, planes), plain)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_bad_shapes_are_told(form) -> None:
    with pytest.raises(UserError, match=r"give \[N, D\] and \[D, m\]"):
        form(torch.ones(2, 3), torch.ones(4, 64))
    with pytest.raises(UserError, match=r"give \[N, D\] and \[D, m\]"):
        form(torch.ones(2, 3, 4), torch.ones(4, 64))
