"""What a check answers: findings, or that it could not be made."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["fault", "note"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check found."""

    check: str
    """The name of the check."""

    severity: Severity
    """A fault makes the result another than it says; a note is for the reader to weigh."""

    sentence: str
    """What is wrong, where, and what it does to the result."""

    ids: tuple[str, ...] = ()
    """The utterances that show it, as the file names them; all of them."""

    count: int = 0
    """How many things the finding is about: utterances, speakers, files."""


class NotChecked(Exception):
    """A check that cannot be made with what is here; the message says which file would allow it."""
