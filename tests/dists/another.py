"""A stranger whose model has the name of `good`'s."""

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


class Newest(Encoder):
    """Another newest."""

    name = "newest"

    def encode(self, history):
        return history


@hookimpl
def userec_encoders():
    return [Newest]
