"""Sentences that several sections end a note with."""

from ..cell import Cells

CHOSEN = "The first cell is chosen on the test score, which lifts its number and its differences."
WITHOUT_TEXT = (
    "Transcripts are shown with --with-text: whether they may be passed on, the corpus’s licence "
    "says."
)


def drawn(cells: Cells, limit: int) -> str:
    """Which cells are in a plot, if not all."""
    if limit >= len(cells):
        return ""
    return f"Drawn: the first {limit} of {len(cells)} cells, in the order of their scores."
