"""The two pluggy markers, in a file of their own so that a plugin imports nothing else of the host."""

from typing import Final

import pluggy

API: Final = 1
"""The version of the hook API. It is part of the entry-point group's name, as in pytest's `pytest11`."""

GROUP: Final = f"userec{API}"

hookspec = pluggy.HookspecMarker("userec")
hookimpl = pluggy.HookimplMarker("userec")
