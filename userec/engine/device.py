"""The machine: which device, and how much memory was held."""

from __future__ import annotations

import resource
import sys

import torch

from userec.errors import UserError


def device_of(name: str) -> torch.device:
    """The device of that name. Raises UserError where the machine has none such."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown --device {name!r}: cpu, cuda or cuda:N") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"--device {name}: this machine has no CUDA device that torch {torch.__version__} can use; leave it out for cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices, numbered from 0")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"unknown --device {name!r}: cpu, cuda or cuda:N")
    return device


def peak_rss_mb() -> float:
    """The most memory this process held, in MB (2^20 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
