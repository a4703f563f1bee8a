"""A hook with an argument that its specification lacks."""

from userec.markers import hookimpl


@hookimpl
def userec_encoders(device):
    return []
