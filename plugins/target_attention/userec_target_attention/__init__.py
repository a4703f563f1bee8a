"""Models that read a history with the candidate in view, and the pooled baseline that they must beat."""

from __future__ import annotations

from collections.abc import Iterable

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    """Embedding & MLP, DIN."""
    from userec_target_attention.din import DIN
    from userec_target_attention.embedding_mlp import EmbeddingMLP

    return [EmbeddingMLP, DIN]
