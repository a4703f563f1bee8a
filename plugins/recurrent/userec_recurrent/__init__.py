"""Recurrent models of users: GRU4Rec, HRNN, RRN."""

from __future__ import annotations

from collections.abc import Iterable

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    """The models."""
    from userec_recurrent.gru4rec import GRU4Rec
    from userec_recurrent.hrnn import HRNN
    from userec_recurrent.rrn import RRN

    return [GRU4Rec, HRNN, RRN]
