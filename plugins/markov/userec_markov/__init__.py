"""Markov chains over the sequence of items."""

from __future__ import annotations

from collections.abc import Iterable

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


@hookimpl
def userec_encoders() -> Iterable[type[Encoder]]:
    """The order-k chain, the tree of all orders, and two metric spaces."""
    from userec_markov.context_tree import ContextTree
    from userec_markov.markov import Markov
    from userec_markov.prme import PRME

    return [Markov, ContextTree, PRME]
