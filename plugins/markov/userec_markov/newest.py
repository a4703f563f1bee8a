"""The newest events, whatever batches they came in, and the two experts made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from userec.batch import Query, gather_positions
from userec.schema import FIRST
from userec_markov.weights import LOST, posterior


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
    alike: Tensor  # [n] float32: events added to each item, 0 at reserved ids
    freshness: float  # weight of an unseen recent item, 0 = never

    def to(self, device: torch.device) -> Experts:
        """The same on `device`."""
        return replace(self, root=self.root.to(device), recent=self.recent.to(device), alike=self.alike.to(device))

    def base(self, item: Tensor, query: Query) -> Tensor:
        """The distribution before any context of rows `item` [B, L]: of all ids [1|R, n], R = B * Q, or of `query.ids` [R, C]."""
        ids = None if query.ids is None else query.ids.expand(*query.at.shape, -1)  # [B, Q, C]
        if not self.freshness:
            return self.root[None] if ids is None else self.root[ids].flatten(0, 1)
        met = (first_met(item, item >= FIRST) & self.recent[item]).cumsum(1)  # [B, L] recent items met so far
        unmet = self.recent.sum() - gather_positions(met, query.at)  # [B, Q]
        share = (self.freshness / (unmet + self.alike.sum())).unsqueeze(2)  # [B, Q, 1] what one event is worth
        root = (1 - self.freshness) * self.root
        if ids is not None:
            fresh = self.recent[ids] & ~_met(item, query.at, ids)
            return (share * (fresh + self.alike[ids]) + root[ids]).flatten(0, 1)
        p = (share * (self.recent + self.alike)).add_(root)  # [B, Q, n]
        before = torch.arange(item.shape[1], device=item.device) <= query.at.unsqueeze(2)
        old = torch.where(before, item.unsqueeze(1), 0)  # [B, Q, L]
        return p.scatter_(2, old, share * self.alike[old] + root[old]).flatten(0, 1)


def experts(
    rows: np.ndarray, counts: np.ndarray, real: np.ndarray, smoothing: float, prior: float, popularity: bool, freshness: bool
) -> Experts:
    """The root of a tree: `counts` [n] of all events smoothed over the `real` ids [n] bool, with the experts over `rows` [W, 3].

    Each is weighed by how well the others of the newest events foretell each one of them; a fresh one is credited with what
    freshness gives to a user who has met none of the recent set, the least it can give. Freshness that has lost all belief is
    left out."""
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
            found = float(posterior(prior**2, np.log(p / q).sum()))
            weight = found if found > LOST else 0.0
    return Experts(torch.from_numpy(root).float(), torch.from_numpy(recent), torch.from_numpy(smoothing * real).float(), weight)


def first_met(item: Tensor, asked: Tensor) -> Tensor:
    """[B, L] bool: where a real event's item stands in its row for the first time."""
    ordered, place = torch.where(asked, item, 0).sort(dim=1, stable=True)
    return torch.zeros_like(asked).scatter_(1, place, ordered > F.pad(ordered, (1, 0))[:, :-1])


def _met(item: Tensor, at: Tensor, ids: Tensor) -> Tensor:
    """Whether real `ids` [B, Q, C] stand in their row [B, L] up to `at` [B, Q]."""
    ordered, place = F.pad(item, (0, 1)).sort(dim=1, stable=True)  # [B, L + 1], equal ones in their row's order
    wanted = ids.flatten(1).contiguous()  # [B, Q * C]
    first = torch.searchsorted(ordered, wanted).clamp_(max=item.shape[1])
    stands = (ordered.gather(1, first) == wanted) & (place.gather(1, first) <= at.repeat_interleave(ids.shape[2], 1))
    return stands.reshape(ids.shape)
