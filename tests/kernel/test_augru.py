from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from userec.builtin.kernels import userec_kernels
from userec.errors import UserError
from userec.kernel.cpu.augru import augru as cpu_augru
from userec.kernel.jagged import offsets_of
from userec.kernel.reference.augru import augru
from userec.testing import contract

KERNELS = [kernel for kernel in userec_kernels() if kernel.op == "augru"]
FORMS = pytest.mark.parametrize("form", [augru, cpu_augru], ids=["reference", "cpu"])
LENGTHS = [3, 0, 7, 1, 7]


@pytest.mark.parametrize("check", contract(KERNELS))
def test_contract(check) -> None:
    check()


def arguments(gru: torch.nn.GRU, attention: float | None = None) -> dict[str, Any]:
    """A call with that GRU's weights, in float64."""
    generator = torch.Generator().manual_seed(3)
    total = sum(LENGTHS)
    drawn = torch.rand(total, generator=generator, dtype=torch.float64)
    return {
        "x": torch.randn(total, gru.input_size, generator=generator, dtype=torch.float64),
        "attention": drawn if attention is None else torch.full_like(drawn, attention),
        "weight_ih": gru.weight_ih_l0,
        "weight_hh": gru.weight_hh_l0,
        "bias_ih": gru.bias_ih_l0,
        "bias_hh": gru.bias_hh_l0,
        "offsets": offsets_of(LENGTHS),
        "state": torch.randn(len(LENGTHS), gru.hidden_size, generator=generator, dtype=torch.float64),
        "max_len": max(LENGTHS),
    }


@pytest.fixture
def gru() -> torch.nn.GRU:
    torch.manual_seed(0)
    return torch.nn.GRU(5, 4, dtype=torch.float64)


@FORMS
@pytest.mark.parametrize(("gate", "attention"), [("update", 1.0), ("keep", 0.0)])
def test_without_a_say_of_attention_it_is_torchs_gru(form: Any, gate: str, attention: float, gru: torch.nn.GRU) -> None:
    call = arguments(gru, attention)
    out, state = form(**call, gate=gate)
    for user, (x, mine) in enumerate(zip(call["x"].split(LENGTHS), out.split(LENGTHS), strict=True)):
        if not len(x):
            continue
        want, last = gru(x[:, None], call["state"][None, user, None])
        torch.testing.assert_close(mine, want[:, 0])
        torch.testing.assert_close(state[user], last[0, 0])


@FORMS
def test_no_attention_leaves_the_state_as_it_was(form: Any, gru: torch.nn.GRU) -> None:
    call = arguments(gru, attention=0.0)
    out, state = form(**call, gate="update")
    assert torch.equal(state, call["state"])
    assert torch.equal(out, torch.repeat_interleave(call["state"], torch.tensor(LENGTHS), dim=0))


@FORMS
@pytest.mark.parametrize("gate", ["update", "keep"])
def test_both_gates_are_the_formulas_of_paper_and_code(form: Any, gate: str, gru: torch.nn.GRU) -> None:
    call = arguments(gru)
    with torch.no_grad():
        out, state = form(**call, gate=gate)
        for user in range(len(LENGTHS)):
            h = call["state"][user]
            for event in range(*call["offsets"][user : user + 2].tolist()):
                h = stepped(gru, call["x"][event], h, float(call["attention"][event]), gate)
                torch.testing.assert_close(out[event], h)
            torch.testing.assert_close(state[user], h)


def stepped(gru: torch.nn.GRU, x: Tensor, h: Tensor, a: float, gate: str) -> Tensor:
    """One step for one user, number by number."""
    given, carried = gru.weight_ih_l0 @ x + gru.bias_ih_l0, gru.weight_hh_l0 @ h + gru.bias_hh_l0
    new = torch.empty_like(h)
    for i in range(4):
        r, z = torch.sigmoid(given[i] + carried[i]), torch.sigmoid(given[4 + i] + carried[4 + i])
        n = torch.tanh(given[8 + i] + r * carried[8 + i])
        if gate == "update":  # the paper: u~ = a u, h' = (1 - u~) h + u~ n
            share = a * (1 - z)
            new[i] = (1 - share) * h[i] + share * n
        else:  # the authors' code: g = (1 - a) g, h' = g h + (1 - g) n
            kept = (1 - a) * z
            new[i] = kept * h[i] + (1 - kept) * n
    return new


@FORMS
def test_a_user_without_events_keeps_his_state_and_padding_changes_nothing(form: Any, gru: torch.nn.GRU) -> None:
    call = arguments(gru)
    out, state = form(**call)
    assert torch.equal(state[1], call["state"][1])
    longer, last = form(**call | {"max_len": max(LENGTHS) + 3})
    assert torch.equal(out, longer)
    assert torch.equal(state, last)
    nobody, start = form(**call | {"x": call["x"][:0], "attention": call["attention"][:0], "offsets": offsets_of([0] * 5)})
    assert nobody.shape == (0, 4)
    assert torch.equal(start, call["state"])


def test_blocks_of_steps_change_nothing(gru: torch.nn.GRU, monkeypatch: pytest.MonkeyPatch) -> None:
    call = arguments(gru)
    call["x"].requires_grad_()
    found = []
    for events in (1, 6, 2048):
        monkeypatch.setattr("userec.kernel.cpu.augru.EVENTS", events)
        out, state = cpu_augru(**call)
        found.append((out, *torch.autograd.grad(out.square().sum() + state.sum(), [call["x"], gru.weight_hh_l0])))
    for other in found[:-1]:
        for x, want in zip(other, found[-1], strict=True):
            torch.testing.assert_close(x, want)


@FORMS
def test_mixed_dtypes_follow_x_also_under_autocast(form: Any, gru: torch.nn.GRU) -> None:
    call = arguments(gru.float()) | {"max_len": max(LENGTHS)}
    call |= {"x": call["x"].bfloat16(), "attention": call["attention"].float()}
    want, _ = augru(**call | {"x": call["x"].float()})
    for x in (call["x"], call["x"].float()):
        with torch.autocast("cpu", torch.bfloat16):
            out, state = form(**call | {"x": x})
        assert out.dtype == state.dtype == x.dtype
        torch.testing.assert_close(out.float(), want, atol=3e-2, rtol=0)
        out.sum().backward()
        assert gru.weight_hh_l0.grad is not None
        assert gru.weight_hh_l0.grad.dtype == torch.float32


@FORMS
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"gate": "updat"}, "did you mean 'update'"),
        ({"attention": torch.ones(5)}, r"attention has shape \(5,\).*ask for \(18,\)"),
        ({"state": torch.ones(5, 3)}, r"state has shape \(5, 3\).*ask for \(5, 4\)"),
        ({"weight_ih": torch.ones(12, 6)}, r"weight_ih has shape"),
    ],
)
def test_what_does_not_fit_is_told(form: Any, wrong: dict[str, Any], told: str, gru: torch.nn.GRU) -> None:
    with pytest.raises(UserError, match=told):
        form(**arguments(gru) | wrong)
