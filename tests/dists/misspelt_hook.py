"""`userec_encoder` for `userec_encoders`."""

from userec.markers import hookimpl


@hookimpl
def userec_encoder():
    return []
