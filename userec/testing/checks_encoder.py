"""The unconditional checks of an encoder: what every one must keep, whatever it claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from userec.batch import Encoded, History
from userec.capability import Can
from userec.encoder.contract import Encoder, has_scores
from userec.schema import FIRST, Schema
from userec.testing.build import Subject, restricted
from userec.testing.check import finite, holds, same, shape
from userec.testing.checks_config import check_config
from userec.testing.fit import count
from userec.testing.tiny import ask, only, pad, rows_of, tiny_catalog


def some_ids(schema: Schema, rows: int = 1, queries: int = 1, count: int = 6, seed: int = 1) -> Tensor:
    """[rows, queries, count] real item ids, distinct in each list."""
    n = schema.spaces["item"] - FIRST
    rng = torch.Generator().manual_seed(seed)
    return FIRST + torch.stack([torch.randperm(n, generator=rng)[:count] for _ in range(rows * queries)]).reshape(
        rows, queries, count
    )


@torch.no_grad()
def scored(encoder: Encoder, history: History, ids: Tensor | None, at: Tensor | None = None) -> tuple[Encoded, Tensor]:
    """(encoded, scores [B, Q, C, A]) of the question after each row's last event, or at `at` [B, Q]. An encoder that only embeds
    (`has_scores` is false) scores no candidate: C is 0."""
    encoded = encoder.encode(history)
    if not has_scores(encoder):
        return encoded, encoded.tokens.new_zeros(len(history.user), 1, 0, 1)
    return encoded, encoder.score(encoded, ask(history, history.last[:, None] if at is None else at, ids))


def check_shapes(subject: Subject) -> None:
    """tokens [B, L, D], user [B, D] or None, scores [B, Q, C, A] in float."""
    encoder, history = subject.fresh(), subject.history(rows=4)
    ids = some_ids(subject.schema, 4)
    name, rows = subject.name, len(history.user)
    holds(
        isinstance(encoder.dim, int) and encoder.dim > 0, f"{name}: dim is {encoder.dim!r}, not the width of tokens: wrong shape"
    )
    with torch.no_grad():
        encoded = encoder.encode(history)
    shape(name, "encoded.tokens", encoded.tokens, (rows, history.mask.shape[1], encoder.dim), "[B, L, D]")
    if encoded.user is not None or Can.EMBED_USER in encoder.offers:
        shape(name, "encoded.user", encoded.user, (rows, encoder.dim), "[B, D]")
    if not has_scores(encoder):
        return
    _, scores = scored(encoder, history, ids)
    asked_together = len(history.tasks) if Can.MANY_TASKS in encoder.offers else 1
    shape(name, "score", scores, (rows, 1, ids.shape[-1], asked_together), "[B, Q, C, A]")
    holds(scores.is_floating_point(), f"{name}: score is {scores.dtype}, not a float: wrong shape")


def check_padding(subject: Subject) -> None:
    """Pads appended: tokens of real events, user and scores stay."""
    encoder, ids = subject.fitted(), some_ids(subject.schema)
    history = subject.history()
    encoded, scores = scored(encoder, history, ids)
    more, again = scored(encoder, pad(history, 3), ids)
    real = history.mask
    same(
        subject.name,
        "tokens change when 3 pads are appended",
        more.tokens[:, : real.shape[1]][real],
        encoded.tokens[real],
        "padding dependence",
    )
    same(subject.name, "scores change when 3 pads are appended", again, scores, "padding dependence")
    _same_user(subject.name, "when 3 pads are appended", more, encoded, "padding dependence")


def check_row_order(subject: Subject) -> None:
    """Rows permuted: each keeps its answer."""
    encoder, history = subject.fitted(), subject.history()
    order = torch.arange(len(history.user)).flip(0)
    ids = some_ids(subject.schema, len(order))
    encoded, scores = scored(encoder, history, ids)
    other, again = scored(encoder, rows_of(history, order), ids[order])
    same(subject.name, "scores change when rows are permuted", again, scores[order], "row-order dependence")
    _same_user(subject.name, "when rows are permuted", other, _reordered(encoded, order), "row-order dependence")


def check_batch_size(subject: Subject) -> None:
    """A row alone equals the row in a batch."""
    encoder, history = subject.fitted(), subject.history()
    ids = some_ids(subject.schema, len(history.user))
    encoded, scores = scored(encoder, history, ids)
    for row in range(len(history.user)):
        index = torch.tensor([row])
        alone, one = scored(encoder, rows_of(history, index), ids[index])
        same(subject.name, f"scores of row {row} change when it stands alone", one, scores[index], "batch-size dependence")
        _same_user(subject.name, f"of row {row} when it stands alone", alone, _reordered(encoded, index), "batch-size dependence")


def check_newest(subject: Subject) -> None:
    """Told that nothing is asked but after a row's last event: its answers there stay."""
    encoder, ids = subject.fitted(), some_ids(subject.schema)
    for history in (subject.history(), rows_of(subject.history(), torch.tensor([1, 1]))):  # the second has no event
        encoded, scores = scored(encoder, history, ids)
        less, again = scored(encoder, replace(history, newest=True), ids)
        same(subject.name, "scores change when only the newest event is asked after", again, scores, "newest event misread")
        _same_user(subject.name, "when only the newest event is asked after", less, encoded, "newest event misread")
        for name, value in (encoded.state or {}).items():
            what = f"state {name!r} changes when only the newest event is asked after"
            same(subject.name, what, (less.state or {})[name], value, "newest event misread")


def check_empty_history(subject: Subject) -> None:
    """A user without events gets numbers, beside others and alone."""
    encoder, ids = subject.fitted(), some_ids(subject.schema)
    history = subject.history()
    for told, rows in (("beside others", history), ("alone", rows_of(history, torch.tensor([1, 1])))):
        encoded, scores = scored(encoder, rows, ids)
        finite(subject.name, f"score of an empty history {told}", scores, "no number on empty history")
        finite(subject.name, f"tokens beside an empty history {told}", encoded.tokens[rows.mask], "no number on empty history")
        if encoded.user is not None:
            finite(subject.name, f"user embedding of an empty history {told}", encoded.user, "no number on empty history")


def check_repeatable(subject: Subject) -> None:
    """In eval mode the same history twice gives the same scores and user, whatever the global random state."""
    encoder, history, ids = subject.fitted(), subject.history(), some_ids(subject.schema)
    encoded, first = scored(encoder, history, ids)
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        again, second = scored(encoder, history, ids)
    same(
        subject.name,
        "scores of the same history differ when asked twice in eval mode",
        second,
        first,
        "non-determinism in eval",
        1e-6,
    )
    _same_user(subject.name, "when asked twice in eval mode", again, encoded, "non-determinism in eval")


def check_modes(subject: Subject) -> None:
    """`train()` and `eval()` reach every part; training and evaluating again leaves the scores."""
    encoder, history, ids = subject.fitted(), subject.history(), some_ids(subject.schema)
    was, before = scored(encoder, history, ids)
    encoder.train()
    stuck = [name for name, part in encoder.named_modules() if not part.training]
    holds(not stuck, f"{subject.name}: train() does not reach {', '.join(map(repr, stuck))}: train mode")
    _, training = scored(encoder, replace(history, epoch=0.5), ids)
    finite(subject.name, "score in train mode", training, "train mode")
    encoder.eval()
    stuck = [name for name, part in encoder.named_modules() if part.training]
    holds(not stuck, f"{subject.name}: eval() does not reach {', '.join(map(repr, stuck))}: eval mode")
    encoder = subject.fitted().train().eval()
    now, after = scored(encoder, history, ids)
    same(subject.name, "scores change after train() and eval()", after, before, "eval mode")
    _same_user(subject.name, "after train() and eval()", now, was, "eval mode")


def check_input_kept(subject: Subject) -> None:
    """`encode` and `score` leave the history as it was."""
    encoder, history, ids = subject.fresh(), subject.history(), some_ids(subject.schema)
    columns = {"user": history.user, "mask": history.mask, **history.events, **history.profile, **history.asked}
    before = {name: x.clone() for name, x in columns.items()}
    scored(encoder, history, ids)
    changed = [name for name, x in columns.items() if not torch.equal(x, before[name])]
    holds(not changed, f"{subject.name}: encode or score writes into history's {', '.join(changed)}: batches are values")


def check_state_dict(subject: Subject) -> None:
    """All that survives is in `state_dict()`: loaded into a fresh encoder of other random weights, which sees no training events,
    scores are equal."""
    fitted, history, ids = subject.fitted(), subject.history(), some_ids(subject.schema)
    state = {name: x.clone() if isinstance(x, Tensor) else x for name, x in fitted.state_dict().items()}
    odd = [name for name, x in state.items() if not isinstance(x, Tensor)]
    holds(not odd, f"{subject.name}: state_dict holds {', '.join(odd)}, no tensors: safetensors cannot keep them: state mismatch")
    fresh = subject.fresh(seed=1, restored=True)
    try:
        fresh.load_state_dict(state)
    except RuntimeError as error:
        raise AssertionError(f"{subject.name}: a fresh encoder refuses the state_dict: state mismatch\n{error}") from error
    old, scores = scored(fitted, history, ids)
    new, again = scored(fresh, history, ids)
    fault = "state mismatch"
    same(subject.name, "scores differ after state_dict went into a fresh encoder", again, scores, fault)
    _same_user(subject.name, "after state_dict went into a fresh encoder", new, old, fault)


def check_declared_fields(subject: Subject) -> None:
    """Given the declared fields alone it works; what it asks for beyond them is named."""
    reads = subject.fresh().reads
    unknown = sorted(field for field in reads if field not in {"user", "item", "asked.time", *subject.schema.fields})
    holds(not unknown, f"{subject.name}: reads {', '.join(unknown)}, which is declared neither by the class nor by the tiny data")
    catalog = {
        space: _Declared(columns, subject.name, reads, "the catalogue")
        for space, columns in restricted(tiny_catalog(subject.schema), reads).items()
    }
    encoder = subject.construct(catalog=catalog)
    encoder.begin_task(subject.tasks, encoder.phases[0])
    history = only(subject.history(rows=5, shortest=1, length=subject.length + 1), reads)
    watched = replace(
        history,
        events=_Declared(history.events, subject.name, reads, "history.events"),
        profile=_Declared(history.profile, subject.name, reads, "history.profile"),
        asked=_Declared(history.asked, subject.name, reads, "history.asked"),
    )
    if Can.GRADIENT not in encoder.offers:
        count(encoder, [watched], subject.schema)
    encoder.eval()
    encoded = encoder.encode(watched)
    if not has_scores(encoder):
        return
    query = ask(history, history.last[:, None], some_ids(subject.schema))
    encoder.score(encoded, replace(query, context=_Declared(query.context, subject.name, reads, "query.context")))


class _Declared(dict[str, Any]):
    """A mapping with the declared fields alone, that names any other which is asked for."""

    def __init__(self, columns: Mapping[str, Any], name: str, reads: frozenset[str], where: str) -> None:
        super().__init__(columns)
        self.told = f"which `reads` ({', '.join(sorted(reads))}) does not declare: undeclared field"
        self.name, self.where = name, where

    def __missing__(self, field: str) -> Any:
        raise AssertionError(f"{self.name}: reads {field!r} of {self.where}, {self.told}")


def check_declared_user(subject: Subject) -> None:
    """Who does not declare `user` answers alike for every user id, so that re-ID cannot be solved by a table."""
    encoder = subject.fitted()
    if "user" in encoder.reads:
        return
    history, ids = subject.history(), some_ids(subject.schema)
    other = replace(history, user=history.user.roll(1))
    encoded, scores = scored(encoder, history, ids)
    changed, again = scored(encoder, other, ids)
    same(subject.name, "scores change with the user id, which `reads` does not declare", again, scores, "undeclared field")
    _same_user(subject.name, "with the user id, which `reads` does not declare", changed, encoded, "undeclared field")


def check_chunks(subject: Subject) -> None:
    """Candidates scored in chunks, in another order, or written out for each row and question: each keeps its score."""
    encoder, history = subject.fitted(), subject.history()
    ids = some_ids(subject.schema, count=10)  # [1, 1, C]
    _, whole = scored(encoder, history, ids)
    chunks = [scored(encoder, history, ids[..., start : start + 4])[1] for start in range(0, 10, 4)]
    same(subject.name, "scores change when candidates come in chunks of 4", torch.cat(chunks, 2), whole, "chunk dependence")
    order = torch.arange(10).flip(0)
    same(
        subject.name,
        "scores change with the order of candidates",
        scored(encoder, history, ids[..., order])[1],
        whole[:, :, order],
        "chunk dependence",
    )
    written = scored(encoder, history, ids.expand(len(history.user), 1, 10).contiguous())[1]
    same(subject.name, "ids [B, Q, C] score otherwise than the same ids [1, 1, C]", written, whole, "chunk dependence")


def check_long_history(subject: Subject) -> None:
    """More events than the window: no crash, and numbers."""
    encoder = subject.fitted()
    length = 40 if encoder.window is None else 2 * encoder.window + 3
    history = subject.history(rows=2, shortest=length, length=length)
    try:
        encoded, scores = scored(encoder, history, some_ids(subject.schema))
    except (IndexError, RuntimeError) as error:
        raise AssertionError(
            f"{subject.name}: {length} events, window {encoder.window}: {error}: history longer than the window"
        ) from error
    for told, value in (("score", scores), ("user embedding", encoded.user)):
        if value is not None:
            what = f"{told} after {length} events, window {encoder.window},"
            finite(subject.name, what, value, "history longer than the window")


def check_claims(subject: Subject) -> None:
    """Claims that imply others are made with them."""
    encoder = subject.fresh()
    offers, name = encoder.offers, subject.name
    holds(isinstance(offers, Can), f"{name}: offers is {offers!r}, not Can flags")
    holds(isinstance(encoder.reads, frozenset), f"{name}: reads is {type(encoder.reads).__name__}, not a frozenset")
    if Can.ANY_POSITION in offers:
        holds(Can.CAUSAL in offers, f"{name}: offers ANY_POSITION without CAUSAL, which it implies")
    if Can.GRADIENT not in offers:
        holds(
            type(encoder).partial_fit is not Encoder.partial_fit,
            f"{name}: offers no GRADIENT and has no partial_fit: it cannot learn",
        )
    if not has_scores(encoder):
        holds(Can.EMBED_USER in offers, f"{name}: has no score() and offers no EMBED_USER: nothing can be asked of it")
    if Can.DOT_SCORE in offers:
        holds(type(encoder).candidates is not Encoder.candidates, f"{name}: offers DOT_SCORE and has no candidates()")


def _same_user(name: str, when: str, got: Encoded, want: Encoded, fault: str) -> None:
    if got.user is not None and want.user is not None:
        same(name, f"the user embedding changes {when}", got.user, want.user, fault)


def _reordered(encoded: Encoded, index: Tensor) -> Encoded:
    return replace(encoded, user=None if encoded.user is None else encoded.user[index])


def always(encoder: Encoder) -> Iterator[Any]:
    """The unconditional checks, in the order in which a fault is best read; of scores alone, where the encoder has any."""
    yield from (check_claims, check_config, check_shapes, check_declared_fields, check_declared_user, check_empty_history)
    yield from (check_repeatable, check_modes, check_padding, check_row_order, check_batch_size, check_newest)
    if has_scores(encoder):
        yield check_chunks
    yield from (check_long_history, check_input_kept, check_state_dict)
