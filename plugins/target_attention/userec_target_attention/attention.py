"""DIN's attention: how much of each event a target wakes, and their weighted sum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from userec.encoder.contract import Build
from userec_target_attention.activations import Activation
from userec_target_attention.network import PairNetwork


class LocalActivation(nn.Module):
    """u = sum_j a(e_j, v) e_j, a an MLP on [v, e_j, v - e_j, v * e_j] (Zhou et al., KDD 2018, equation 3 and figure 2).

    The weights are not normalised, as in the paper: their sum says how strong an interest is. `softmax`: a softmax of
    a / sqrt(width) over the allowed events, as in the authors' code. Only (question, candidate, event) cells that are real go
    through the MLP: it is not 0 at padding, nor may padding be counted in the statistics of Dice."""

    def __init__(self, build: Build, width: int, hidden: tuple[int, ...], kind: Activation, softmax: bool) -> None:
        super().__init__()
        self.network = PairNetwork(build, width, hidden, kind, difference=True)
        self.softmax = softmax

    def forward(self, events: Tensor, allowed: Tensor, target: Tensor, real: Tensor) -> Tensor:
        """Events [B, L, W], of which each question sees `allowed` [B, Q, L]; targets [B|1, Q|1, C, W], padding where not `real`
        [B|1, Q|1, C] -> u [B, Q, C, W]."""
        mask = allowed.unsqueeze(2) & real.unsqueeze(3)  # [B, Q, C, L]
        weights = self.network(target.unsqueeze(3), events[:, None, None], mask)
        return self._pool(weights, mask, events)

    def across(self, distinct: Tensor, which: Tensor, events: Tensor, allowed: Tensor, target: Tensor, real: Tensor) -> Tensor:
        """The same where all rows share their targets [C, W]: a(e_j, v) is computed once for each of the `distinct` [n, W]
        events, `which` [B, L] says where each row's events stand among them. Eval mode alone."""
        pairs = self.network.across(target, distinct)  # [C, n]
        found = pairs.T.contiguous().index_select(0, which.flatten()).unflatten(0, which.shape)  # [B, L, C]
        mask = allowed.unsqueeze(3) & real  # [B, Q, L, C]
        weights = found.unsqueeze(1) * mask
        return self._pool(weights.transpose(2, 3), mask.transpose(2, 3), events)

    def _pool(self, weights: Tensor, mask: Tensor, events: Tensor) -> Tensor:
        """Weights [B, Q, C, L], 0 where not `mask`, of events [B, L, W] -> [B, Q, C, W]."""
        if self.softmax:
            scores = (weights / events.shape[2] ** 0.5).masked_fill(~mask, torch.finfo(weights.dtype).min)
            weights = scores.softmax(-1) * mask
        return (weights.flatten(1, 2) @ events).unflatten(1, weights.shape[1:3])
