"""Faults whose message is one sentence for the user: which file, what is wrong, what to do.

The library raises them, and `ser.cli` alone turns them into a message and an exit code.
"""

import difflib
import json
import shlex
from collections.abc import Iterable

__all__ = [
    "CorpusError",
    "CorruptStore",
    "Diverged",
    "ExtractionStopped",
    "LeakageError",
    "MissingRows",
    "SerError",
    "StoreError",
    "UtteranceError",
    "WeightsError",
    "WrongUse",
]

# What to do where memory ends.
FREE_MEMORY = "end other programs, or use a machine with more memory"

# The name on the package index, where `ser` is somebody else's.
DISTRIBUTION = "ser-fusion"


class SerError(Exception):
    """The work failed (exit code 1)."""

    exit_code = 1


class WrongUse(SerError, ValueError):
    """The request itself is wrong: an unknown name, a path to something else (exit code 2)."""

    exit_code = 2


class CorpusError(SerError, ValueError):
    """A corpus on disk is not what it should be."""


class StoreError(SerError, OSError):
    """A store cannot be read or written."""


class CorruptStore(StoreError):
    """A file of a store is missing, cut short or altered."""


class MissingRows(SerError, LookupError):
    """The store lacks rows that are asked for."""


class UtteranceError(CorpusError):
    """One utterance that an extractor cannot use.

    Its message is the reason that the quarantine records.
    """


class CodedAudio(UtteranceError):
    """Audio in a container or codec that only ffmpeg reads; the message has its line."""


class ExtractionStopped(CorpusError):
    """Something that cannot be used, and `--on-error fail`."""


class WeightsError(WrongUse):
    """A checkpoint that is not here, or that may not be opened."""


class LeakageError(SerError):
    """Something stands in two parts of a fold."""


class Diverged(SerError):
    """The loss of a run is no longer a number.

    Its folder holds the weights of the last good epoch that was kept.
    """


def printable(text: str) -> str:
    """`text` with what could steer a terminal escaped as in JSON.

    Ids, labels and paths are someone else's data.
    """
    if text.isprintable():
        return text

    characters = []
    for character in text:
        if character.isprintable():
            characters.append(character)
        else:
            characters.append(json.dumps(character)[1:-1])
    return "".join(characters)


def unknown(kind: str, name: str, known: Iterable[str]) -> WrongUse:
    """A `WrongUse` that names the nearest known name and lists all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return WrongUse(f"unknown {kind} '{name}'{hint}; known: {', '.join(names)}")


def ser_command(*words: object) -> str:
    """A command that a message names, in backquotes, as a shell takes it.

    Words in capitals, such as CORPUS, stand for what only the user knows.
    """
    line = shlex.join(["ser", *map(str, words)])
    return f"`{line}`"
