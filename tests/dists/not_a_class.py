"""Returns an instance of nothing."""

from userec.markers import hookimpl


@hookimpl
def userec_encoders():
    return ["sasrec"]
