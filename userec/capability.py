"""What an encoder can do: claims, each with its proof in `userec.testing`. Compatibility is set inclusion."""

from __future__ import annotations

from enum import Flag, auto


class Can(Flag):
    """A claim an encoder makes in `offers`, and an objective or evaluator asks for in `needs`."""

    NOTHING = 0
    SCORE_CATALOG = auto()
    """`query.ids = None` scores the whole label space; equals gathering the same ids one by one."""
    DOT_SCORE = auto()
    """`score` = queries . candidates + bias; opens fused losses and nearest-neighbour export."""
    CAUSAL = auto()
    """No answer at t uses an event after t."""
    ANY_POSITION = auto()
    """One `encode` answers every t; the score at t equals that of the history cut after t. Claim CAUSAL with it."""
    EMBED_USER = auto()
    """`encoded.user` [B, D] is set."""
    CARRY_STATE = auto()
    """State is a value: encode(b | state of a) equals encode(a + b)."""
    MANY_TASKS = auto()
    """Honours `history.tasks`; scores differ between tasks."""
    GRADIENT = auto()
    """Trains by `loss.backward()`; without it the encoder has `partial_fit`."""

    @property
    def words(self) -> str:
        """`CAUSAL, GRADIENT`: the single claims in it, sorted."""
        return ", ".join(sorted(str(one.name) for one in self)) or "nothing"
