"""Planted faults of kernels: each goes red in the check that is meant for it, and its unfaulted twin passes them all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import count, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing._internal.optests.generate_tests import OpCheckError

from userec.errors import UserError
from userec.kernel.contract import Case, Kernel, No, Request, Yes
from userec.kernel.jagged import EDGES, offsets_of, pad, unpad
from userec.testing.checks import checks_for

COUNTER = count()


def running(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    """y_s = gain_u times the sum of u's x up to s: x [S, D], gain [B], offsets [B + 1] -> [S, D]."""
    return unpad(pad(x, offsets, max_len).cumsum(1) * gain[:, None, None], offsets, len(x))


def arguments(lengths: tuple[int, ...], generator: torch.Generator) -> dict[str, Any]:
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    offsets = offsets_of(lengths)
    return {"x": draw(sum(lengths), 4), "gain": draw(len(lengths)), "offsets": offsets, "max_len": max(lengths, default=0)}


def cases() -> Iterable[Case]:
    for name in ("even", "edges", "empty", "nobody"):
        yield Case(name, partial(arguments, EDGES[name]), event=("x",), user=("gain",))


REFERENCE = Kernel("running", "torch", 0, lambda: running, reference=True, cases=cases)


def by_user(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    """The same user by user: the twin of every fault."""
    bounds = offsets.tolist()
    wide = x.float() if x.dtype == torch.bfloat16 else x
    parts = [wide[start:stop].cumsum(0) for start, stop in pairwise(bounds)]
    return torch.cat([x[:0], *((gain[user] * part).to(x.dtype) for user, part in enumerate(parts))])


def starts_early(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    """Off by one: the first event of a user adds the last one of the user before."""
    bounds = offsets.tolist()
    parts = [x[max(start - 1, 0) : stop].cumsum(0)[min(start, 1) :] for start, stop in pairwise(bounds)]
    return torch.cat([x[:0], *(gain[user] * part for user, part in enumerate(parts))])


def peeks(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    """Right values, but made with the next user's: they count nothing, unless they are no numbers."""
    return by_user(x, gain, offsets, max_len=max_len) + 0 * x.sum()


def no_gradient_of_gain(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    return by_user(x, gain.detach(), offsets, max_len=max_len)


def one_wrong_value(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    out = by_user(x, gain, offsets, max_len=max_len)
    return out + torch.cat([out.new_ones(1), out.new_zeros(out.numel())])[: out.numel()].view(out.shape) * 1e-3


def twice_as_far(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    """Within the tolerance of bfloat16, but more than twice as far off as the reference is."""
    out = by_user(x, gain, offsets, max_len=max_len)
    return out * 1.008 if x.dtype == torch.bfloat16 else out


def not_numbers(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    return by_user(x, gain, offsets, max_len=max_len) * torch.nan


def flat(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    return by_user(x, gain, offsets, max_len=max_len).flatten()


def two_results(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> tuple[Tensor, Tensor]:
    return by_user(x, gain, offsets, max_len=max_len), gain


def ignores_strides(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    packed = torch.empty(x.shape).stride()
    return by_user(x.as_strided(x.shape, packed), gain, offsets, max_len=max_len)


class _PackedUpstream(torch.autograd.Function):
    """The identity; its backward reads the upstream gradient's memory as if it were packed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Tensor:
        memory = upstream.new_empty(0).set_(upstream.untyped_storage())[: upstream.numel()]
        found = upstream.new_zeros(upstream.numel())
        found[: len(memory)] = memory
        return found.view(upstream.shape)


def ignores_strides_of_upstream(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    return _PackedUpstream.apply(by_user(x, gain, offsets, max_len=max_len))


def reads_beyond(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    """A masked tail: what lies behind the input is read and multiplied by nothing."""
    behind = x.detach().as_strided((1, x.shape[1]), (x.shape[1], 1), x.storage_offset() + x.numel())
    return by_user(x, gain, offsets, max_len=max_len) + 0 * behind


def writes_input(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    out = by_user(x, gain, offsets, max_len=max_len)
    x.detach().cumsum_(0)
    return out


def writes_beyond(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    gain.detach().as_strided((1,), (1,), gain.storage_offset() + gain.numel()).fill_(0)
    return by_user(x, gain, offsets, max_len=max_len)


def every_other_time(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    out = by_user(x, gain, offsets, max_len=max_len)
    return out * (1 + 1e-6 * (next(COUNTER) % 2))


def other_parameters(x: Tensor, weight: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    return by_user(x, weight, offsets, max_len=max_len)


def doubled_gradient(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
    out = running(x, gain, offsets, max_len=max_len)
    return 2 * out - out.detach()


def _sums(name: str, fake: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """`by_user` as a custom operator with a backward of its own and that fake."""

    @torch.library.custom_op(f"userec_faults::{name}", mutates_args=())
    def sums(x: Tensor, offsets: Tensor, back: bool) -> Tensor:
        bounds = offsets.tolist()
        parts = [x[start:stop] for start, stop in pairwise(bounds)]
        summed = [part.flip(0).cumsum(0).flip(0) if back else part.cumsum(0) for part in parts]
        return torch.cat([x[:0].clone(), *summed])

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.back = inputs[2]

    def gradients(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
        return sums(upstream, *ctx.saved_tensors, not ctx.back), None, None

    sums.register_fake(lambda x, offsets, back: fake(x))
    sums.register_autograd(gradients, setup_context=keep)

    def operator(x: Tensor, gain: Tensor, offsets: Tensor, *, max_len: int) -> Tensor:
        return sums(x, offsets, False) * gain.repeat_interleave(offsets.diff().long(), output_size=len(x))[:, None]

    return operator


GOOD_OPERATOR = _sums("good", torch.empty_like)
WRONG_FAKE = _sums("wrong_fake", lambda x: x.new_empty(x.shape[0], 1))


def faulty(fn: Callable[..., Any] = by_user, **about: Any) -> Kernel:
    return replace(Kernel("running", "faulty", 60, lambda: fn), **about)


def only_with_facts(request: Request) -> Yes | No:
    """Serves real calls, but says no to a bare op and device."""
    return Yes() if "gain" in request.flags else No("needs a gain")


def only_bfloat16(request: Request) -> Yes | No:
    return Yes() if request.dtype == "bfloat16" else No("bfloat16 alone")


def capricious(request: Request) -> No:
    return No(str(next(COUNTER)))


FAULTS: list[tuple[list[Kernel], str, str]] = [
    ([faulty()], "op", "no reference"),
    ([replace(REFERENCE, cases=lambda: ())], "op", "running/torch: the reference brings no cases"),
    ([replace(REFERENCE, cases=lambda: [*cases(), *cases()])], "op", "two cases have one name"),
    ([REFERENCE, faulty(), faulty()], "op", "twice by faulty"),
    ([REFERENCE, faulty(supports=capricious)], "supports", "it is not pure"),
    ([REFERENCE, faulty(supports=lambda r: True)], "supports", "neither Yes nor No"),
    ([REFERENCE, faulty(supports=lambda r: No(""))], "supports", "running/faulty: supports says No without a reason"),
    (
        [replace(REFERENCE, supports=lambda r: No("not today") if r.dtype == "bfloat16" else Yes())],
        "supports",
        "the reference refuses bfloat16 on the CPU",
    ),
    (
        [REFERENCE, faulty(supports=lambda r: No(" "))],
        "refused-faulty",
        "running/faulty: it refuses case 'even' without a reason",
    ),
    (
        [REFERENCE, faulty(other_parameters)],
        "signature",
        r"running/faulty: takes \(x, weight, offsets, max_len\), the reference \(x, gain, offsets, max_len\)",
    ),
    (
        [REFERENCE, faulty(tolerance={"float32": 2e-5})],
        "values-faulty",
        "running/faulty: a tolerance of 2e-05 in float32 is above the ceiling",
    ),
    ([REFERENCE, faulty(starts_early)], "values-faulty", "running/faulty in float64, case 'even': result 0: relative error"),
    ([REFERENCE, faulty(no_gradient_of_gain)], "values-faulty", "case 'even': gradient of gain: relative error"),
    (
        [REFERENCE, faulty(twice_as_far)],
        "values-faulty",
        "running/faulty in bfloat16, case 'even': result 0: relative error [89].*e-03, allowed",
    ),
    (
        [REFERENCE, faulty(one_wrong_value, tolerance={"float32": 1e-5})],
        "values-faulty",
        "in float32, case 'even': result 0: (relative error|a value errs)",
    ),
    ([REFERENCE, faulty(not_numbers)], "values-faulty", "result 0 has values that are no numbers"),
    ([REFERENCE, faulty(flat)], "values-faulty", r"result 0: shape \(60,\), the reference has \(15, 4\)"),
    ([REFERENCE, faulty(two_results)], "values-faulty", "running/faulty: 2 results, the case 'even' says 1"),
    (
        [REFERENCE, faulty(starts_early, supports=only_with_facts)],
        "values-faulty",
        "running/faulty in float64, case 'even': result 0: relative error",
    ),
    (
        [REFERENCE, faulty(starts_early, tolerance={"bfloat16": 1e-2}, supports=only_bfloat16)],
        "users-faulty",
        "case 'even': result 0 of user 1 alone: ",
    ),
    ([REFERENCE, faulty(ignores_strides)], "layouts-faulty", "case 'even' with transposed inputs: result 0: "),
    (
        [REFERENCE, faulty(ignores_strides_of_upstream)],
        "layouts-faulty",
        "case 'even' with (transposed|sliced|expanded) inputs: gradient of x: ",
    ),
    ([REFERENCE, faulty(reads_beyond)], "guards-faulty", "case 'even' between guards: result 0 has values that are no numbers"),
    ([REFERENCE, faulty(writes_input)], "guards-faulty", "case 'even': x or what lies about it was written"),
    ([REFERENCE, faulty(writes_beyond)], "guards-faulty", "case 'even': gain or what lies about it was written"),
    ([REFERENCE, faulty(starts_early)], "users-faulty", "case 'even': result 0 of user 1 alone: "),
    (
        [REFERENCE, faulty(peeks)],
        "users-faulty",
        "result 0 of user 0 beside a user of NaN has values that are no numbers",
    ),
    ([REFERENCE, faulty(every_other_time)], "bits-faulty", "case 'even': result 0 differs in a second call: deterministic"),
    ([REFERENCE, faulty(WRONG_FAKE)], "opcheck-faulty", "userec_faults.wrong_fake.*[Ss]hape"),
    ([replace(REFERENCE, load=lambda: doubled_gradient)], "gradcheck-torch", "running/torch, case 'even': gradcheck"),
]
TWINS = {
    "plain": [REFERENCE, faulty()],
    "operator": [REFERENCE, faulty(GOOD_OPERATOR, tolerance={"float64": 1e-12, "float32": 1e-5})],
    "refuses": [REFERENCE, faulty(supports=lambda r: No("no such device"))],
    "not deterministic": [REFERENCE, faulty(every_other_time, deterministic=False, tolerance={"float32": 1e-5})],
}


@pytest.mark.parametrize(
    "check",
    [pytest.param(check, id=f"{name}-{check.name}") for name, twin in TWINS.items() for check in checks_for("kernels", twin)],
)
def test_the_unfaulted_twins_pass(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(("kernels", "check", "words"), FAULTS, ids=[f"{i}-{fault[1]}" for i, fault in enumerate(FAULTS)])
def test_planted_fault(kernels: list[Kernel], check: str, words: str) -> None:
    found = next(one for one in checks_for("kernels", kernels) if one.name.removesuffix("-cpu") == check)
    with pytest.raises((AssertionError, UserError, OpCheckError)) as caught:
        found()
    assert re.search(words, " ".join(str(caught.value).split())), str(caught.value)


def test_every_check_has_a_planted_fault() -> None:
    names = {check.name.split("-")[0] for twin in TWINS.values() for check in checks_for("kernels", twin)}
    assert names == {check.split("-")[0] for _, check, _ in FAULTS}


def test_settings_that_are_none_are_told() -> None:
    with pytest.raises(AssertionError, match="settings of kernel checks are cases, providers, not provider"):
        checks_for("kernels", TWINS["plain"], settings={"provider": "torch"})
