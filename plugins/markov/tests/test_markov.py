from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from userec_markov.markov import Markov, MarkovConfig

from userec.batch import Batch, History, Query
from userec.builtin.kernels import userec_kernels
from userec.engine.compose import Builder
from userec.kernel.dispatch import Kernels
from userec.schema import NEXT, Field, Schema, Task

N = 9  # ids, of which 7 are real


def markov(sessions: bool = False, **values: Any) -> Markov:
    fields = {"item": Field("item")} | ({"session": Field("session")} if sessions else {})
    build = Builder({}, Schema(fields, {"item": N, "session": 9}), {}, Kernels(userec_kernels()))
    return Markov(MarkovConfig(**{"min_count": 1} | values), build).eval()


def history(rows: list[list[int]], pads: int = 0, session: list[list[int]] | None = None) -> History:
    length = max([len(row) for row in rows] + [0]) + pads

    def block(of: list[list[int]]) -> torch.Tensor:
        return torch.tensor([row + [0] * (length - len(row)) for row in of], dtype=torch.int64).reshape(len(of), length)

    item = block(rows)
    events = {"item": item} | ({} if session is None else {"session": block(session)})
    return History(torch.arange(len(rows)) + 2, events, item > 0, tasks=("next",))


def fitted(rows: list[list[int]], **values: Any) -> Markov:
    encoder = markov(**values)
    encoder.partial_fit(Batch(history(rows)))
    return encoder


def logs(encoder: Markov, rows: list[list[int]], ids: torch.Tensor | None = None) -> torch.Tensor:
    seen = history(rows)
    return encoder.score(encoder.encode(seen), Query(seen.last[:, None], ids))[:, 0, :, 0]


def by_hand(rows: list[list[int]], past: list[int], x: int, order: int, smoothing: float = 1.0, min_count: int = 1) -> float:
    """The recursion of the docstring with dictionaries."""
    events = [item for row in rows for item in row]
    p = (events.count(x) + smoothing) / (len(events) + smoothing * (N - 2))
    for k in range(1, min(order, len(past)) + 1):
        followed = Counter(row[t] for row in rows for t in range(k, len(row)) if row[t - k : t] == past[-k:])
        if followed.total() >= min_count:
            p = (followed[x] + len(followed) * p) / (followed.total() + len(followed))
    return p


ROWS = [[2, 3, 4, 2, 3, 5], [2, 3, 4, 6], [7, 3, 5], [8], [4, 2, 3, 4]]
PASTS = [[], [2], [2, 3], [7, 3], [6, 8], [8, 3], [4, 2, 3], [5, 4, 2, 3], [6, 2, 3]]
items = st.integers(2, N - 1)
sequences = st.lists(st.lists(items, min_size=1, max_size=8), min_size=1, max_size=6)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("min_count", [1, 2])
def test_the_recursion(order: int, min_count: int) -> None:
    p = logs(fitted(ROWS, order=order, min_count=min_count, smoothing=0.5), PASTS).exp()
    for row, past in zip(p, PASTS, strict=True):
        for x in range(2, N):
            assert float(row[x]) == pytest.approx(by_hand(ROWS, past, x, order, 0.5, min_count), rel=1e-5)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(sequences, sequences, st.integers(1, 4), st.integers(1, 2))
def test_every_distribution_sums_to_one_and_candidates_equal_the_catalogue(
    rows: list[list[int]], pasts: list[list[int]], order: int, min_count: int
) -> None:
    encoder = fitted(rows, order=order, min_count=min_count)
    whole = logs(encoder, pasts)
    assert torch.allclose(whole[:, 2:].exp().sum(1), torch.ones(len(pasts)), atol=1e-5)
    ids = torch.randint(N, (len(pasts), 1, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(logs(encoder, pasts, ids), whole.gather(1, ids[:, 0]))
    assert torch.equal(logs(encoder, pasts, torch.arange(N).reshape(1, 1, -1)), whole)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(sequences, st.randoms(use_true_random=False), st.integers(1, 3))
def test_counts_do_not_depend_on_batches_or_their_order(rows: list[list[int]], random: Any, size: int) -> None:
    once = fitted(rows).state_dict()
    shuffled, encoder = random.sample(rows, len(rows)), markov()
    for start in range(0, len(rows), size):
        encoder.partial_fit(Batch(history(shuffled[start : start + size], pads=2)))
        encoder.state_dict()  # a checkpoint in between changes nothing
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, once[name])


def test_contexts_do_not_cross_users() -> None:
    encoder = fitted([[2, 3], [4, 5]])
    assert torch.allclose(logs(encoder, [[3]]), logs(encoder, [[]]))  # nothing ever followed 3
    assert logs(encoder, [[4]])[0, 5] > logs(encoder, [[]])[0, 5]


def test_contexts_do_not_cross_sessions() -> None:
    encoder = markov(sessions=True)
    encoder.partial_fit(Batch(history([[2, 3, 4, 5]] * 4, session=[[2, 2, 3, 3]] * 4)))
    assert encoder.reads == {"item", "session"}

    def asked(row: list[int], session: list[int]) -> torch.Tensor:
        seen = history([row], session=[session])
        return encoder.score(encoder.encode(seen), Query(seen.last[:, None]))[0, 0, :, 0]

    assert torch.allclose(asked([3], [2]), asked([], []))  # only another session followed 3
    assert asked([2], [2])[3] > asked([], [])[3]
    assert torch.equal(asked([2, 3, 4], [2, 2, 3]), asked([4], [3]))
    alone = markov(sessions=True)
    alone.partial_fit(Batch(history([[2, 3, 4]] * 4, session=[[1, 1, 1]] * 4)))  # events of no session
    assert [len(order.pairs) for order in alone._made()[1]] == [0, 0]


def test_an_empty_history_is_popularity() -> None:
    scores = logs(fitted(ROWS), [[], []])
    counts = torch.tensor([sum(row.count(x) for row in ROWS) for x in range(2, N)])
    assert torch.isfinite(scores).all()
    assert torch.allclose(scores[0, 2:].exp(), (counts + 1) / (counts + 1).sum())


def test_never_fitted_is_uniform() -> None:
    assert torch.allclose(logs(markov(), [[2, 3], []])[:, 2:].exp(), torch.full((2, N - 2), 1 / (N - 2)))


def test_one_encode_answers_every_position_and_no_later_event_counts() -> None:
    encoder, past = fitted(ROWS), [4, 2, 3, 4, 6]
    every = encoder.score(encoder.encode(history([past], pads=3)), Query(torch.arange(-1, 5)[None]))[0, :, :, 0]
    for t in range(-1, 5):
        assert torch.allclose(every[t + 1], logs(encoder, [past[: t + 1]])[0])
        changed = history([past[: t + 1] + [7] * (4 - t)])
        assert torch.equal(encoder.score(encoder.encode(changed), Query(torch.tensor([[t]])))[0, 0, :, 0], every[t + 1])


def test_only_the_window_counts() -> None:
    encoder = fitted(ROWS, order=2)
    assert encoder.window == 2
    assert torch.equal(logs(encoder, [[8, 8, 2, 3]]), logs(encoder, [[2, 3]]))


def test_reserved_ids_are_least_likely_and_an_unknown_item_backs_off() -> None:
    scores = logs(fitted(ROWS), [[2, 3], [1], [1, 3]])
    assert (scores[:, :2] < scores[:, 2:].min()).all()
    assert torch.allclose(scores[1], logs(fitted(ROWS), [[]])[0])
    assert torch.allclose(scores[2], logs(fitted(ROWS, order=1), [[3]])[0])


def test_the_state_survives() -> None:
    encoder = fitted(ROWS, order=3)
    restored = markov(order=3)
    restored.load_state_dict(encoder.state_dict())
    assert torch.equal(logs(restored, PASTS), logs(encoder, PASTS))
    restored.partial_fit(Batch(history(ROWS)))
    encoder.partial_fit(Batch(history(ROWS)))
    assert torch.equal(logs(restored, PASTS), logs(encoder, PASTS))
    restored.load_state_dict(fitted([[2, 3]], order=3).state_dict())
    assert torch.equal(logs(restored, PASTS), logs(fitted([[2, 3]], order=3), PASTS))


def test_a_table_of_labels_is_none_of_its_questions() -> None:
    tasks = ((NEXT,), (Task("click", "item", "click"), Task("like"), Task("age", "label", "age")))
    schema = Schema({"item": Field("item")}, {"item": N, "click": 5, "age": 4}, tasks)
    encoder = Markov(MarkovConfig(), Builder({}, schema, {}, Kernels(userec_kernels())))
    assert encoder.refuses(("next",)) == []
    for task in ("click", "like", "age"):
        (reason,) = encoder.refuses((task,))
        assert repr(task) in reason
        assert "next" in reason
