"""Questions: a raw batch of training rows becomes a history and what is asked of it. Pure functions of (batch, rng).

A raw row holds `window + ahead` events, right-padded. What the answers of `cloze` and `future` are made of, and that of a row's
last position, is hidden or cut off: it never stays in the history. Where each position of a row is asked for what follows it
(`next_item` but for `last`, `following`), the answer of an earlier one stands in the history behind it: such questions are for
an encoder that is CAUSAL."""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from userec.batch import Batch, History, Query, Targets, gather_positions
from userec.schema import FIRST, PAD, UNKNOWN

Positions = Literal["all", "last"] | int
"""Which positions of a row are asked: every one that an event follows, the last such, or so many at random."""


def next_item(batch: Batch, positions: Positions = "all", rng: torch.Generator | None = None) -> Batch:
    """Which item comes next: rows of window + 1 events -> histories [B, L] without each row's last event, Q questions.

    `weight` is 1 where an event with a real id follows. `all`: Q = L, `at` = 0..L-1. `last`: Q = 1. An int k: min(k, L)
    distinct positions a row in ascending order, drawn from `rng`; a shorter row has `at` -1 behind its own positions."""
    history = until(batch.history, batch.history.last, batch.history.mask.shape[1] - 1)
    following = batch.history.events["item"][:, 1:]  # [B, L]: the event that follows position l
    if positions == "all":
        at = torch.arange(following.shape[1], device=following.device).expand_as(following)  # [B, L]
        answer = following
    else:
        at = history.last.unsqueeze(1) if positions == "last" else _random_positions(history.mask, int(positions), rng)  # [B, Q]
        answer = gather_positions(following, at)
    return _asked(batch, history, at, answer)


def cloze(batch: Batch, mask: float, alone: float, rng: torch.Generator) -> Batch:
    """Which items are hidden: rows of window + 1 events -> histories [B, L] without each row's last event, in which a share
    `mask` of the events is hidden (in a share `alone` of the rows none is); Q = L + 1 questions, `at` = -1..L-1. Each is put when
    its event happened, a row's first too, which stands behind no other.

    Question q asks for event q from the others: `weight` is 1 where that is hidden, or a row's last. A hidden event has item 1,
    unknown, and keeps only what tells when it was: `time` and `session`; its other fields are zero."""
    items, length = batch.history.events["item"], batch.history.mask.shape[1]
    history = until(batch.history, batch.history.last, length - 1)
    drawn = torch.rand(history.mask.shape, generator=rng, device=rng.device).to(items.device) < mask
    some = torch.rand(len(items), 1, generator=rng, device=rng.device).to(items.device) >= alone
    hidden = drawn & some & history.mask  # [B, L]
    events = {name: x if name in ("time", "session") else _zeroed(x, ~hidden) for name, x in history.events.items()}
    events["item"] = history.events["item"].masked_fill(hidden, UNKNOWN)
    place = torch.arange(length, device=items.device).expand_as(items)  # [B, L + 1]
    asked = F.pad(hidden, (0, 1)) | (place == batch.history.last[:, None])
    at = torch.where(asked, place - 1, -1)
    out = _asked(batch, dataclasses.replace(history, events=events), at, items.masked_fill(~asked, PAD))
    if "asked.time" not in history.asked:
        return out
    assert out.targets is not None
    told = torch.cat([batch.history.events["time"][:, :1], out.targets.query.context["asked.time"][:, 1:]], 1)  # [B, L + 1]
    query = dataclasses.replace(out.targets.query, context={**out.targets.query.context, "asked.time": told})
    return dataclasses.replace(out, targets=dataclasses.replace(out.targets, query=query))


def future(
    batch: Batch, window: int, seconds: int | None, positions: Positions, rng: torch.Generator, anywhere: bool = False
) -> Batch:
    """Which items come in a window: rows of up to `window` events more than a history needs are cut, see `_before_future`, or,
    `anywhere`, behind any event up to there, each as likely.

    `last`: Q = W, the last event before the cut is asked for each of the W events behind it. `all`, or an int as in `next_item`:
    each position is asked for one of them at random. With `seconds`, only for those so soon after the last event."""
    history, answers = _before_future(batch.history, window, rng if anywhere else None)  # [B, L], [B, W]
    if seconds is not None:
        time = batch.history.events["time"]
        latest = gather_positions(time, history.last[:, None]) + seconds
        answers = answers.masked_fill(_behind(time, history.lengths, window) > latest, PAD)
    if positions == "last":
        return _asked(batch, history, history.last[:, None].expand_as(answers), answers)
    if positions == "all":
        at = torch.arange(history.mask.shape[1], device=answers.device).expand_as(history.mask)  # [B, Q]
    else:
        at = _random_positions(history.mask, int(positions), rng)
    real = answers >= FIRST
    answers = answers.gather(1, real.long().argsort(dim=1, descending=True, stable=True))  # the real ones first
    drawn = torch.rand(at.shape, generator=rng, device=rng.device).to(at.device)
    chosen = (drawn * real.sum(1, keepdim=True)).long().clamp(max=window - 1)  # [B, Q]
    asking = (at >= 0) & (at < history.lengths[:, None])
    return _asked(batch, history, at, answers.gather(1, chosen).masked_fill(~asking, PAD))


def following(batch: Batch, window: int) -> Batch:
    """Which items come in the next `window` events: rows cut as in `future`, and each position before the cut is asked for every
    one of the events that follow it: Q = L W questions, those of a position one after the other."""
    history, _ = _before_future(batch.history, window)
    length = history.mask.shape[1]
    items = F.pad(batch.history.events["item"], (0, window), value=PAD)
    answers = items[:, 1 : length + window].unfold(1, window, 1)  # [B, L, W]
    answers = answers.masked_fill(~history.mask.unsqueeze(-1), PAD).flatten(1)
    at = torch.arange(length, device=answers.device).repeat_interleave(window).expand_as(answers)
    return _asked(batch, history, at, answers)


def until(history: History, lengths: Tensor, size: int) -> History:
    """The first `lengths` [B] events of each row, -1 as none, as a block [B, `size`]. What stood behind is padding, in every
    field: zero."""
    mask = torch.arange(size, device=lengths.device) < lengths[:, None]
    events, asked = ({name: _zeroed(x[:, :size], mask) for name, x in part.items()} for part in (history.events, history.asked))
    return dataclasses.replace(history, mask=mask, events=events, asked=asked)


def _before_future(history: History, window: int, rng: torch.Generator | None = None) -> tuple[History, Tensor]:
    """(each row without its last `window` events, or, where it is shorter than twice that, without its newer half; the items
    behind the cut [B, W]). With an `rng`, cut behind a random event before there."""
    cut = history.lengths - (history.lengths // 2).clamp(max=window)
    if rng is not None:
        cut = 1 + (torch.rand(cut.shape, generator=rng, device=rng.device).to(cut.device) * cut).long().clamp(max=cut - 1)
    return until(history, cut, max(int(cut.max()), 1)), _behind(history.events["item"], cut, window)


def _behind(values: Tensor, cut: Tensor, window: int) -> Tensor:
    """The `window` values of [B, L] from `cut` [B] on: [B, window], zeros behind the block."""
    place = cut[:, None] + torch.arange(window, device=cut.device)
    return F.pad(values, (0, window)).gather(1, place)


def _asked(batch: Batch, history: History, at: Tensor, answer: Tensor) -> Batch:
    """The batch with the `history` that is left and its questions; `weight` is 1 where the answer [B, Q] is a real id."""
    context = {name: gather_positions(values, at) for name, values in history.asked.items()}
    ends = None if batch.ends is None else batch.ends - (batch.history.lengths - history.lengths)
    targets = Targets(Query(at, context=context), answer, weight=(answer >= FIRST).float())
    return dataclasses.replace(batch, history=history, ends=ends, targets=targets)


def _zeroed(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask.reshape(*mask.shape, *[1] * (values.dim() - 2)), PAD)


def _random_positions(mask: Tensor, count: int, rng: torch.Generator | None) -> Tensor:
    """[B, min(count, L)] distinct positions of real events, ascending, -1 where a row has fewer."""
    keys = torch.rand(mask.shape, generator=rng, device=rng.device if rng is not None else mask.device).to(mask.device)
    chosen = keys.masked_fill(~mask, -1).topk(min(count, mask.shape[1]), dim=1)  # [B, Q]
    behind = mask.shape[1]
    at = chosen.indices.masked_fill(chosen.values < 0, behind).sort(1).values
    return at.masked_fill(at == behind, -1)
