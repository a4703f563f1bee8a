"""Checkpoints: whole, safe, and telling when damaged."""

import json

import pytest
import torch

from userec.engine import checkpoint
from userec.errors import UserError


def test_tensors_and_facts_come_back(tmp_path):
    tensors = {"encoder.w": torch.arange(6.0).reshape(2, 3), "encoder.n": torch.tensor(3)}
    checkpoint.save(tmp_path, "last", tensors, {"step": 4})
    found, about = checkpoint.load(tmp_path, "last")
    assert about["step"] == 4
    assert all(torch.equal(found[key], value) for key, value in tensors.items())
    assert checkpoint.part(found, "encoder").keys() == {"w", "n"}


def test_a_later_checkpoint_replaces_the_earlier_one(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, "last", {"encoder.w": torch.tensor([float(step)])}, {"step": step})
    assert checkpoint.load(tmp_path, "last")[0]["encoder.w"].item() == 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    assert checkpoint.load(tmp_path, "best") is None


def test_a_write_that_was_cut_leaves_the_old_one_whole(tmp_path):
    checkpoint.save(tmp_path, "last", {"encoder.w": torch.ones(2)}, {"step": 1})
    (tmp_path / "last-2.safetensors").write_bytes(b"cut")
    (tmp_path / "last.json.part").write_text("{")
    assert torch.equal(checkpoint.load(tmp_path, "last")[0]["encoder.w"], torch.ones(2))


def test_a_damaged_checkpoint_is_told(tmp_path):
    checkpoint.save(tmp_path, "last", {"encoder.w": torch.ones(2)}, {"step": 1})
    (tmp_path / "last-1.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tmp_path, "last")


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_an_optimizer_goes_on_as_if_nothing_had_been(make, tmp_path):
    def step(weight, optimizer):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()

    torch.manual_seed(0)
    weight = torch.randn(3, requires_grad=True)
    optimizer = make([weight], lr=0.1)
    step(weight, optimizer)
    tensors, groups = checkpoint.flatten_optimizer(optimizer)
    checkpoint.save(tmp_path, "last", {"encoder.w": weight, **tensors}, {"step": 1, "groups": groups})
    step(weight, optimizer)

    found, about = checkpoint.load(tmp_path, "last")
    again = found["encoder.w"].clone().requires_grad_()
    other = make([again], lr=0.1)
    checkpoint.restore_optimizer(other, found, about["groups"])
    step(again, other)
    assert torch.equal(again, weight)
    assert json.loads((tmp_path / "last.json").read_text())["tensors"] == "last-1.safetensors"
