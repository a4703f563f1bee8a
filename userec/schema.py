"""What a data set consists of: fields, label spaces, tasks. Pure values; sizes are known once the ids are coded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

PAD: Final = 0
"""The id of padding, in every space."""
UNKNOWN: Final = 1
"""The id of a value that training never saw, in every space."""
FIRST: Final = 2
"""The first real id. Ids below it are never ranked."""

Kind = Literal["item", "click", "rating", "label"]
"""What a task asks for."""

EVENT_FIELDS: Final = ("user", "item", "time", "session", "action", "rating")
"""Fixed names of event fields; others are `profile.X` (of the user), `item.X`, `asked.X`, `labels.X`."""


@dataclass(frozen=True)
class Field:
    """One column. `id` values are coded through a vocabulary; `number` is float32; `time` is int64 seconds."""

    name: str
    kind: Literal["id", "number", "time"] = "id"
    space: str = ""
    """The label space of an `id` field; its own name unless told, so that two fields may share one vocabulary."""
    many: bool = False
    """Several values a row (genres): the cell is a list, the coded column is right-padded with 0."""

    def __post_init__(self) -> None:
        if self.kind == "id" and not self.space:
            object.__setattr__(self, "space", self.name)


@dataclass(frozen=True)
class Task:
    """Something to predict, in `space`: `item` tasks ask which items are right (the next one, the liked ones), `click` tasks
    whether an item that was shown is right (1) or wrong (0), `rating` tasks which number an item gets, `label` tasks which class
    the user is of (age, gender).

    The task whose answers are the events themselves (next item) has `events=True`, every other task reads a table of labels."""

    name: str
    kind: Kind = "item"
    space: str = "item"
    events: bool = False


NEXT: Final = Task("next", "item", "item", events=True)
"""The task of a plain event table: which item comes next."""


@dataclass(frozen=True)
class Schema:
    """Fields and spaces of coded data. `spaces[s]` counts ids with the two reserved ones."""

    fields: Mapping[str, Field]
    spaces: Mapping[str, int]
    tasks: tuple[tuple[Task, ...], ...] = ((NEXT,),)
    """Groups in training order; a group is asked together and shares a label space."""
    widths: Mapping[str, int] = field(default_factory=dict)
    """Values a row of each `many` field."""

    def task(self, name: str) -> Task:
        """The task of that name. Raises KeyError."""
        return {task.name: task for task in self.all_tasks}[name]

    @property
    def all_tasks(self) -> tuple[Task, ...]:
        """The tasks of all groups, in order."""
        return tuple(task for group in self.tasks for task in group)


def answers(task: Task, schema: Schema) -> frozenset[str]:
    """Fields that hold what a label task asks: `profile.age` for `age`, and every field whose values are of its label space."""
    if task.kind != "label":
        return frozenset()
    same = {name for name, field in schema.fields.items() if field.kind == "id" and field.space == task.space}
    return frozenset({f"profile.{task.name}", f"labels.{task.name}", *same})
