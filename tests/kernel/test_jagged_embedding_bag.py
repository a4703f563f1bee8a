from __future__ import annotations

import pytest
import torch

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.jagged import EDGES, offsets_of
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "jagged_embedding_bag"]
FORMS = {kernel.provider: kernel.load() for kernel in KERNELS if not kernel.opt_in}


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


@pytest.mark.parametrize("lengths", EDGES.values(), ids=EDGES)
@pytest.mark.parametrize(("mode", "factors"), [("sum", False), ("sum", True), ("mean", False)])
def test_the_reference_is_torchs_embedding_bag(lengths, mode, factors) -> None:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(11, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 11, (sum(lengths),), generator=generator)
    scale = torch.randn(len(ids), generator=generator, dtype=torch.float64) if factors else None
    bag = torch.nn.EmbeddingBag(11, 4, mode=mode, include_last_offset=True, dtype=torch.float64)
    bag.weight.data.copy_(weight.detach())
    got = FORMS["torch"](weight, ids, offsets_of(lengths), scale, mode=mode)
    want = bag(ids, offsets_of(lengths), per_sample_weights=scale)
    torch.testing.assert_close(got, want)
    got.square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(weight.grad, bag.weight.grad)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_id_0_counts_and_nobodys_bag_is_zero(form) -> None:
    weight = torch.arange(1.0, 7.0).reshape(3, 2)
    got = form(weight, torch.tensor([0, 0, 2]), torch.tensor([0, 2, 2, 3]), mode="mean")
    assert got.tolist() == [[1.0, 2.0], [0.0, 0.0], [5.0, 6.0]]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("narrow", [torch.int32, torch.int64])
def test_mixed_dtypes_follow_the_table(form, narrow) -> None:
    weight = torch.arange(1.0, 7.0).reshape(3, 2)
    ids, offsets = torch.tensor([0, 1, 2], dtype=narrow), torch.tensor([0, 3])
    got = form(weight, ids, offsets, torch.tensor([1.0, 0.5, 2.0], dtype=torch.bfloat16), mode="sum")
    assert got.dtype == torch.float32
    assert got.tolist() == [[12.5, 16.0]]


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mode": "max"}, "mode of jagged_embedding_bag"),
        ({"mode": "mean", "factors": torch.ones(3)}, "mode='sum' alone"),
        ({"factors": torch.ones(2)}, "one an event"),
        ({"weight": torch.ones(3)}, r"give \[V, D\]"),
    ],
)
def test_bad_arguments_are_told(form, change, told) -> None:
    arguments = {"weight": torch.ones(3, 2), "ids": torch.tensor([0, 1, 2]), "offsets": torch.tensor([0, 3]), "mode": "sum"}
    with pytest.raises(UserError, match=told):
        form(**arguments | change)


def test_the_cost_of_a_call_asks_for_no_optional_argument() -> None:
    kernel = next(kernel for kernel in KERNELS if kernel.reference)
    given = {"weight": torch.zeros(5, 4), "ids": torch.zeros(3).long(), "offsets": torch.tensor([0, 3]), "mode": "sum"}
    assert kernel.cost(given) == kernel.cost({**given, "factors": None})
