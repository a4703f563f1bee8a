"""Two one-feature baselines: was an item of the candidate's category among the user's events, and how many were?

Uniform negatives are mostly of categories that the user never touched, so these alone tell them from positives: a model on
sampled-negative data has to beat them clearly before it has shown anything."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from userec.batch import Batch, Encoded, History, Query
from userec.capability import Can
from userec.config import Config
from userec.encoder.contract import Build, Encoder
from userec.errors import UserError, did_you_mean
from userec.markers import hookimpl
from userec.schema import FIRST


class CategoryConfig(Config):
    """Which category."""

    field: str = "item.category"
    """A field of the catalogue that holds one id an item."""


class CategoryCount(Encoder):
    """score = events of the candidate's category up to the question. An item without a category shares it with none.

    There is nothing to learn: the catalogue is given, and a history tells its own categories."""

    name = "category_count"
    Config = CategoryConfig
    offers = Can.SCORE_CATALOG | Can.CAUSAL | Can.ANY_POSITION

    category: Tensor

    def __init__(self, config: CategoryConfig, build: Build) -> None:
        super().__init__(config, build)
        columns = build.catalog.get("item", {})
        declared = build.schema.fields.get(config.field)
        if config.field not in columns or declared is None:
            has = did_you_mean(config.field, columns)
            raise UserError(f"encoder {self.name!r}: the catalogue has no field {config.field!r}{has}")
        if declared.kind != "id" or declared.many:
            raise UserError(f"encoder {self.name!r}: encoder.field {config.field!r} does not hold one id an item; choose another")
        self.dim = 1
        self.spaces = {task.name: task.space for task in build.schema.all_tasks}
        self.reads = frozenset({"item", config.field})
        self.register_buffer("category", columns[config.field].long(), persistent=False)  # [n]; the data set's, not learned

    def refuses(self, tasks: tuple[str, ...]) -> list[str]:
        """Only items have categories."""
        others = [task for task in tasks if self.spaces[task] != "item"]
        return [f"encoder {self.name!r} scores items, which task {task!r} does not ask for" for task in others]

    def partial_fit(self, batch: Batch) -> None:
        """Nothing is counted ahead of the question."""

    def encode(self, history: History) -> Encoded:
        category = self.category[history.events["item"]] * history.mask  # [B, L]
        tokens = torch.zeros(*category.shape, 1, device=category.device)
        return Encoded(history, tokens, cache={"category": category})

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        """[B, Q, C, 1], by two binary searches a candidate in the sorted categories of the events so far."""
        category: Tensor = encoded.cache["category"]  # [B, L]
        place = torch.arange(category.shape[1], device=category.device)
        so_far = torch.where(place <= query.at[:, :, None], category[:, None], 0).sort(-1).values  # [B, Q, L]
        # Over the whole catalogue each category is counted once: [K], else [B|1, Q|1, C].
        wanted, which = self.category.unique(return_inverse=True) if query.ids is None else (self.category[query.ids], None)
        wanted = wanted.expand(*query.at.shape, wanted.shape[-1]).contiguous()
        found = torch.searchsorted(so_far, wanted, right=True) - torch.searchsorted(so_far, wanted)  # [B, Q, C|K]
        found = torch.where(wanted >= FIRST, found, 0).to(encoded.tokens.dtype)
        return (found if which is None else found[..., which]).unsqueeze(-1)


class CategorySeen(CategoryCount):
    """score = 1 where an event of the candidate's category precedes the question, else 0."""

    name = "category_seen"

    def score(self, encoded: Encoded, query: Query) -> Tensor:
        return super().score(encoded, query).clamp(max=1)


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    return [CategorySeen, CategoryCount]
