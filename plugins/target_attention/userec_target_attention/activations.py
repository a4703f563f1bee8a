"""What stands between the layers: Dice, and the plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["dice", "prelu", "relu", "sigmoid"]

EPS: Final = 1e-9
MOMENTUM: Final = 0.1
"""Weight of a batch in the moving statistics."""


class Dice(nn.Module):
    """f(x) = p x + (1 - p) alpha x, p = sigmoid((x - mean) / sqrt(var + 1e-9)), a channel each; alpha starts at 0.

    Rows [N, width], all of them real: who calls it leaves padding out. Mean and (biased) variance are the batch's in training,
    moving ones in eval or where there is but one row. Zhou et al. (KDD 2018), section 5.3: PReLU whose switch follows the data.
    Departure: the moving average takes 0.1 of each batch; the authors' code never updated it."""

    mean: Tensor
    var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width] -> [N, width]."""
        if self.training and len(x) > 1:
            p = torch.sigmoid(F.batch_norm(x, self.mean, self.var, training=True, momentum=MOMENTUM, eps=EPS))
        else:
            scale = torch.rsqrt(self.var + EPS)
            p = torch.sigmoid(torch.addcmul(-self.mean * scale, x, scale))
        return x * torch.addcmul(self.alpha, 1 - self.alpha, p)


@contextmanager
def settled(module: nn.Module) -> Iterator[None]:
    """Inside the block every `Dice` uses its moving statistics and learns none: for rows that are not what it is trained on."""
    learning = [part for part in module.modules() if isinstance(part, Dice) and part.training]
    for part in learning:
        part.training = False
    try:
        yield
    finally:
        for part in learning:
            part.training = True


def activation(name: Activation, width: int) -> nn.Module:
    """A fresh one for rows [N, width]."""
    match name:
        case "dice":
            return Dice(width)
        case "prelu":
            return nn.PReLU(width)
        case "relu":
            return nn.ReLU()
        case "sigmoid":
            return nn.Sigmoid()
