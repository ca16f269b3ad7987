"""Faults whose message is one sentence for the user: which file, what is wrong, what to do.

The library raises them, and `ser.cli` alone turns them into a message and an exit code.
"""

import difflib
from collections.abc import Iterable


class SerError(Exception):
    """The work failed (exit code 1)."""

    exit_code = 1


class WrongUse(SerError, ValueError):
    """The request itself is wrong: an unknown name, a path that is not what it should be (exit code 2)."""

    exit_code = 2


class CorpusError(SerError, ValueError):
    """A corpus on disk is not what it should be."""


class StoreError(SerError, OSError):
    """A store cannot be read or written."""


class CorruptStore(StoreError):
    """A file of a store is missing, cut short or altered."""


class MissingRows(SerError, LookupError):
    """The store lacks rows that are asked for."""


def unknown(kind: str, name: str, known: Iterable[str]) -> WrongUse:
    """A `WrongUse` that names the nearest known name and lists all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return WrongUse(f"unknown {kind} '{name}'{hint}; known: {', '.join(names)}")
