"""What `ser report` prints."""

from collections.abc import Sequence
from textwrap import fill

from ser.errors import WrongUse
from ser.train.run_folder import Run

from .cell import Cells
from .conditions import cautions
from .sections.calibration import calibration_table, votes_table
from .sections.ratings import ratings_table
from .sections.results import chosen_table, corpora_table, papers_table, results_table
from .sections.significance import papers_tests_table, significance_table
from .table import Table
from .text_table import tabulated

WIDTH = 110  # letters in a line of words


def report_text(cells: Cells, unfinished: Sequence[Run], paired: bool = False) -> str:
    """Each cell's scores, the papers' numbers beside them, and the paired tests if requested.

    Raises `WrongUse` if tests are requested for fewer than two cells that learn classes.
    """
    classifying = [cell for cell in cells if cell.scores.classes]
    if paired and len(classifying) < 2:
        raise WrongUse(_no_pair(cells))

    tables = [
        results_table(classifying),
        calibration_table(classifying),
        votes_table(classifying),
        papers_table(classifying),
        ratings_table(cells),
        corpora_table(cells),
        chosen_table(cells),
    ]
    if paired:
        tables += [significance_table(classifying), papers_tests_table(classifying)]

    pieces = [fill(caution, WIDTH) for caution in cautions(cells)]
    for table in tables:
        if table:
            pieces += _table_pieces(table)
    if unfinished:
        noun = "run" if len(unfinished) == 1 else "runs"
        pieces.append(f"not finished, and counted nowhere here: {len(unfinished)} {noun}")
    return "\n\n".join(pieces)


def _table_pieces(table: Table) -> list[str]:
    pieces = [table.caption, tabulated(table)]
    if table.note:
        pieces.append(fill(table.note, WIDTH))
    return pieces


def _no_pair(cells: Cells) -> str:
    """Why nothing can be tested, and the remedy."""
    which = "are one cell"
    if len(cells) > 1:
        which = "have fewer than two cells of classes, which the tests are for"
    return f"--paired compares cells, and these runs {which}; name the runs of another one too"
