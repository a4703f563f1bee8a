"""Convolutions over the sequence of items: Caser, NextItNet."""

from __future__ import annotations

from collections.abc import Iterable

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    """Caser and NextItNet."""
    from userec_convolution.caser import Caser
    from userec_convolution.nextitnet import NextItNet

    return [Caser, NextItNet]
