"""What a check is, and how it tells a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """One named proof. Calling it raises AssertionError with a message that names the plugin and the fault."""

    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Run it."""
        self.run()


def same(name: str, what: str, got: Tensor, want: Tensor, fault: str, tolerance: float = 1e-5) -> None:
    """Equal within `tolerance` (absolute, and ten times that relative); the message ends with the fault's name."""
    if got.shape != want.shape:
        raise AssertionError(f"{name}: {what}: shape {tuple(got.shape)} became {tuple(want.shape)}: {fault}")
    got, want = got.detach(), want.detach()
    if got.numel() == 0 or torch.allclose(got.double(), want.double(), atol=tolerance, rtol=10 * tolerance, equal_nan=False):
        return
    if not (got.isfinite() | got.isneginf()).all() or not (want.isfinite() | want.isneginf()).all():
        raise AssertionError(f"{name}: {what} is not a number: {fault}")
    difference = (got.double() - want.double()).abs().nan_to_num(nan=0.0).max()
    raise AssertionError(f"{name}: {what} (max difference {float(difference):.3g}): {fault}")


def finite(name: str, what: str, x: Tensor, fault: str) -> None:
    """Every value is a number."""
    if not x.isfinite().all():
        raise AssertionError(
            f"{name}: {what} has {int((~x.isfinite()).sum())} values of {x.numel()} that are no numbers: {fault}"
        )


def shape(name: str, what: str, x: object, want: tuple[int, ...], axes: str) -> None:
    """A tensor of that shape; `axes` names them: `[B, Q, C, A]`."""
    if not isinstance(x, Tensor):
        raise AssertionError(f"{name}: {what} is {type(x).__name__}, not a tensor {axes} = {want}: wrong shape")
    if tuple(x.shape) != want:
        raise AssertionError(f"{name}: {what} has shape {tuple(x.shape)}, not {axes} = {want}: wrong shape")


def holds(condition: object, message: str) -> None:
    """Raise AssertionError with the message, also under `python -O`."""
    if not condition:
        raise AssertionError(message)
