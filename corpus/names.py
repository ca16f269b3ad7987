"""Names: of the two modalities, and those that corpora and features may have.

Features and corpora become folders, ids never do.
"""

import re
from typing import Literal

from ser.errors import WrongUse

Modality = Literal["audio", "text"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
RESERVED = {
    "manifests",
    "transcripts",
    "tmp",
    "bad",
    "lost+found",
}  # the last one is made with an ext file system


def is_name(name: str) -> bool:
    """Whether a feature or a corpus can have this name."""
    return NAME.fullmatch(name) is not None and name not in RESERVED


def check_name(kind: str, name: str) -> str:
    """A feature's or corpus's name, fit to be a folder. Raises `WrongUse`."""
    if not is_name(name):
        raise WrongUse(
            f"a {kind} cannot be called {name!r}; use at most 64 letters, digits, '-', '_' and '.'"
        )
    return name
