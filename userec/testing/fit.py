"""The smallest training: fixed rows, fixed candidates, softmax of `score`. No objective, so that a check blames the encoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from userec.batch import Batch, Encoded, History, Query, Targets, gather_positions
from userec.capability import Can
from userec.encoder.contract import Encoder
from userec.schema import FIRST, Schema
from userec.testing.tiny import ask, span

NEGATIVES = 7


@dataclass(frozen=True)
class Trace:
    """What training showed: the loss of each step; parameters that no step gave a gradient, or one that was not a number."""

    losses: tuple[float, ...]
    silent: tuple[str, ...]
    broken: tuple[str, ...]


def question(encoder: Encoder, history: History, schema: Schema) -> tuple[History, Query, Tensor]:
    """(history without each row's last event, query, weight [B, Q]): candidate 0 is the event that came next. All positions where
    ANY_POSITION is offered, else the last one."""
    rng = torch.Generator().manual_seed(5)
    asked = span(history, torch.zeros_like(history.lengths), (history.lengths - 1).clamp(min=0))
    if Can.ANY_POSITION in encoder.offers:
        at = torch.arange(-1, asked.mask.shape[1])[None].expand(len(history.user), -1)  # [B, Q]
    else:
        at = asked.last[:, None]
    answer = history.events["item"].gather(1, (at + 1).clamp(max=history.mask.shape[1] - 1))  # [B, Q]
    n = schema.spaces["item"]
    negatives = torch.randint(FIRST, n, (*at.shape, NEGATIVES), generator=rng)
    negatives = torch.where(negatives == answer[..., None], FIRST + (negatives - FIRST + 1) % (n - FIRST), negatives)
    weight = (at < history.last[:, None]).float()
    at = torch.minimum(at, asked.last[:, None])
    return asked, ask(asked, at, torch.cat([answer[..., None], negatives], -1)), weight


def price(scores: Tensor, weight: Tensor) -> Tensor:
    """Mean softmax loss of candidate 0: scores [B, Q, C, A], weight [B, Q] -> scalar."""
    losses = -F.log_softmax(scores, 2)[:, :, 0].mean(-1)  # [B, Q]
    return (losses * weight).sum() / weight.sum().clamp(min=1)


def loss_of(encoder: Encoder, encoded: Encoded, query: Query, weight: Tensor) -> Tensor:
    """The loss with the encoder's own auxiliary losses, a scalar added and scores priced."""
    total = price(encoder.score(encoded, query), weight)
    for extra in encoder.auxiliary(encoded, query).values():
        total = total + (extra if extra.dim() == 0 else price(extra, weight))
    return total


def train(encoder: Encoder, history: History, schema: Schema, steps: int = 12, lr: float = 0.03) -> Trace:
    """Fit the encoder to the rows, seeded; it is left in eval mode."""
    parameters = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    if not parameters:
        return Trace((), (), ())
    history, query, weight = question(encoder, history, schema)
    optimizer = torch.optim.Adam(parameters.values(), lr)
    losses, moved, broken = [], set(), set()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(11)
        encoder.train()
        for step in range(steps):
            now = History(**{**vars(history), "epoch": step / steps})
            loss = loss_of(encoder, encoder.encode(now), query, weight)
            optimizer.zero_grad()
            loss.backward()
            for name, p in parameters.items():
                if p.grad is not None and not p.grad.isfinite().all():
                    broken.add(name)
                elif p.grad is not None and p.grad.any():
                    moved.add(name)
            losses.append(loss.item())
            if broken:
                break
            optimizer.step()
        encoder.eval()
    return Trace(tuple(losses), tuple(sorted(parameters.keys() - moved - broken)), tuple(sorted(broken)))


def count(encoder: Encoder, histories: Iterable[History], schema: Schema) -> None:
    """One counting pass over the rows, a batch each, and the end of the task. A task that reads labels is asked about each
    row's last item, with a label of 1 to 5 by item."""
    tasks: tuple[str, ...] = ()
    for history in histories:
        tasks = history.tasks
        targets = None
        if tasks and not schema.task(tasks[0]).events:
            answer = gather_positions(history.events["item"], history.last[:, None])  # [B, 1]
            targets = Targets(ask(history, history.last[:, None]), answer, (1.0 + answer % 5)[..., None, None])
        encoder.partial_fit(Batch(history, targets))
    encoder.end_task(tasks, encoder.phases[0])
