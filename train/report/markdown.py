"""Tables in Markdown."""

from .table import Table
from .text_table import tabulated

_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "}
_ESCAPED = {character: f"\\{character}" for character in "\\|`*_[]#~$"}
ESCAPES = str.maketrans(_ENTITIES | _ESCAPED)  # so that any text stands there as it is


def to_markdown(table: Table) -> str:
    """A heading, the table and its note."""
    body = tabulated(table, "pipe", lambda text: text.translate(ESCAPES))
    note = f"\n{table.note.translate(ESCAPES)}\n" if table.note else ""
    return f"### {table.caption.translate(ESCAPES)}\n\n{body}\n{note}"
