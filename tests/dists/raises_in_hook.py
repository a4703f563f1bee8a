"""Observes well, brings a kernel, and raises when asked for its models: nothing of it may stay."""

from userec.kernel.contract import Kernel
from userec.markers import hookimpl

SEEN = []


@hookimpl
def userec_kernels():
    return [Kernel("thrice", "torch", 0, load=lambda: lambda x: 3 * x, reference=True)]


@hookimpl
def userec_progress(step):
    SEEN.append(step)


@hookimpl
def userec_encoders():
    yield from ()
    raise RuntimeError("no models today\n(second line)")
