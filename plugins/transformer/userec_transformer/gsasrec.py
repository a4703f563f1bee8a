"""gSASRec: SASRec trained with generalised binary cross-entropy (Petrov & Macdonald, RecSys 2023, section 5).

L = -(beta log sigma(s+) + sum log(1 - sigma(s-))) / (k + 1) with k = 256 uniform negatives of each position's own, which may be
items of the user, and beta = alpha (t (1 - 1/alpha) + 1/alpha), alpha = k / (N - 1), t = 0.75 (equations 9 and 13): negatives are
few, so plain BCE is too sure of its positives, and beta takes that back. The loss is the objective's; the encoder is SASRec's.

Where we depart: as `sasrec` does, and its schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field as Setting

from userec_transformer.sasrec import SASRec, SASRecConfig


class GSASRecConfig(SASRecConfig):
    """The authors' setting for MovieLens-1M, but for dropout."""

    dim: int = Setting(128, ge=1)
    dropout: float = Setting(0.2, ge=0, lt=1)


class GSASRec(SASRec):
    """SASRec with the recipe of the paper: width 128, gBCE with 256 negatives."""

    name = "gsasrec"
    Config = GSASRecConfig
    recipe: ClassVar[Mapping[str, Any]] = {
        **SASRec.recipe,
        "objective": {
            **SASRec.recipe["objective"],
            "item": {"name": "next_item", "price": "gbce", "t": 0.75, "negatives": 256},
        },
    }
