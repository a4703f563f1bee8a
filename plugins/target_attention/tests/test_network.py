from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from userec_target_attention import network
from userec_target_attention.activations import Activation, Dice
from userec_target_attention.network import PairNetwork

from userec.builtin.kernels import userec_kernels
from userec.kernel.dispatch import Kernels

KINDS: list[Activation] = ["dice", "sigmoid", "prelu"]


class Build:
    """The least of a Build: kernels."""

    def op(self, name: str) -> Callable[..., Tensor]:
        return Kernels(userec_kernels(), use="auto").op(name)


def make(kind: Activation, difference: bool) -> PairNetwork:
    torch.manual_seed(0)
    module = PairNetwork(Build(), 6, (7, 5), kind, difference)  # type: ignore[arg-type]
    for part in module.modules():
        if isinstance(part, Dice):
            nn.init.normal_(part.alpha)
            nn.init.normal_(part.mean)
            nn.init.uniform_(part.var, 0.5, 2)
    return module


def concatenated(module: PairNetwork, v: Tensor, x: Tensor) -> Tensor:
    """The paper's form: [v, x, v - x, v * x] written out, then the layers. v, x [K, width]."""
    features = [v, x, v - x, v * x] if module.difference else [v, x, v * x]
    return module.rest(module.first(torch.cat(features, -1))).squeeze(-1)


@pytest.mark.parametrize("difference", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_the_split_equals_the_concatenation_in_values_and_gradients(kind: Activation, difference: bool) -> None:
    module = make(kind, difference).train()
    other = copy.deepcopy(module)
    v, x = torch.randn(2, 1, 4, 1, 6, requires_grad=True), torch.randn(2, 1, 1, 9, 6, requires_grad=True)
    real = torch.rand(2, 3, 4, 9) < 0.6
    weigh = torch.randn(real.shape)
    out = module(v, x, real)
    assert not out[~real].any()
    cells = real.nonzero(as_tuple=True)
    own_v, own_x = v.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    plain = concatenated(other, own_v.expand(*real.shape, 6)[cells], own_x.expand(*real.shape, 6)[cells])
    torch.testing.assert_close(out[real], plain, atol=1e-6, rtol=1e-5)
    (out * weigh).sum().backward()
    (plain * weigh[real]).sum().backward()
    for got, want in ((v, own_v), (x, own_x), *zip(module.parameters(), other.parameters(), strict=True)):
        assert got.grad is not None
        torch.testing.assert_close(got.grad, want.grad, atol=1e-5, rtol=1e-4)
    for got, want in zip(module.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("difference", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("block", [1, 7, 20, 1024])
def test_every_pair_across_is_the_pair_alone(
    kind: Activation, difference: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "BLOCK", block)
    module = make(kind, difference).eval()
    v, x, own = torch.randn(5, 6), torch.randn(9, 6), torch.randn(5, 9, 6)
    with torch.no_grad():
        plain = concatenated(module, v[:, None].expand(5, 9, 6).flatten(0, 1), x.expand(5, 9, 6).flatten(0, 1)).view(5, 9)
        torch.testing.assert_close(module.across(v, x), plain, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(module(v[:, None], x[None], torch.ones(5, 9).bool()), plain, atol=1e-6, rtol=1e-5)
        plain = concatenated(module, v[:, None].expand(5, 9, 6).flatten(0, 1), own.flatten(0, 1)).view(5, 9)
        torch.testing.assert_close(module.across(v, own), plain, atol=1e-6, rtol=1e-5)


def test_no_pair_at_all() -> None:
    module = make("dice", True).eval()
    with torch.no_grad():
        assert module.across(torch.randn(3, 6), torch.randn(0, 6)).shape == (3, 0)
        assert not module(torch.randn(3, 1, 6), torch.randn(1, 2, 6), torch.zeros(3, 2).bool()).any()
