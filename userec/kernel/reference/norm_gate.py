"""LayerNorm times a gate: what closes an HSTU layer (Zhai et al. 2024, equation 3) and, head by head, a retention layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from userec.errors import UserError
from userec.kernel.contract import Case, Cost
from userec.kernel.dtypes import wide_dtype, widest_dtype


def norm_gate(x: Tensor, gate: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-6) -> Tensor:
    """gate * (weight (x - mean) / sqrt(variance + eps) + bias): x and gate [N, ..., D], weight and bias [D] -> [N, ..., D], mean
    and variance (of D, not D - 1) over the last axis.

    In bfloat16 it is computed in float32; of x and gate in two dtypes the result has the wider."""
    check_gate(x, gate, weight, bias)
    dtype = widest_dtype(x, gate)
    within = wide_dtype(dtype)
    weight, bias = (y if y is None else y.to(within) for y in (weight, bias))
    return (F.layer_norm(x.to(within), x.shape[-1:], weight, bias, eps) * gate.to(within)).to(dtype)


def check_gate(x: Tensor, gate: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
    """Raises UserError unless the gate is shaped as x, weight and bias as its last axis."""
    if x.shape != gate.shape or x.dim() < 2:
        raise UserError(f"norm_gate: x is {tuple(x.shape)}, gate {tuple(gate.shape)}: give both as [N, ..., D]")
    for name, y in (("weight", weight), ("bias", bias)):
        if y is not None and y.shape != x.shape[-1:]:
            raise UserError(f"norm_gate: {name} is {tuple(y.shape)}, x {tuple(x.shape)}: give ({x.shape[-1]},)")


def cost(arguments: Mapping[str, Any]) -> Cost:
    """Eight operations a number (mean, variance, scaling, gate), two more with weight and bias; x, gate and the result once."""
    x, affine = arguments["x"], sum(arguments.get(name) is not None for name in ("weight", "bias"))
    return Cost((8.0 + affine) * x.numel(), 3.0 * x.element_size() * x.numel())


def cases() -> Iterable[Case]:
    """Affine, in part and not; heads; one row and none; a great epsilon; numbers far from 0."""
    for name, shape, settings in (
        ("rows", (7, 16), {}),
        ("affine", (7, 16), {"weight": True, "bias": True}),
        ("weight alone", (5, 17), {"weight": True}),
        ("heads", (5, 2, 8), {}),
        ("affine heads", (5, 2, 8), {"weight": True, "bias": True}),
        ("one row", (1, 64), {}),
        ("no row", (0, 8), {"weight": True, "bias": True}),
        ("great epsilon", (6, 8), {"eps": 0.5}),
        ("far from 0", (6, 32), {"shift": 30.0}),
    ):
        yield Case(name, partial(_arguments, shape, **settings), user=("x", "gate"), out=("user",))  # type: ignore[arg-type]


def _arguments(
    shape: tuple[int, ...],
    generator: Generator,
    weight: bool = False,
    bias: bool = False,
    eps: float = 1e-6,
    shift: float = 0.0,
) -> dict[str, Any]:
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    return {
        "x": draw(shape) + shift,
        "gate": draw(shape),
        "weight": draw(shape[-1]) if weight else None,
        "bias": draw(shape[-1]) if bias else None,
        "eps": eps,
    }
