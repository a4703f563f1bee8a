from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from userec.builtin.kernels import userec_kernels
from userec.kernel.contract import Kernel
from userec.kernel.cpu import attention as cpu
from userec.kernel.reference import attention as reference

KERNELS = {kernel.provider: kernel for kernel in userec_kernels() if kernel.op == "attention"}
LENGTHS = {"ragged": [5, 0, 1, 3], "full": [5, 5], "none": [0, 0]}


def tensors(rows: int, length: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, 2, length, 4, dtype=torch.float64, generator=generator).to(dtype) for _ in range(4)]


def within(kernel: Kernel, out: Tensor, expected: Tensor) -> None:
    """The relative error is at most what the kernel promises for the dtype of `out`."""
    tolerance = kernel.tolerance[str(out.dtype).removeprefix("torch.")]
    assert float((out.detach().double() - expected.detach()).norm()) <= tolerance * float(expected.detach().norm())


def naive(q: Tensor, k: Tensor, v: Tensor, causal: bool, mask: Tensor) -> Tensor:
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                seen = [j for j in range(q.shape[2]) if mask[b, j] and (j <= i or not causal)]
                if mask[b, i] and seen:
                    weights = [math.exp(float(q[b, h, i] @ k[b, h, j]) / math.sqrt(q.shape[3])) for j in seen]
                    out[b, h, i] = sum(w * v[b, h, j] for w, j in zip(weights, seen, strict=True)) / sum(weights)
    return out


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_the_reference_is_the_loop_one_would_write(causal: bool, lengths: list[int]) -> None:
    q, k, v, _ = tensors(len(lengths), 5, torch.float64)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    torch.testing.assert_close(reference.attention(q, k, v, causal=causal, mask=mask), naive(q, k, v, causal, mask))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mask", [*LENGTHS, "holes", None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_each_form_keeps_its_tolerance_of_the_float64_reference(
    causal: bool, mask: str | None, dtype: torch.dtype, kernel: Kernel
) -> None:
    seen: Tensor | None = None
    if mask == "holes":
        seen = torch.tensor([[False, True, False, True, True], [True, False, True, False, False]])
    elif mask is not None:
        seen = torch.arange(5) < torch.tensor(LENGTHS[mask])[:, None]
    q, k, v, upstream = tensors(2 if seen is None else len(seen), 5, dtype)
    ours = [t.clone().requires_grad_() for t in (q, k, v)]
    theirs = [t.double().requires_grad_() for t in (q, k, v)]
    out = kernel.load()(*ours, causal=causal, mask=seen)
    expected = reference.attention(*theirs, causal=causal, mask=seen)
    within(kernel, out, expected)
    gradients = torch.autograd.grad(out, ours, upstream)
    wanted = torch.autograd.grad(expected, theirs, upstream.double())
    for gradient, want in zip(gradients, wanted, strict=True):
        within(kernel, gradient, want)


def test_a_padded_query_and_an_empty_row_get_zeros() -> None:
    q, k, v, _ = tensors(2, 3, torch.float32)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    for attend in (reference.attention, cpu.attention):
        for causal in (True, False):
            out = attend(q, k, v, causal=causal, mask=mask)
            assert out[0, :, 1:].abs().sum() == 0
            assert out[1].abs().sum() == 0
            torch.testing.assert_close(out[0, :, 0], v[0, :, 0])


@pytest.mark.parametrize("shape", [(0, 2, 3, 4), (2, 2, 0, 4)])
def test_an_empty_batch_and_an_empty_length_pass(shape: tuple[int, ...]) -> None:
    q = torch.zeros(shape)
    for attend in (reference.attention, cpu.attention):
        assert attend(q, q, q, causal=True, mask=torch.zeros(shape[0], shape[2], dtype=torch.bool)).shape == shape


def test_the_reference_passes_gradcheck() -> None:
    q, k, v, _ = (t.requires_grad_() for t in tensors(2, 3, torch.float64))
    mask = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.autograd.gradcheck(lambda *qkv: reference.attention(*qkv, causal=True, mask=mask), (q, k, v))


def test_the_reference_drops_weights_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    q = torch.zeros(1, 1, 400, 2)
    v = torch.ones(1, 1, 400, 2)
    out = reference.attention(q, q, v, causal=False, dropout_p=0.5)
    assert abs(float(out.mean()) - 1) < 0.05
    assert float(out.std()) > 0
