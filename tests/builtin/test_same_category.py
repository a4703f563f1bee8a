"""The one-feature baselines of sampled-negative data, against counting by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from userec.batch import History, Query
from userec.builtin.same_category import CategoryConfig, CategoryCount, CategorySeen
from userec.errors import UserError
from userec.schema import NEXT, Field, Schema, Task

CATEGORY = torch.tensor([0, 0, 2, 2, 3, 3, 3, 1])  # items 2, 3 | 4, 5, 6 | 7 has none
FIELDS = {
    "item.category": Field("item.category"),
    "item.tags": Field("item.tags", many=True),
    "item.year": Field("item.year", "number"),
}
SCHEMA = Schema(FIELDS, {"item": 8, "item.category": 4, "age": 4}, ((NEXT,), (Task("age", "label", "age"),)))
CATALOG = {"item": {"item.category": CATEGORY, "item.tags": torch.zeros(8, 2).long(), "item.year": torch.zeros(8)}}
ITEMS = torch.tensor([[2, 4, 5, 7, 3], [6, 6, 0, 0, 0], [0, 0, 0, 0, 0]])


def make(kind: type[CategoryCount], field: str = "item.category") -> CategoryCount:
    return kind(CategoryConfig(field=field), SimpleNamespace(schema=SCHEMA, catalog=CATALOG))  # type: ignore[arg-type]


def history() -> History:
    return History(torch.arange(3), {"item": ITEMS}, ITEMS > 0, tasks=("next",))


@pytest.mark.parametrize("ids", [None, torch.tensor([[[5, 2, 7, 1, 0]]]), torch.arange(72).reshape(3, 6, 4) % 8])
def test_events_of_the_candidates_category_up_to_the_question(ids: torch.Tensor | None) -> None:
    at = torch.arange(-1, 5).expand(3, 6)
    asked = (torch.arange(8).reshape(1, 1, -1) if ids is None else ids).expand(3, 6, -1)
    want = np.zeros(asked.shape)
    for b, q, c in np.ndindex(*asked.shape):
        kind = int(CATEGORY[asked[b, q, c]])
        want[b, q, c] = sum(kind >= 2 and int(CATEGORY[item]) == kind for item in ITEMS[b, :q].tolist())
    count, seen = make(CategoryCount), make(CategorySeen)
    assert want.max() == 2
    assert count.score(count.encode(history()), Query(at, ids))[..., 0].tolist() == want.tolist()
    assert seen.score(seen.encode(history()), Query(at, ids))[..., 0].tolist() == (want > 0).astype(float).tolist()


def test_it_reads_the_field_that_it_was_told() -> None:
    assert make(CategoryCount).reads == {"item", "item.category"}
    assert not make(CategorySeen).state_dict()


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("item.categori", "encoder 'category_count': the catalogue has no field 'item.categori'; did you mean 'item.category'"),
        ("item.tags", "does not hold one id an item"),
        ("item.year", "does not hold one id an item"),
    ],
)
def test_a_catalogue_without_such_a_field_is_told(field: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make(CategoryCount, field)
    assert len(str(caught.value).splitlines()) == 1


def test_classes_have_no_category() -> None:
    assert make(CategorySeen).refuses(("next",)) == []
    assert make(CategorySeen).refuses(("age",)) == ["encoder 'category_seen' scores items, which task 'age' does not ask for"]
