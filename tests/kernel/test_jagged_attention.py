from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.contract import No, Request
from userec.kernel.cpu import jagged_attention as cpu
from userec.kernel.jagged import offsets_of
from userec.kernel.reference import jagged_attention as reference
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "jagged_attention"]
FORMS = {"reference": reference.jagged_attention, "cpu": cpu.jagged_attention}
forms = pytest.mark.parametrize("attend", FORMS.values(), ids=FORMS)


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


def tensors(total: int, dtype: torch.dtype = torch.float64, wide: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(total, 2, width, generator=generator, dtype=torch.float64).to(dtype) for width in (4, 4, wide)]


def naive(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], causal: bool) -> Tensor:
    out = torch.zeros_like(v)
    start = 0
    for length in lengths:
        for i in range(start, start + length):
            seen = range(start, i + 1 if causal else start + length)
            for h in range(q.shape[1]):
                weights = [math.exp(float(q[i, h] @ k[j, h]) / math.sqrt(q.shape[2])) for j in seen]
                out[i, h] = sum(w * v[j, h] for w, j in zip(weights, seen, strict=True)) / sum(weights)
        start += length
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(5, 0, 1, 3), (5, 5), (0, 0), ()], ids=str)
def test_the_reference_is_the_loop_one_would_write(causal: bool, lengths: tuple[int, ...]) -> None:
    q, k, v = tensors(sum(lengths), wide=3)
    out = reference.jagged_attention(q, k, v, offsets_of(lengths), max_len=max(lengths, default=0), causal=causal)
    torch.testing.assert_close(out, naive(q, k, v, lengths, causal))


@forms
def test_an_event_alone_sees_itself(attend: Callable[..., Tensor]) -> None:
    q, k, v = tensors(3)
    for causal in (True, False):
        torch.testing.assert_close(attend(q, k, v, offsets_of((1, 0, 1, 1)), max_len=1, causal=causal), v)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", [(5, 5), (5, 6, 0)], ids=str)
def test_views_of_one_projection_are_read_and_get_their_gradients_in_place(lengths: tuple[int, ...], causal: bool) -> None:
    total = sum(lengths)
    found = []
    for attend in FORMS.values():
        x = torch.randn(total, 3, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
        out = attend(*x.unbind(1), offsets_of(lengths), max_len=max(lengths), causal=causal)
        upstream = torch.randn(4, 2, total, generator=torch.Generator().manual_seed(2), dtype=torch.float64).permute(2, 1, 0)
        found.append((out, *torch.autograd.grad(out, x, upstream)))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "arrange", [lambda x: x.mT.contiguous().mT, lambda x: x[:1].expand_as(x)], ids=["transposed", "expanded"]
)
def test_full_rows_are_read_in_any_layout(arrange: Callable[[Tensor], Tensor]) -> None:
    q, k, v = map(arrange, tensors(10))
    want = reference.jagged_attention(q, k, v, offsets_of((5, 5)), max_len=5, causal=True)
    torch.testing.assert_close(cpu.jagged_attention(q, k, v, offsets_of((5, 5)), max_len=5, causal=True), want)


@forms
def test_mixed_dtypes_give_the_widest(attend: Callable[..., Tensor]) -> None:
    q, k, v = (x.to(dtype) for x, dtype in zip(tensors(9), (torch.float32, torch.bfloat16, torch.bfloat16), strict=True))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    want = reference.jagged_attention(q.double(), k.double(), v.double(), offsets_of((4, 5)), max_len=5, causal=True)
    out = attend(q, k, v, offsets_of((4, 5)), max_len=5, causal=True)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6)
    assert [x.dtype for x in torch.autograd.grad(out.sum(), leaves)] == [torch.float32, torch.bfloat16, torch.bfloat16]
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            attend(q, k, v, offsets_of((4, 5)), max_len=5, causal=True).double(), want, rtol=2e-2, atol=2e-2
        )


@forms
@pytest.mark.parametrize(
    ("of_k", "of_v"), [((9, 2, 8), (9, 2, 4)), ((9, 2, 4), (8, 2, 4)), ((9, 2, 4), (9, 1, 4)), ((9, 8), (9, 8))]
)
def test_shapes_that_do_not_fit_are_told(attend: Callable[..., Tensor], of_k: tuple[int, ...], of_v: tuple[int, ...]) -> None:
    q, k, v = torch.zeros(9, 2, 4), torch.zeros(of_k), torch.zeros(of_v)
    with pytest.raises(
        UserError, match=r"jagged_attention: q and k must be \[S, H, D\] and v \[S, H, Dv\], not q \[9, 2, 4\], k "
    ):
        attend(q, k, v, offsets_of((4, 5)), max_len=5, causal=True)


def test_the_reference_drops_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q, v = torch.zeros(400, 1, 2), torch.ones(400, 1, 2)
    out = reference.jagged_attention(q, q, v, offsets_of((200, 200)), max_len=200, causal=False, dropout_p=0.5)
    assert abs(float(out.mean()) - 1) < 0.05
    assert float(out.std()) > 0


def test_flash_attention_has_no_dropout_and_says_so() -> None:
    kernel = next(kernel for kernel in KERNELS if kernel.provider == "cpu")
    assert kernel.supports(Request("jagged_attention", flags=frozenset({"dropout_p"}))) == No(
        "flash attention on a CPU has no dropout"
    )
    assert kernel.supports(Request("jagged_attention", "cuda")) == No("device is cuda")
    q, k, v = tensors(5)
    with pytest.raises(UserError, match="no dropout"):
        cpu.jagged_attention(q, k, v, offsets_of((5,)), max_len=5, causal=True, dropout_p=0.1)
