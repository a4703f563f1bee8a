"""HSTU: sequential transduction with pointwise attention, position and time bias."""

from __future__ import annotations

from collections.abc import Iterable

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    """HSTU, and its large setting."""
    from userec_hstu.hstu import HSTU, HSTULarge

    return [HSTU, HSTULarge]
