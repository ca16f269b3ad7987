"""Names: of the two modalities, and those that corpora and features may have.

Features and corpora become folders, ids never do.
"""

import re
from typing import Literal

from ser.errors import WrongUse

Modality = Literal["audio", "text"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

# What else lies in a store; `lost+found` is made with an ext file system.
RESERVED = {"manifests", "transcripts", "tmp", "bad", "lost+found"}


def is_name(name: str) -> bool:
    """Whether a feature or a corpus can have this name."""
    return NAME.fullmatch(name) is not None and name not in RESERVED


def check_name(kind: str, name: str) -> str:
    """A feature's or corpus's name, fit to be a folder. Raises `WrongUse`."""
    if not is_name(name):
        rule = "use at most 64 letters, digits, '-', '_' and '.'"
        raise WrongUse(f"a {kind} cannot be called {name!r}; {rule}")
    return name
