from __future__ import annotations

import torch

from userec.batch import Batch, History
from userec.objective.questions import next_item


def raw(rows: list[list[int]], pads: int = 0) -> Batch:
    length = max(map(len, rows)) + pads
    item = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = item > 0
    time = item.float() * 10
    asked = {"asked.time": torch.where(mask[:, 1:].logical_and(mask[:, :-1]), item[:, 1:] * 10, 0)}
    asked = {name: torch.cat([values, values.new_zeros(len(rows), 1)], 1) for name, values in asked.items()}
    ends = mask.sum(1) + 100
    return Batch(
        History(torch.arange(len(rows)), {"item": item, "time": time}, mask, asked=asked),
        users=torch.arange(len(rows)),
        ends=ends,
    )


ROWS = [[5, 6, 7, 8], [9, 4], [3]]


def test_all_positions_ask_for_the_event_that_follows() -> None:
    batch = next_item(raw(ROWS))
    assert batch.history.events["item"].tolist() == [[5, 6, 7], [9, 0, 0], [0, 0, 0]]
    assert batch.history.mask.tolist() == [[True] * 3, [True, False, False], [False] * 3]
    assert batch.targets is not None
    assert batch.targets.weight.tolist() == [[1, 1, 1], [1, 0, 0], [0, 0, 0]]
    assert batch.targets.query.at.tolist() == [[0, 1, 2]] * 3
    assert batch.targets.answer[batch.targets.weight > 0].tolist() == [6, 7, 8, 4]
    assert batch.targets.query.context["asked.time"][batch.targets.weight > 0].tolist() == [60, 70, 80, 40]
    assert batch.ends.tolist() == [103, 101, 100]


def test_the_last_event_leaves_no_trace_in_any_field() -> None:
    batch = next_item(raw(ROWS, pads=2))
    history = batch.history
    assert history.events["item"].shape == (3, 5)
    for values in (*history.events.values(), *history.asked.values()):
        assert not values[~history.mask].any()
    assert not (history.events["item"] == torch.tensor([8, 4, 3])[:, None]).any()


def test_last_asks_once_a_row() -> None:
    targets = next_item(raw(ROWS), "last").targets
    assert targets is not None
    assert targets.query.at.tolist() == [[2], [0], [-1]]
    assert targets.answer.tolist() == [[8], [4], [0]]
    assert targets.weight.tolist() == [[1], [1], [0]]
    assert targets.query.context["asked.time"].tolist() == [[80], [40], [0]]


def test_random_positions_are_distinct_seeded_and_fewer_in_short_rows() -> None:
    batch = raw([[2, 3, 4, 5, 6, 7, 8, 9], *ROWS])
    drawn = [next_item(batch, 3, torch.Generator().manual_seed(seed)).targets for seed in (1, 1, 2, 3, 4)]
    assert torch.equal(drawn[0].query.at, drawn[1].query.at)
    assert len({tuple(targets.query.at[0].tolist()) for targets in drawn}) > 1
    for targets in drawn:
        assert targets.weight.sum(1).tolist() == [3, 3, 1, 0]
        for at, answer, weight in zip(targets.query.at, targets.answer, targets.weight, strict=True):
            asked = at[weight > 0]
            assert asked.tolist() == sorted(set(asked.tolist()))
            assert (at[weight == 0] == -1).all()
            assert (answer[weight == 0] == 0).all()
        everywhere = next_item(batch, "all").targets.answer
        assert torch.equal(targets.answer[0], everywhere[0, targets.query.at[0]])


def test_a_row_shorter_than_the_positions_asked_for_keeps_them_all() -> None:
    targets = next_item(raw([[5, 6, 7]]), 9, torch.Generator().manual_seed(0)).targets
    assert targets.query.at.tolist() == [[0, 1]]


def test_single_events_leave_an_empty_block() -> None:
    for positions in ("all", "last", 2):
        batch = next_item(raw([[3], [4]]), positions, torch.Generator().manual_seed(0))
        assert batch.history.mask.shape == (2, 0)
        assert batch.targets.weight.sum() == 0


def test_an_unknown_item_is_never_an_answer() -> None:
    targets = next_item(raw([[5, 1, 7]])).targets
    assert targets.weight.tolist() == [[0, 1]]


def test_the_raw_batch_is_left_as_it_was() -> None:
    batch = raw(ROWS)
    before = batch.history.events["item"].clone()
    next_item(batch, 1, torch.Generator().manual_seed(0))
    assert torch.equal(batch.history.events["item"], before)
