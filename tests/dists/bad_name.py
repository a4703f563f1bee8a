"""A model with a name that no command line takes."""

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


class Loud(Encoder):
    name = "Very Loud"

    def encode(self, history):
        return history


@hookimpl
def userec_encoders():
    return [Loud]
