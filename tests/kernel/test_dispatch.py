from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.contract import Kernel, No, Request, Yes
from userec.kernel.dispatch import CHOICE, Kernels, request_of


def plain(x: Tensor, *, flip: bool = False) -> Tensor:
    return -x if flip else x


def double(x: Tensor, *, flip: bool = False) -> Tensor:
    return 2 * plain(x, flip=flip)


def only_flips(request: Request) -> Yes | No:
    return Yes() if "flip" in request.flags else No("only flips")


REFERENCE = Kernel("same", "torch", 0, lambda: plain, reference=True)
FLIPPER = Kernel("same", "flipper", 50, lambda: double, only_flips)
LONELY = Kernel("lonely", "far", 50, lambda: double)


def test_the_highest_priority_that_says_yes_serves_and_the_reasons_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CHOICE, raising=False)
    kernels = Kernels([REFERENCE, FLIPPER, Kernel("same", "slow", -1, lambda: plain)])
    same = kernels.op("same")
    x = torch.ones(2)
    assert same(x).tolist() == [1, 1]
    assert same(x, flip=True).tolist() == [-2, -2]
    plainly = kernels.resolve(request_of("same", {"x": x}))
    assert plainly.kernel is REFERENCE
    assert plainly.reasons == {
        "flipper": "no: only flips",
        "torch": "priority 0",
        "slow": "yes, but priority -1 is below torch's",
    }
    chosen = kernels.chosen()
    assert chosen["same"]["provider"] == "torch, flipper"
    assert chosen["same"]["reasons"]["flipper"] == "no: only flips; priority 50"


def test_a_request_is_resolved_and_loaded_once() -> None:
    asked: list[str] = []

    def supports(request: Request) -> Yes:
        asked.append("supports")
        return Yes()

    def load() -> object:
        asked.append("load")
        return plain

    kernels = Kernels([Kernel("same", "torch", 0, load, supports, reference=True)])  # type: ignore[arg-type]
    assert asked == []
    same = kernels.op("same")  # reads the reference's signature
    asked.clear()
    for _ in range(3):
        same(torch.ones(5))
    assert asked == ["supports", "load"]


def test_a_request_holds_facts_not_lengths() -> None:
    weight = torch.zeros(7, 4, requires_grad=True)
    short = request_of("op", {"x": torch.zeros(3, 4), "weight": weight, "bias": None, "reduction": "mean"})
    long = request_of("op", {"x": torch.zeros(9, 4), "weight": weight, "bias": None, "reduction": "mean"})
    assert short == long
    assert hash(short) == hash(long)
    assert short.dims == (("x", 4), ("weight", 4))
    assert short.flags == {"x", "weight", "reduction=mean", "needs_grad"}
    assert (short.device, short.dtype) == ("cpu", "float32")
    with torch.no_grad():
        assert "needs_grad" not in request_of("op", {"weight": weight}).flags


@pytest.mark.parametrize("use", ["torch", "same=torch", "auto,same=torch"])
def test_a_pin_stands_over_priority(monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    monkeypatch.setenv(CHOICE, use)
    fast = Kernel("same", "fast", 99, lambda: double)
    assert Kernels([REFERENCE, fast]).op("same")(torch.ones(1)).item() == 1
    assert Kernels([REFERENCE, fast], use="auto").op("same")(torch.ones(1)).item() == 2
    told = {"torch": "yes, but torch is asked for"}.get(use, "no: not asked: torch is pinned")
    assert Kernels([REFERENCE, fast]).resolve(Request("same")).reasons["fast"] == told


def test_a_pinned_provider_that_says_no_is_an_error_not_a_fallback() -> None:
    same = Kernels([REFERENCE, FLIPPER], use="same=flipper").op("same")
    assert same(torch.ones(1), flip=True).item() == -2
    with pytest.raises(UserError, match=r"no kernel serves 'same'.*only flips"):
        same(torch.ones(1))


def test_an_exception_of_a_kernel_is_not_swallowed() -> None:
    def broken(x: Tensor, *, flip: bool = False) -> Tensor:
        raise FloatingPointError("broken")

    with pytest.raises(FloatingPointError, match="broken"):
        Kernels([REFERENCE, Kernel("same", "broken", 9, lambda: broken)], use="auto").op("same")(torch.ones(1))


@pytest.mark.parametrize(
    ("kernels", "use", "told"),
    [
        ([REFERENCE, Kernel("same", "other", 1, lambda: plain, reference=True)], "auto", "several references"),
        ([REFERENCE, FLIPPER, FLIPPER], "auto", "twice by flipper"),
        ([REFERENCE], "fast", "unknown kernel provider 'fast' in USEREC_KERNELS; known: auto, strict, torch"),
        ([REFERENCE], "same=torhc", "did you mean 'torch'"),
        ([REFERENCE], "sane=torch", "did you mean 'same'"),
        ([REFERENCE, LONELY], "lonely=far", "kernel op 'lonely' has no reference; brought by far: "),
        ([REFERENCE], "strict", "strict needs a provider to be strict about: USEREC_KERNELS=torch,strict"),
        ([REFERENCE], "auto,strict", "strict needs a provider"),
        ([REFERENCE], "same=torch,strict", "strict needs a provider"),
        ([REFERENCE, FLIPPER], "same=torch,same=flipper", "pins same twice, to torch and to flipper"),
    ],
)
def test_what_cannot_be_is_told(kernels: list[Kernel], use: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Kernels(kernels, use=use)


def test_an_unknown_op_is_told() -> None:
    with pytest.raises(UserError, match="unknown kernel op 'sam'; did you mean 'same'"):
        Kernels([REFERENCE]).op("sam")


def test_an_op_without_a_reference_is_told_to_who_asks_for_it() -> None:
    kernels = Kernels([LONELY, REFERENCE], use="auto")
    assert kernels.op("same")(torch.ones(1)).item() == 1
    assert (list(kernels.ops), dict(kernels.without_reference)) == (["same"], {"lonely": (LONELY,)})
    for ask in (kernels.op, kernels.reference, lambda op: kernels.resolve(Request(op)), lambda op: kernels.explain(Request(op))):
        with pytest.raises(UserError, match="kernel op 'lonely' has no reference; brought by far: install"):
            ask("lonely")
    Kernels([LONELY, REFERENCE], use="far")  # known, though it serves nothing


def test_a_supports_that_raises_is_explained_and_resolve_raises_it() -> None:
    def broken(request: Request) -> Yes | No:
        raise TypeError("no\n  such key")

    kernels = Kernels([REFERENCE, Kernel("same", "broken", 9, lambda: double, broken)], use="auto")
    told = [(one.kernel.provider, one.verdict, one.reason) for one in kernels.explain(Request("same"))]
    assert told == [("broken", "no", "supports raises TypeError: no such key"), ("torch", "chosen", "priority 0")]
    with pytest.raises(TypeError, match="such key"):
        kernels.op("same")(torch.ones(1))


def test_one_request_serves_all_batches() -> None:
    asked: list[Request] = []

    def far(request: Request) -> No:
        asked.append(request)
        return No("far away")

    kernels = Kernels([*userec_kernels(), Kernel("target_attention", "far", 200, lambda: plain, far)], use="auto")
    attend = kernels.op("target_attention")
    for length, keep in ((7, 2), (9, 3)):
        draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
        q, k, v = draw(1, 2, 1, 3, 16), draw(1, 1, length, 16), draw(1, 1, length, 4)
        attend(q, k, v, draw(1, 1, 2, length), torch.ones(1, 2, length, dtype=torch.bool), None, keep=keep)
    assert [request.dims for request in asked] == [(("q", 16), ("k", 16), ("v", 4))]
    assert asked[0].flags == {"q", "k", "v", "bias", "allowed", "keep"}


def test_a_whole_number_is_a_fact_by_name_alone() -> None:
    one, other = (request_of("op", {"max_len": value, "keep": None, "scale": 0.0, "causal": False}) for value in (0, 7))
    assert one == other
    assert one.flags == {"max_len"}


def test_the_built_in_ops_choose_the_cpu_form_where_it_fits() -> None:
    kernels = Kernels(userec_kernels(), use="auto")
    q = torch.zeros(2, 1, 4)
    attend = partial(kernels.op("jagged_attention"), q, q, q, torch.tensor([0, 2]), max_len=2, causal=True)
    attend()
    assert kernels.chosen()["jagged_attention"]["provider"] == "cpu"
    attend(dropout_p=0.5)
    assert kernels.chosen()["jagged_attention"]["provider"] == "cpu, torch"
    assert "no dropout" in kernels.chosen()["jagged_attention"]["reasons"]["cpu"]


def test_use_stands_over_the_environment_while_its_block_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CHOICE, "auto")
    kernels = Kernels([REFERENCE, Kernel("same", "fast", 99, lambda: double)])
    same = kernels.op("same")
    with kernels.use("torch"):
        assert same(torch.ones(1)).item() == 1
        with kernels.use("same=fast"):
            assert same(torch.ones(1)).item() == 2
        assert same(torch.ones(1)).item() == 1
    assert same(torch.ones(1)).item() == 2
    assert kernels.chosen()["same"]["provider"] == "torch, fast"
    before = kernels.chosen()
    for _ in range(3):
        with kernels.use("same = torch"):  # resolved anew, to what is known
            assert same(torch.ones(1)).item() == 1
    (served,) = kernels._served.values()
    assert len(served) == 4
    assert kernels.chosen()["same"]["provider"] == before["same"]["provider"]
    with (
        pytest.raises(UserError, match="unknown kernel provider 'fats' in USEREC_KERNELS; did you mean 'fast'"),
        kernels.use("fats"),
    ):
        pass


def test_a_preferred_provider_falls_back_with_its_reason_and_strict_makes_that_an_error() -> None:
    kernels = Kernels([REFERENCE, FLIPPER], use="auto")
    same = kernels.op("same")
    with kernels.use("flipper"):
        assert same(torch.ones(1)).item() == 1
    with kernels.use("flipper", strict=True):
        assert same(torch.ones(1), flip=True).item() == -2
        with pytest.raises(UserError, match=r"strict, and none of flipper serves 'same': flipper: no: only flips"):
            same(torch.ones(1))


def test_an_opt_in_kernel_serves_only_where_it_is_asked_for() -> None:
    slow = Kernel("same", "compiled", 50, lambda: double, opt_in=True)
    kernels = Kernels([REFERENCE, slow], use="auto")
    same = kernels.op("same")
    assert same(torch.ones(1)).item() == 1
    assert kernels.chosen()["same"]["reasons"]["compiled"] == f"no: opt-in: ask with {CHOICE}=compiled"
    for choice in ("compiled", "same=compiled"):
        with kernels.use(choice):
            assert same(torch.ones(1)).item() == 2


def test_float16_on_a_cpu_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match=r"same in float16 on a CPU .* use float32 or bfloat16"):
        Kernels([REFERENCE], use="auto").op("same")(torch.ones(1, dtype=torch.float16))


def test_what_has_no_floating_tensor_is_asked_for_by_its_first_tensor() -> None:
    request = request_of("codes", {"codes": torch.zeros(3, dtype=torch.int64), "count": 4})
    assert (request.device, request.dtype, request.flags) == ("cpu", "int64", {"codes", "count"})


def test_explain_tells_what_resolve_does() -> None:
    kernels = Kernels([REFERENCE, FLIPPER], use="flipper,strict")
    told = {one.kernel.provider: (one.verdict, one.reason) for one in kernels.explain(Request("same"))}
    assert told == {"flipper": ("no", "only flips"), "torch": ("no", "not asked: strict, flipper must serve")}
    assert (kernels.asked("same"), Kernels([REFERENCE], use="same=torch").asked("same")) == (("flipper",), ("torch",))
    half = Kernels([REFERENCE], use="auto").explain(Request("same", dtype="float16"))
    assert [one.verdict for one in half] == ["no"]
    assert "use float32 or bfloat16" in half[0].reason
