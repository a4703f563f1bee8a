"""Where the answers of a task live: the items' own table, or a table a label space, made when a task first asks for it."""

from __future__ import annotations

from torch import Tensor, nn

from userec.encoder.contract import Build, Table


class Heads(nn.Module):
    """Tables of width `dim` for every label space but the items'."""

    def __init__(self, build: Build, dim: int) -> None:
        super().__init__()
        self.spaces = {task.name: task.space for task in build.schema.all_tasks}
        self.make = lambda space: build.table(space, dim)  # a closure: a copied encoder does not copy the world
        self.tables = nn.ModuleDict()

    def begin(self, tasks: tuple[str, ...]) -> None:
        """Make the tables that the tasks lack; call it in `begin_task`."""
        for space in (self.spaces[task] for task in tasks):
            if space != "item" and _key(space) not in self.tables:
                self.tables[_key(space)] = self.make(space)

    def table_of(self, tasks: tuple[str, ...], items: Table) -> Table:
        """The table of the space that the tasks share; `items` where that is the items' or nothing was asked."""
        space = self.spaces[tasks[0]] if tasks else "item"
        return items if space == "item" else self.tables[_key(space)]  # type: ignore[return-value]

    def candidates(
        self, tasks: tuple[str, ...], items: Table, ids: Tensor | None = None, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """`Encoder.candidates` of a model that scores by a table: `items` with their `bias` [n], or a label task's classes, which
        have none."""
        table = self.table_of(tasks, items)
        own = bias if table is items else None
        if ids is None:
            return table.all(), own
        return table(ids), None if own is None else own[ids]


def _key(space: str) -> str:
    """A module's name holds no dot."""
    return space.replace(".", "/")
