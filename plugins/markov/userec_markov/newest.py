"""The newest events, whatever batches they came in, and the two experts made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from userec_markov.weights import posterior


class Newest(nn.Module):
    """The last `size` events by (time, item, new): of equal times which are kept depends on nothing else."""

    rows: Tensor  # [W, 3] int64, ascending: time, item, 1 where its user had not met the item before

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("rows", torch.zeros(0, 3, dtype=torch.int64))

    def add(self, time: Tensor, item: Tensor, asked: Tensor) -> None:
        """Take what is newest of the events of whole rows [B, L]; only where `asked`."""
        events = torch.stack([time, item, first_met(item, asked).long()], 2)[asked]  # [N, 3]
        rows = torch.cat([self.rows, events]).cpu().numpy()
        if len(rows) > self.size:
            rows = rows[rows[:, 0] >= np.partition(rows[:, 0], -self.size)[-self.size]]
        rows = rows[np.lexsort(rows.T[::-1])][-self.size :]
        self.rows = torch.from_numpy(rows).to(self.rows.device)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """The buffer takes the length that was saved."""
        if (saved := state_dict.get(prefix + "rows")) is not None:
            self.rows = torch.empty(saved.shape, dtype=saved.dtype, device=self.rows.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)


@dataclass(frozen=True)
class Experts:
    """What the newest events say, and how far they are believed."""

    root: Tensor  # [n] float32: popularity overall and of late
    recent: Tensor  # [n] bool: the recent set
    smoothing: float  # events added to each item
    freshness: float  # weight of an unseen recent item, 0 = never

    def to(self, device: torch.device) -> Experts:
        """The same on `device`."""
        return replace(self, root=self.root.to(device), recent=self.recent.to(device))

    def base(self, item: Tensor, at: Tensor) -> Tensor:
        """The distribution before any context, of questions after `at` [B, Q] of rows `item` [B, L]: [1|R, n], R = B * Q."""
        if not self.freshness:
            return self.root[None]
        rows, size = at.numel(), len(self.root)
        met = torch.where(torch.arange(item.shape[1], device=at.device) <= at.unsqueeze(2), item.unsqueeze(1), 0)  # [B, Q, L]
        fresh = self.recent.expand(rows, size).scatter(1, met.reshape(rows, -1), False).float()  # [R, n]
        real = (self.root > 0).float()
        total = fresh.sum(1, keepdim=True) + self.smoothing * real.sum()
        return self.freshness * (fresh + self.smoothing * real) / total + (1 - self.freshness) * self.root


def experts(
    rows: np.ndarray, counts: np.ndarray, real: np.ndarray, smoothing: float, prior: float, popularity: bool, freshness: bool
) -> Experts:
    """The root of a tree: `counts` [n] of all events smoothed over the `real` ids [n] bool, with the experts over `rows` [W, 3].

    Each is weighed by how well the others of the newest events foretell each one of them; a fresh one is credited with what
    freshness gives to a user who has met none of the recent set, the least it can give."""
    whole = real.sum()
    item, new = rows[:, 1], rows[:, 2] > 0
    late = np.bincount(item, minlength=len(counts)).astype(float)  # [n]
    root = (counts + smoothing) * real / (counts.sum() + smoothing * whole)
    recent = late > 0
    weight = 0.0
    if len(rows) > 1:
        q = (counts[item] - 1 + smoothing) / (counts.sum() - 1 + smoothing * whole)  # [W], the event left out
        if popularity:
            p = (late[item] - 1 + smoothing) / (len(rows) - 1 + smoothing * whole)
            ratio = np.log(p / q)
            share, own = posterior(prior, ratio.sum()), posterior(prior, ratio.sum() - ratio)
            q = own * p + (1 - own) * q
            root = share * (late + smoothing) * real / (len(rows) + smoothing * whole) + (1 - share) * root
        if freshness:
            others = late[item] > 1  # [W] whether the item stays in the recent set without the event
            p = ((new & others) + smoothing) / (recent.sum() - ~others + smoothing * whole)
            weight = float(posterior(prior**2, np.log(p / q).sum()))
    return Experts(torch.from_numpy(root).float(), torch.from_numpy(recent), smoothing, weight)


def first_met(item: Tensor, asked: Tensor) -> Tensor:
    """[B, L] bool: where a real event's item stands in its row for the first time."""
    keyed = (item + torch.arange(len(item), device=item.device)[:, None] * (int(item.max()) + 1 if item.numel() else 1)).flatten()
    kept = asked.flatten().nonzero().squeeze(1).cpu().numpy()
    _, first = np.unique(keyed.cpu().numpy()[kept], return_index=True)
    met = torch.zeros(item.numel(), dtype=torch.bool)
    met[torch.from_numpy(kept[first])] = True
    return met.reshape(item.shape).to(item.device)
