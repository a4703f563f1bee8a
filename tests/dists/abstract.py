"""A model that cannot encode."""

from userec.encoder.contract import Encoder
from userec.markers import hookimpl


class Idle(Encoder):
    name = "idle"


@hookimpl
def userec_encoders():
    return [Idle]
