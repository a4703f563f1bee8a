from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.cpu import target_attention as cpu
from userec.kernel.reference import target_attention as reference
from userec.testing import Check, contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "target_attention"]
FORMS = {"torch": reference.target_attention, "cpu": cpu.target_attention}
Form = Callable[..., Tensor]


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check: Check) -> None:
    check()


@pytest.fixture(params=sorted(FORMS))
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


def walk(lists: list[list[int]], keep: int) -> set[int]:
    """The heads' lists in turn until `keep` unique events are found."""
    found: list[int] = []
    for turn in range(len(lists[0])):
        for listed in lists:
            if len(found) < keep and listed[turn] not in found:
                found.append(listed[turn])
    return set(found)


def oracle(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, allowed: Tensor, context: Tensor, keep: int | None) -> Tensor:
    """One (row, question, target, head) at a time, in float64, with Python's own sort and sums."""
    rows, heads, length, dim = k.shape
    questions, count = allowed.shape[1], q.shape[3]
    out = torch.zeros(rows, questions, count, heads, v.shape[-1] + context.shape[-1], dtype=torch.float64)
    q = q.expand(rows, questions, -1, -1, -1)
    for b, i, c in ((b, i, c) for b in range(rows) for i in range(questions) for c in range(count)):
        seen = [e for e in range(length) if allowed[b, i, e]]
        alphas = [
            {e: float(q[b, i, h, c].double() @ k[b, h, e].double()) / dim**0.5 + float(bias[b, h, i, e]) for e in seen}
            for h in range(heads)
        ]
        lists = [sorted(seen, key=lambda e, alpha=alpha: (-alpha[e], -e)) for alpha in alphas]  # type: ignore[misc]
        kept = sorted(walk(lists, len(seen) if keep is None else keep))
        for h, alpha in enumerate(alphas):
            size = [2.718281828459045 ** alpha[e] for e in kept]
            for e, one in zip(kept, size, strict=True):
                out[b, i, c, h] += one / sum(size) * torch.cat([v[b, h, e], context[b, i, e]]).double()
    return out


def inputs(shared: tuple[int, int] = (2, 3), length: int = 11, ties: bool = False) -> dict[str, Any]:
    torch.manual_seed(3)
    allowed = torch.rand(2, 3, length) < 0.7
    allowed[1, 1] = False
    q, k, bias = torch.randn(*shared, 2, 4, 16), torch.randn(2, 2, length, 16), torch.randn(2, 2, 3, length)
    if ties:
        q, k, bias = q.sign(), k.sign(), bias.sign()
    values = {"v": torch.randn(2, 2, length, 3), "context": torch.randn(2, 3, length, 5)}
    return {"q": q, "k": k, "bias": bias, "allowed": allowed, **values}


def weigh(form: Form, given: dict[str, Any], keep: int | None) -> Tensor:
    """[B, Q, C, H, L]: with the identity as context the result tells what each event weighs."""
    length = given["k"].shape[2]
    tell = torch.eye(length).expand(*given["allowed"].shape[:2], -1, -1)
    return form(**{**given, "v": given["v"][..., :0], "context": tell}, keep=keep)


@pytest.mark.parametrize("keep", [1, 3, 4, 10, 11, 50, None])
@pytest.mark.parametrize("shared", [(2, 3), (1, 1), (2, 1), (1, 3)])
def test_the_two_stages_are_the_loops(form: Form, keep: int | None, shared: tuple[int, int]) -> None:
    given = inputs(shared)
    torch.testing.assert_close(form(**given, keep=keep).double(), oracle(**given, keep=keep), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("keep", [1, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_where_alphas_tie_the_newer_event_is_kept(form: Form, keep: int, dtype: torch.dtype) -> None:
    """Alphas are whole quarters, exact in every dtype; all of them are equal in the second half of the trial."""
    for zero in (False, True):
        given = inputs(ties=True)
        given["context"] = given["context"].bfloat16().float()
        given["v"] = given["v"].bfloat16().float()
        if zero:
            given["q"], given["bias"] = torch.zeros_like(given["q"]), -torch.zeros_like(given["bias"])
        cast = {name: x.to(dtype) if x.is_floating_point() else x for name, x in given.items()}
        found = form(**cast, keep=keep).double()
        near = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found, oracle(**given, keep=keep), atol=near, rtol=near)


def test_minus_zero_ties_with_zero(form: Form) -> None:
    given = inputs()
    given["q"] = torch.zeros_like(given["q"])
    given["bias"] = torch.zeros_like(given["bias"])
    given["bias"][..., 6:] = -0.0
    given["allowed"][:] = True
    kept = weigh(form, given, 3)[..., 0, :] > 0
    assert torch.equal(kept, torch.arange(11).expand_as(kept) >= 8)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.data())
def test_the_union_is_the_walk_through_the_lists(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 9))
    ranks = data.draw(st.integers(1, length))
    keep = data.draw(st.integers(1, length))
    heads = data.draw(st.integers(1, 4))
    lists = [[data.draw(st.permutations(range(length)))[:ranks] for _ in range(heads)] for _ in range(2)]
    kept = reference.union_of_heads(torch.tensor(lists), keep, length)
    for row, one in enumerate(lists):
        assert set(kept[row].nonzero().flatten().tolist()) == walk(one, keep)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_numbers_with_their_places_sort_as_floats_do(seed: int, length: int, keep: int, coarse: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, length, generator=generator) * 10 ** float(torch.randn((), generator=generator) * 5)
    if coarse:
        scores = torch.randint(-1, 2, (3, length), generator=generator).float()
    scores[torch.rand(3, length, generator=generator) < 0.3] = -torch.inf
    found = cpu._best(scores + 0.0, min(keep, length))
    assert found.tolist() == reference.ranked(scores, min(keep, length)).tolist()


def test_padding_and_the_future_are_never_kept(form: Form) -> None:
    """Nor do they move anything: not by huge scores, nor in gradient."""
    given = inputs()
    kept = weigh(form, given, 4) > 0
    assert not kept[~given["allowed"][:, :, None, None].expand_as(kept)].any()
    assert torch.equal(kept[..., 0, :].sum(-1), given["allowed"].sum(-1, keepdim=True).clamp(max=4).expand(2, 3, 4))
    before = form(**given, keep=4)
    given["bias"] = given["bias"] + 1e4 * ~given["allowed"].unsqueeze(1)
    torch.testing.assert_close(form(**given, keep=4), before, atol=0, rtol=0)


@pytest.mark.parametrize("keep", [4, None])
def test_what_is_not_kept_gets_no_gradient_and_what_is_gets_some(form: Form, keep: int | None) -> None:
    given = inputs()
    kept = (weigh(form, given, keep) > 0).any(2)  # [B, Q, H, L]: by any target
    leaves = {name: given[name].clone().requires_grad_() for name in ("q", "k", "v", "bias", "context")}
    form(**{**given, **leaves}, keep=keep).square().sum().backward()
    gradient = {name: leaf.grad for name, leaf in leaves.items()}
    assert torch.equal(gradient["bias"] != 0, kept.transpose(1, 2))
    assert torch.equal((gradient["context"] != 0).any(-1), kept.any(2))
    for name in ("k", "v"):
        assert torch.equal((gradient[name] != 0).any(-1), kept.any(1))
    assert not gradient["q"][1, 1].any()  # of a question that sees nothing
    assert gradient["q"][0].any()


@pytest.mark.parametrize("cells", [1, 100, 500, 10_000])
@pytest.mark.parametrize("shared", [(2, 3), (1, 1), (2, 1)])
@pytest.mark.parametrize("keep", [4, None])
def test_chunks_of_rows_and_targets_equal_one_pass(
    cells: int, shared: tuple[int, int], keep: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def results() -> list[Tensor]:
        given = {name: x.requires_grad_() if x.is_floating_point() else x for name, x in inputs(shared).items()}
        out = cpu.target_attention(**given, keep=keep)
        return [out, *torch.autograd.grad(out.square().sum(), [x for x in given.values() if x.requires_grad])]

    whole = results()
    monkeypatch.setattr(cpu, "CELLS", cells)
    for one, other in zip(results(), whole, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_bfloat16_region_s_mixed_types_are_added_up_in_float32(form: Form) -> None:
    given = inputs()
    for name in ("q", "v"):
        given[name] = given[name].bfloat16()
    rounded = {name: x.float() if x.is_floating_point() else x for name, x in given.items()}
    found = form(**given, keep=4)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), oracle(**rounded, keep=4), atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("keep", [4, None])
def test_without_gradients_the_reference_holds_the_scores_of_some_targets(
    keep: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, sizes = inputs(), []
    whole = reference.target_attention(**given, keep=keep)
    attend = reference._attend
    monkeypatch.setattr(reference, "_attend", lambda q, *rest: (sizes.append(q.shape[3]), attend(q, *rest))[1])
    monkeypatch.setattr(reference, "CELLS", 3 * given["bias"].numel())
    with torch.no_grad():
        torch.testing.assert_close(reference.target_attention(**given, keep=keep), whole)
    assert sizes == [3, 1]
    reference.target_attention(**given, keep=keep)
    assert sizes == [3, 1, 4]


@pytest.mark.parametrize("keep", [4, None])
def test_autocast_changes_neither_what_is_kept_nor_its_weight(
    form: Form, keep: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "CELLS", 500)
    given = inputs(length=40)
    leaf = given["bias"].requires_grad_()
    plain = form(**given, keep=keep)
    (slope,) = torch.autograd.grad(plain.sum(), leaf)
    with torch.autocast("cpu", torch.bfloat16):
        found = form(**given, keep=keep)
    assert torch.equal(found, plain)
    assert torch.equal(torch.autograd.grad(found.sum(), leaf)[0], slope)


@pytest.mark.parametrize("keep", [4, None])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_number_that_is_none_does_not_leak_from_where_nothing_is_allowed(
    form: Form, keep: int | None, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "CELLS", 500)
    given = inputs()
    plain = form(**given, keep=keep)
    given["bias"] = given["bias"].masked_fill(~given["allowed"].unsqueeze(1), bad).requires_grad_()
    found = form(**given, keep=keep)
    assert torch.equal(found, plain)
    assert torch.autograd.grad(found.sum(), given["bias"])[0].isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"q": torch.zeros(2, 3, 3, 4, 16)}, "q cannot be of 2 rows"),
        ({"bias": torch.zeros(2, 3, 2, 11), "v": torch.zeros(2, 2, 3)}, "v, bias cannot be"),
        ({"context": torch.zeros(2, 11, 5)}, "context cannot be"),
        ({"keep": 0}, "keep 0 keeps no event"),
    ],
)
def test_what_does_not_fit_is_told(form: Form, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        form(**{**inputs(), "keep": 4, **wrong})
