from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.cpu import retention as cpu
from userec.kernel.cpu.retention_step import retention_step as cpu_step
from userec.kernel.jagged import offsets_of
from userec.kernel.reference.retention import retention as reference
from userec.kernel.reference.retention_step import retention_step as reference_step
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "retention"]
FORMS = {"torch": (reference, reference_step), "cpu": (cpu.retention, cpu_step)}
BOTH = pytest.mark.parametrize("form", [reference, cpu.retention], ids=list(FORMS))
DECAY = torch.tensor([1 - 1 / 32, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


def inputs(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k [S, 2, 3], v [S, 2, 5], state [B, 2, 3, 5]."""
    total = sum(lengths)
    return (
        draw(total, 2, 3, seed=seed),
        draw(total, 2, 3, seed=seed + 1),
        draw(total, 2, 5, seed=seed),
        draw(len(lengths), 2, 3, 5),
    )


def walk(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence of one user's q, k, v [L, H, .] from state [H, D, Dv], event by event."""
    out = []
    for now_q, now_k, now_v in zip(q, k, v, strict=True):
        state = decay[:, None, None] * state + torch.einsum("hd,he->hde", now_k, now_v)
        out.append(torch.einsum("hd,hde->he", now_q, state))
    return torch.stack(out) if out else v.new_zeros(v.shape), state


def test_the_reference_is_the_recurrence() -> None:
    lengths = [4, 0, 1, 7]
    q, k, v, state = inputs(lengths)
    offsets = offsets_of(lengths)
    out, after = reference(q, k, v, DECAY, offsets, state, max_len=7)
    for user, (start, stop) in enumerate(offsets.unfold(0, 2, 1).tolist()):
        want = walk(q[start:stop], k[start:stop], v[start:stop], DECAY, state[user])
        torch.testing.assert_close((out[start:stop], after[user]), want, rtol=1e-12, atol=1e-12)


def graded(results: tuple[Tensor, Tensor], tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The results and their gradients with respect to `tensors`, weighted so that no two values count alike."""
    price = sum((x * torch.linspace(0.5, 2, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in results)
    return *(x.detach() for x in results), *torch.autograd.grad(price, tensors, materialize_grads=True)


def in_parts(form: Callable[..., Any], lengths: list[int], cuts: list[tuple[int, int]], tensors: tuple[Tensor, ...]) -> Any:
    """Three calls: of each user the events before his first cut, between his cuts, after his second; states carried."""
    q, k, v, state = tensors
    starts = offsets_of(lengths).tolist()
    bounds = [
        (start, start + low, start + high, stop) for start, (low, high), stop in zip(starts, cuts, starts[1:], strict=False)
    ]
    found, places = [], []
    for part in range(3):
        events = torch.tensor([at for user in bounds for at in range(*user[part : part + 2])], dtype=torch.int64)
        own = [user[part + 1] - user[part] for user in bounds]
        out, state = form(q[events], k[events], v[events], DECAY, offsets_of(own), state, max_len=max(own))
        found.append(out)
        places.append(events)
    return torch.cat(found)[torch.cat(places).argsort()], state


def step_by_step(step: Callable[..., Any], lengths: list[int], tensors: tuple[Tensor, ...]) -> Any:
    """Each user's events one after another; who has no more events takes no step."""
    q, k, v, state = tensors
    starts, states, found = offsets_of(lengths).tolist(), list(state.split(1)), []
    for user, length in enumerate(lengths):
        for at in range(starts[user], starts[user] + length):
            out, states[user] = step(q[at : at + 1], k[at : at + 1], v[at : at + 1], DECAY, states[user])
            found.append(out)
    return torch.cat(found) if found else v.new_zeros(v.shape), torch.cat(states)


@st.composite
def streams(draw_from: st.DrawFn) -> tuple[list[int], list[tuple[int, int]], int]:
    """Lengths of up to four users, two cuts of each, and the size of a chunk."""
    lengths = draw_from(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    cuts = []
    for length in lengths:
        low, high = sorted(draw_from(st.tuples(st.integers(0, length), st.integers(0, length))))
        cuts.append((low, high))
    return lengths, cuts, draw_from(st.integers(1, 5))


@pytest.mark.parametrize("provider", FORMS)
@settings(derandomize=True, deadline=None, max_examples=40)
@given(stream=streams())
def test_however_a_stream_is_cut_the_results_states_and_gradients_are_those_of_one_call(provider: str, stream: Any) -> None:
    form, step = FORMS[provider]
    lengths, cuts, size = stream
    tensors = tuple(x.requires_grad_() for x in inputs(lengths))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "CHUNK", size)
        whole = graded(form(*tensors[:3], DECAY, offsets_of(lengths), tensors[3], max_len=max(lengths)), tensors)
        parts = graded(in_parts(form, lengths, cuts, tensors), tensors)
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(graded(step_by_step(step, lengths, tensors), tensors), whole, rtol=1e-10, atol=1e-10)


@BOTH
def test_a_user_without_events_keeps_his_state_bit_for_bit(form: Callable[..., Any]) -> None:
    q, k, v, state = (x.float() for x in inputs([0, 70, 0, 3]))
    state[0] = 1e30
    _, after = form(q, k, v, DECAY.float(), offsets_of([0, 70, 0, 3]), state, max_len=70)
    assert torch.equal(after[[0, 2]], state[[0, 2]])
    assert not torch.equal(after[[1, 3]], state[[1, 3]])


@pytest.mark.parametrize(("provider", "decays"), [("torch", [1 - 1 / 512]), ("cpu", [1 - 1 / 512, 1 - 1e-7, 1e-3])])
def test_long_rows_stay_finite_and_right_in_float32(provider: str, decays: list[float]) -> None:
    length, heads, form = 4096, len(decays), FORMS[provider][0]
    q, k, v = (draw(length, heads, 4, seed=seed).float() for seed in range(3))
    decay, state = torch.tensor(decays), draw(1, heads, 4, 4).float()
    tensors = tuple(x.requires_grad_() for x in (q, k, v, state))
    found = graded(form(q, k, v, decay, offsets_of([length]), state, max_len=length), tensors)
    wide = tuple(x.detach().double().requires_grad_() for x in tensors)
    out, after = walk(*wide[:3], decay.double(), wide[3][0])
    for got, want in zip(found, graded((out, after[None]), wide), strict=True):
        assert got.isfinite().all()
        assert float((got.double() - want).norm()) <= 2e-6 * float(want.norm())


@BOTH
def test_mixed_dtypes_under_autocast_are_brought_to_one(form: Callable[..., Any]) -> None:
    lengths, offsets = [70, 0, 3], offsets_of([70, 0, 3])
    q, k, v, state = (x.float().requires_grad_() for x in inputs(lengths))
    want = graded(form(q, k, v.bfloat16().float(), DECAY, offsets, state, max_len=70), (q, k, state))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, after = form(q, k, v.bfloat16(), DECAY, offsets, state, max_len=70)
        assert (out.dtype, after.dtype) == (torch.float32, torch.float32)
        found = graded((out, after), (q, k, state))
    for got, exact in zip(found, want, strict=True):
        assert float((got - exact).norm()) <= 2e-2 * float(exact.norm())


@BOTH
def test_a_state_is_float32_where_the_rest_is_bfloat16(form: Callable[..., Any]) -> None:
    q, k, v, state = (x.bfloat16() for x in inputs([3, 1]))
    for brought in (None, state):
        out, after = form(q, k, v, DECAY, offsets_of([3, 1]), brought, max_len=3)
        assert (out.dtype, after.dtype) == (torch.bfloat16, torch.float32)


@BOTH
def test_what_does_not_fit_is_told_in_one_line(form: Callable[..., Any]) -> None:
    q, k, v, state = inputs([3, 1])
    call = partial(form, max_len=3)
    offsets = offsets_of([3, 1])
    with pytest.raises(UserError, match=r"retention: state is \(1, 2, 3, 5\), but q .* want \(2, 2, 3, 5\)"):
        call(q, k, v, DECAY, offsets, state[:1])
    with pytest.raises(UserError, match=r"retention: decay is \(1,\), but .* want \(2,\)"):
        call(q, k, v, DECAY[:1], offsets)
    with pytest.raises(UserError, match=r"retention: k is \(4, 2, 2\)"):
        call(q, k[..., :2], v, DECAY, offsets)
    with pytest.raises(UserError, match="retention: decay gets no gradient"):
        call(q, k, v, DECAY.clone().requires_grad_(), offsets)
