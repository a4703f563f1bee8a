"""Models of life-long histories: a cheap search over all events, attention over those that it keeps."""

from __future__ import annotations

from collections.abc import Iterable

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    """TWIN."""
    from userec_lifelong.twin import TWIN

    return [TWIN]
