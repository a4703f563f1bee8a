"""Brings two models of one name."""

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


class One(Encoder):
    name = "one"

    def encode(self, history):
        return history


class Two(One):
    """Inherits the name."""


@hookimpl
def userec_encoders():
    return [One, Two]
