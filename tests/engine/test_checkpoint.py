"""Checkpoints: whole, safe, and telling when damaged."""

import json
from pathlib import Path

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


@pytest.mark.parametrize("cut", ["save_file", "replace", "write_text", "unlink"])
def test_a_write_that_ends_anywhere_leaves_a_whole_one_and_the_next_clears_up(cut, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    checkpoint.save(tmp_path, "last", {"encoder.w": torch.ones(2)}, {"step": 1})
    with monkeypatch.context() as patch:
        owner = {"save_file": checkpoint, "replace": checkpoint.os}.get(cut, Path)
        patch.setattr(owner, cut, kill)
        with pytest.raises(Killed):
            checkpoint.save(tmp_path, "last", {"encoder.w": torch.zeros(2)}, {"step": 2})
    tensors, about = checkpoint.load(tmp_path, "last")
    assert torch.equal(tensors["encoder.w"], torch.full((2,), 2.0 - about["step"]))
    assert about["step"] == (2 if cut == "unlink" else 1)
    checkpoint.save(tmp_path, "last", {"encoder.w": torch.ones(2)}, {"step": 3})
    assert {file.name for file in tmp_path.iterdir()} == {"last.json", "last-3.safetensors"}


def test_the_latest_of_all_stages_says_how_far_it_came(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    checkpoint.save(tmp_path / "0-next", "best", {"encoder.w": torch.ones(2)}, {"step": 7})
    assert checkpoint.latest(tmp_path)["step"] == 7
    checkpoint.save(tmp_path / "0-next", "last", {"encoder.w": torch.ones(2)}, {"step": 9})
    checkpoint.save(tmp_path / "0-next", "best", {"encoder.w": torch.ones(2)}, {"step": 8})
    assert checkpoint.latest(tmp_path)["step"] == 9


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(UserError, match="cannot write the checkpoint"):
        checkpoint.save(tmp_path / "file" / "checkpoint", "last", {"encoder.w": torch.ones(2)}, {"step": 1})


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
