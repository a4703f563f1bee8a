"""Errors a user can mend. They reach the terminal as one or two lines and exit code 2, never as a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what was asked for: the message names the thing, the place and the way out."""


class DivergedError(UserError):
    """A loss or a score stopped being a number; the last good checkpoint is kept."""


def in_words(error: BaseException) -> str:
    """An exception of somebody else's code in one line, with its kind."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'sasrec'?` where a known name is close, else the known names, else nothing."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""


def unknown(kind: str, name: str, known: Iterable[str], where: str = "") -> UserError:
    """The error for a name that nothing answers to."""
    return UserError(f"unknown {kind} {name!r}{f' in {where}' if where else ''}{did_you_mean(name, known)}")
