"""Transformers over the sequence of items."""

from __future__ import annotations

from collections.abc import Iterable

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    """SASRec, gSASRec, BERT4Rec, PinnerFormer."""
    from userec_transformer.bert4rec import BERT4Rec
    from userec_transformer.gsasrec import GSASRec
    from userec_transformer.pinnerformer import PinnerFormer
    from userec_transformer.sasrec import SASRec

    return [SASRec, GSASRec, BERT4Rec, PinnerFormer]
