"""The proofs of an encoder's claims: one or more checks for each word of `Can`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from userec.capability import Can
from userec.encoder.contract import Encoder, has_scores
from userec.schema import FIRST
from userec.testing.build import Subject
from userec.testing.check import finite, holds, same, shape
from userec.testing.checks_encoder import scored, some_ids
from userec.testing.fit import count
from userec.testing.tiny import ask, changed_after, rows_of, span


def check_catalog(subject: Subject) -> None:
    """SCORE_CATALOG: `query.ids = None` gives [B, Q, n, A], equal to gathering every id."""
    encoder, history = subject.fitted(), subject.history()
    n = subject.schema.spaces["item"]
    _, whole = scored(encoder, history, None)
    shape(subject.name, "score of the whole catalogue", whole, (len(history.user), 1, n, whole.shape[-1]), "[B, Q, n, A]")
    _, gathered = scored(encoder, history, torch.arange(FIRST, n)[None, None])
    same(
        subject.name,
        "scores of the whole catalogue differ from the same ids one by one",
        whole[:, :, FIRST:],
        gathered,
        "SCORE_CATALOG",
    )


@torch.no_grad()
def check_dot(subject: Subject) -> None:
    """DOT_SCORE: score = queries . candidates + bias, for given ids and for the whole space."""
    encoder, history = subject.fitted(), subject.history()
    n = subject.schema.spaces["item"]
    for told, ids in (("given ids", some_ids(subject.schema, len(history.user))), ("the whole space", None)):
        encoded = encoder.encode(history)
        query = ask(history, history.last[:, None], ids)
        weight, bias = encoder.candidates(history.tasks, ids)
        shape(
            subject.name, f"candidates of {told}", weight, (*(ids.shape if ids is not None else (n,)), encoder.dim), "[..., C, D]"
        )
        asked = encoder.queries(encoded, query)
        shape(subject.name, "queries", asked, (*query.at.shape, encoder.dim), "[B, Q, D]")
        want = (asked[:, :, None] * weight).sum(-1)  # [B, Q, C]
        want = want if bias is None else want + bias
        scores = encoder.score(encoded, query)[..., 0]
        same(subject.name, f"score of {told} is not queries . candidates + bias", scores, want, "DOT_SCORE", 1e-4)


def check_future_leak(subject: Subject) -> None:
    """CAUSAL: all events after t changed, the score at t stays; tells whether `encode` or `score` looks ahead."""
    encoder, ids = subject.fitted(), some_ids(subject.schema)
    length = subject.length
    history = subject.history(shortest=length)
    for t in sorted({0, length // 2, length - 2} & set(range(length - 1))):
        at = torch.full((len(history.user), 1), t)
        other = changed_after(history, at[:, 0], schema=subject.schema)
        encoded, scores = scored(encoder, history, ids, at)
        changed, again = scored(encoder, other, ids, at)
        fault = "future leak"
        if torch.allclose(encoded.tokens[:, : t + 1], changed.tokens[:, : t + 1], atol=1e-5, rtol=1e-4):
            fault += " in score (the tokens up to there stay)"
        same(subject.name, f"score at position {t} changes when events after it change", again, scores, fault)


def check_any_position(subject: Subject) -> None:
    """ANY_POSITION: one encode answers every t, -1 included, as the history cut after t would."""
    encoder, history, ids = subject.fitted(), subject.history(shortest=1), some_ids(subject.schema)
    every = torch.minimum(torch.arange(-1, subject.length)[None], history.last[:, None])  # [B, Q]
    _, scores = scored(encoder, history, ids, every)
    shape(subject.name, "score of every position", scores, (*every.shape, ids.shape[-1], scores.shape[-1]), "[B, Q, C, A]")
    finite(subject.name, "score before any event (at = -1)", scores[:, :1], "no number at -1")
    for q in range(every.shape[1]):
        cut = span(history, torch.zeros_like(history.lengths), every[:, q] + 1)
        _, alone = scored(encoder, cut, ids)
        told = f"score at position {q - 1} differs from that of the history cut after it"
        same(subject.name, told, scores[:, q : q + 1], alone, "ANY_POSITION")


def check_user_embedding(subject: Subject) -> None:
    """EMBED_USER: `encoded.user` [B, D] is set, finite, and differs between users; a floor, which counts and scores
    all alike, need not."""
    encoder = subject.fitted()
    history = subject.history(shortest=1)
    encoded, scores = scored(encoder, history, some_ids(subject.schema))
    shape(subject.name, "encoded.user", encoded.user, (len(history.user), encoder.dim), "[B, D]")
    assert encoded.user is not None
    finite(subject.name, "encoded.user", encoded.user, "EMBED_USER")
    floor = Can.GRADIENT not in encoder.offers and has_scores(encoder)
    impersonal = floor and torch.equal(scores, scores[:1].expand_as(scores))
    holds(
        impersonal or encoded.user.std(0).max() > 0,
        f"{subject.name}: encoded.user is the same for users of different histories: EMBED_USER",
    )


def check_state_carried(subject: Subject) -> None:
    """CARRY_STATE: encode(b | state of a) == encode(a + b), whatever the length of a in each row."""
    encoder, history, ids = subject.fitted(), subject.history(shortest=2), some_ids(subject.schema)
    start = torch.zeros_like(history.lengths)
    middle = torch.minimum(torch.arange(len(start)) % 3 + 1, history.lengths - 1)
    first, _ = scored(encoder, span(history, start, middle), ids)
    holds(first.state is not None, f"{subject.name}: offers CARRY_STATE, but encoded.state is None")
    rest = span(history, middle, history.lengths)
    carried, scores = scored(encoder, replace(rest, state=first.state), ids)
    whole, want = scored(encoder, history, ids)
    fault = "state not carried"
    same(subject.name, "score after encode(b | state of a) differs from encode(a + b)", scores, want, fault)
    if carried.user is not None and whole.user is not None:
        same(
            subject.name,
            "the user embedding after encode(b | state of a) differs from encode(a + b)",
            carried.user,
            whole.user,
            fault,
        )
    assert carried.state is not None
    assert whole.state is not None
    for name, value in whole.state.items():
        same(
            subject.name,
            f"state {name!r} after encode(b | state of a) differs from encode(a + b)",
            carried.state[name],
            value,
            fault,
        )


def check_unseen_state(subject: Subject) -> None:
    """CARRY_STATE: an all-zero row of state is a user never seen."""
    encoder, history, ids = subject.fitted(), subject.history(), some_ids(subject.schema)
    encoded, scores = scored(encoder, history, ids)
    holds(encoded.state is not None, f"{subject.name}: offers CARRY_STATE, but encoded.state is None")
    assert encoded.state is not None
    for name, value in encoded.state.items():
        rows = len(history.user)
        holds(
            value.shape[:1] == (rows,),
            f"{subject.name}: state {name!r} has shape {tuple(value.shape)}, not [B, ...]: wrong shape",
        )
    zero = {name: torch.zeros_like(value) for name, value in encoded.state.items()}
    _, again = scored(encoder, replace(history, state=zero), ids)
    same(
        subject.name, "scores after an all-zero state differ from those without a state", again, scores, "state of an unseen user"
    )


def check_tasks(subject: Subject) -> None:
    """MANY_TASKS: every group of tasks in turn; A = its tasks, and no two tasks score alike."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = subject.construct()
        for group in subject.schema.tasks:
            names = tuple(task.name for task in group)
            for phase in encoder.phases:
                encoder.begin_task(names, phase)
                encoder.end_task(names, phase)
    encoder.eval()
    history = subject.history()
    found: dict[str, torch.Tensor] = {}
    for group in subject.schema.tasks:
        names = tuple(task.name for task in group)
        n = subject.schema.spaces[group[0].space]
        ids = torch.arange(FIRST, min(n, FIRST + 4))[None, None]
        _, scores = scored(encoder, replace(history, tasks=names), ids)
        want = (len(history.user), 1, ids.shape[-1], len(names))
        shape(subject.name, f"score of tasks {', '.join(names)}", scores, want, "[B, Q, C, A]")
        finite(subject.name, f"score of tasks {', '.join(names)}", scores, "MANY_TASKS")
        for a, name in enumerate(names):
            alike = [other for other, column in found.items() if torch.equal(column, scores[..., a])]
            holds(not alike, f"{subject.name}: tasks {name!r} and {', '.join(map(repr, alike))} get the same scores: MANY_TASKS")
            found[name] = scores[..., a]


def check_learns(subject: Subject) -> None:
    """GRADIENT: the loss falls on tiny data."""
    losses = subject.trace.losses
    holds(losses, f"{subject.name}: offers GRADIENT, but no parameter requires a gradient")
    last = sum(losses[-3:]) / 3
    told = f"{subject.name}: after {len(losses)} steps on fixed data the loss {losses[0]:.4f} is {last:.4f}: it does not learn"
    holds(last < losses[0] * 0.98, told)


def check_gradient_flows(subject: Subject) -> None:
    """GRADIENT: every parameter that asks for a gradient gets one, a finite one, also beside empty histories."""
    trace = subject.trace
    broken = ", ".join(trace.broken)
    holds(not trace.broken, f"{subject.name}: the gradient of {broken} is not a number: no number in gradient")
    holds(not trace.silent, f"{subject.name}: no step gave {', '.join(trace.silent)} a gradient: gradient that never flows")


def check_counting(subject: Subject) -> None:
    """Without GRADIENT: rows counted in halves, in either order, equal the whole; and counting changes what one that keeps
    anything gives: its scores, or its embeddings where it only embeds."""
    history, ids = subject.history(rows=8, shortest=2), some_ids(subject.schema)
    halves = [rows_of(history, index) for index in torch.arange(8).chunk(2)]

    def given(encoder: Encoder) -> Any:
        encoded, scores = scored(encoder, history, ids)
        return scores if has_scores(encoder) else encoded.user

    results: list[Any] = []
    for batches in ([history], halves, halves[::-1]):
        encoder = subject.fresh()
        count(encoder, batches, subject.schema)
        results.append(given(encoder.eval()))
    same(
        subject.name,
        "scores change when rows are counted in two batches",
        results[1],
        results[0],
        "batch dependence in partial_fit",
    )
    same(
        subject.name,
        "scores change with the order of the batches counted",
        results[2],
        results[0],
        "order dependence in partial_fit",
    )
    blank = subject.fresh()
    holds(
        not blank.state_dict() or not torch.equal(given(blank), results[0]),
        f"{subject.name}: partial_fit leaves what it gives as it was: it does not learn",
    )


PROOFS = (
    (Can.SCORE_CATALOG, (check_catalog,)),
    (Can.DOT_SCORE, (check_dot,)),
    (Can.CAUSAL, (check_future_leak,)),
    (Can.ANY_POSITION, (check_any_position,)),
    (Can.EMBED_USER, (check_user_embedding,)),
    (Can.CARRY_STATE, (check_state_carried, check_unseen_state)),
    (Can.MANY_TASKS, (check_tasks,)),
    (Can.GRADIENT, (check_gradient_flows, check_learns)),
)
"""Each claim with its proofs."""


def proofs(encoder: Encoder) -> Iterator[Any]:
    """The checks of what the encoder offers; without GRADIENT, that of counting."""
    for claim, checks in PROOFS:
        if claim in encoder.offers:
            yield from checks
    if Can.GRADIENT not in encoder.offers:
        yield check_counting
