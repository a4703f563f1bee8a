"""Slices: who is in which, and that their numbers are of those users alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from userec.dataset.events import Coded, Events, Vocabulary
from userec.dataset.split import Division, SplitConfig
from userec.errors import UserError
from userec.evaluator import roc, slices, statistics
from userec.evaluator.contract import Metric
from userec.evaluator.slices import Slice, restrict, slices_of
from userec.schema import NEXT, Field, Schema


def divided(lengths: list[int], profile: Mapping[str, np.ndarray] | None = None, many: bool = False) -> tuple[Coded, Division]:
    """Users with so many training events; ids of every space are a, b, c, ..."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    store = Events(offsets, {"item": np.full(int(offsets[-1]), 2, np.int32)})
    profile = dict(profile or {})
    fields = {
        name: Field(name, "number" if x.dtype.kind == "f" else "time" if x.dtype == np.int64 else "id", many=many)
        for name, x in profile.items()
    }
    letters = Vocabulary(np.array(list("abcdefghijklmnopqrstuvwxyz"), object))
    schema = Schema(fields, dict.fromkeys(profile, 28), ((NEXT,),))
    coded = Coded("toy", store, None, dict.fromkeys(profile, letters), schema, profile, {}, {})
    return coded, Division("given", SplitConfig(), store, np.arange(len(store)), {}, {}, False, "")


def members(slices: list[Slice]) -> dict[str, list[int]]:
    return {part.name: np.flatnonzero(part.members).tolist() for part in slices}


def test_activity_is_cold_tail_and_head() -> None:
    lengths = [0, 9, 10, 11, 12, 13, 14, 15, 16, 17, 40, 50]  # ten warm users, the two most active are the head
    parts = slices_of(["activity"], *divided(lengths))
    assert members(parts) == {"activity=cold": [0, 1], "activity=tail": list(range(2, 10)), "activity=head": [10, 11]}
    assert [part.rule for part in parts] == ["training_events<10", "10<=training_events<40", "training_events>=40"]


@pytest.mark.parametrize("lengths", [[12] * 6, [3, 4], [10], [10, 10, 10, 30], list(range(5, 60)), [0]])
def test_activity_parts_everybody_once_whatever_the_ties(lengths: list[int]) -> None:
    parts = slices_of(["activity"], *divided(lengths))
    assert (np.sum([part.members for part in parts], 0) == 1).all()
    for part in parts:  # the rule says who is in
        low, _, high = part.rule.rpartition("training_events")
        inside = [
            (not low or int(low.rstrip("<=")) <= n) and (int(high[1:]) > n if high.startswith("<") else True)
            and (int(high[2:]) <= n if high.startswith(">=") else True)
            for n in lengths
        ]  # fmt: skip
        assert part.members.tolist() == inside, part


def test_equally_active_users_are_never_told_apart() -> None:
    lengths = [10] * 7 + [20] * 5
    assert members(slices_of(["activity"], *divided(lengths)))["activity=head"] == [7, 8, 9, 10, 11]


def test_a_profile_field_has_a_slice_each_value_and_none_for_the_unknown() -> None:
    column = np.array([2, 3, 2, 1, 4, 0, 3, 2], np.int32)
    parts = slices_of(["profile.job"], *divided([1] * 8, {"profile.job": column}))
    assert members(parts) == {"profile.job=a": [0, 2, 7], "profile.job=b": [1, 6], "profile.job=c": [4]}
    assert parts[0].rule == "profile.job=a"


def test_of_many_values_the_most_frequent_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "MOST", 20)
    column = np.repeat(np.arange(2, 27), np.r_[np.ones(5, int), np.full(20, 2)]).astype(np.int32)  # a..e once
    parts = slices_of(["profile.job"], *divided([1] * len(column), {"profile.job": column}))
    assert [part.name[-1] for part in parts] == list("fghijklmnopqrstuvwxy")


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_a_number_is_cut_into_quarters(kind: type) -> None:
    column: np.ndarray = np.arange(9).astype(kind)
    parts = slices_of(["profile.age"], *divided([1] * 9, {"profile.age": column}))
    assert members(parts) == {
        "profile.age=0..2": [0, 1], "profile.age=2..4": [2, 3], "profile.age=4..6": [4, 5], "profile.age=6..8": [6, 7, 8],
    }  # fmt: skip
    assert [part.rule for part in parts][::3] == ["0<=profile.age<2", "6<=profile.age<=8"]


def test_numbers_that_are_missing_alike_or_close() -> None:
    def sliced(*values: float) -> dict[str, list[int]]:
        return members(slices_of(["profile.age"], *divided([1] * len(values), {"profile.age": np.array(values, np.float32)})))

    nan = float("nan")
    assert sliced(1, nan, 2) == {"profile.age=1..2": [0, 2]}
    assert list(sliced(0.1, 0.2, 0.3, 0.4, 0.5)) == [f"profile.age=0.{i}..0.{i + 1}" for i in (1, 2, 3, 4)]
    assert sliced(nan, nan) == {}
    assert sliced(5, 5, nan, 5) == {"profile.age=5..5": [0, 1, 3]}
    assert sorted(chain.from_iterable(sliced(0, 0, 0, 0, 0, 7).values())) == [0, 1, 2, 3, 4, 5]
    close = sliced(*(1e7 + np.arange(8)))
    assert len(close) == 4
    assert sorted(chain.from_iterable(close.values())) == list(range(8))


def test_unknown_and_many_valued_names_are_refused() -> None:
    coded, division = divided([1, 1], {"profile.jobs": np.array([[2, 3], [2, 0]], np.int32)}, many=True)
    with pytest.raises(UserError, match="several values"):
        slices_of(["profile.jobs"], coded, division)
    with pytest.raises(UserError, match="unknown slice 'activty'; did you mean 'activity'"):
        slices_of(["activty"], coded, division)
    assert slices_of([], coded, division) == []


USERS = np.array([5, 0, 3, 1, 9])
HALF = Slice("half", "some<rule", np.isin(np.arange(10), [0, 1, 5, 7]))


def mean_metric(values: np.ndarray) -> Metric:
    return Metric("next", "mrr", "mrr[rank=first]", float(values.mean()), n=len(values), users=USERS, values=values)


def test_a_mean_is_of_the_own_users() -> None:
    values = np.array([1.0, 2, 3, 6, 11])
    found = restrict(mean_metric(values), HALF, 4)
    assert found is not None
    low, high = statistics.intervals(values[[0, 1, 3], None], 4)
    assert (found.value, found.low, found.high, found.n) == (3, low[0], high[0], 3)
    assert (found.task, found.metric, found.slice) == ("next", "mrr", "half")
    assert found.definition == "mrr[rank=first,slice=some<rule]"
    assert found.better == "higher"


def test_a_number_that_is_no_mean_is_measured_anew() -> None:
    rng = np.random.default_rng(0)
    unit = rng.integers(0, 5, 60)
    scores, right = rng.normal(size=60), rng.random(60) < 0.4
    metric = Metric.measured("next", "auc", "auc[ties=half]", USERS, roc.auc(scores, right, unit), better="higher")
    found = restrict(metric, HALF, 4)
    own = np.isin(unit, [0, 1, 3])
    alone = roc.auc(scores[own], right[own], np.searchsorted([0, 1, 3], unit[own]))
    assert found is not None
    assert found.value == pytest.approx(float(alone(np.ones((1, 3)))[0]))
    assert (found.low, found.high) == pytest.approx(statistics.bounds(alone, 3, 4))
    assert found.n == 3


def test_a_definition_without_facts_gets_brackets() -> None:
    found = restrict(replace(mean_metric(np.arange(5.0)), definition="mine"), HALF, 0)
    assert found is not None
    assert found.definition == "mine[slice=some<rule]"


def test_no_users_no_slice_and_none_of_all_users_together() -> None:
    metric = mean_metric(np.arange(5.0))
    assert restrict(metric, replace(HALF, members=np.zeros(10, bool)), 0) is None
    assert restrict(replace(metric, users=None, values=None), HALF, 0) is None
    assert restrict(replace(metric, values=None), HALF, 0) is None


def test_values_that_are_not_defined_stay_so() -> None:
    found = restrict(mean_metric(np.full(5, np.nan)), HALF, 0)
    assert found is not None
    assert np.isnan(found.value)
