"""Transformers over the sequence of items."""

from __future__ import annotations

from collections.abc import Iterable

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    """SASRec."""
    from userec_transformer.sasrec import SASRec

    return [SASRec]
