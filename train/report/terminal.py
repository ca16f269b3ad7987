"""What `ser report` prints."""

from collections.abc import Callable, Sequence
from textwrap import fill

from ser.errors import WrongUse, printable, unknown
from ser.train.run_folder import Run

from .cell import Cells
from .conditions import cautions
from .fitted_table import fitted
from .sections.against_linear import against_linear, against_linear_table
from .sections.calibration import calibration_table, votes_table
from .sections.errors import hardest_table
from .sections.importance import Importance, importance_table
from .sections.ratings import ratings_table
from .sections.results import chosen_table, corpora_table, papers_table, results_table
from .sections.significance import papers_tests_table, significance_table
from .sections.training import layers_table
from .sections.what_was_run import (
    commands_table,
    features_table,
    left_out_table,
    protocols_table,
    runs_table,
    settings_table,
    versions_table,
)
from .short_tables import (
    conditions_in_words,
    letters_of_conditions,
    papers_in_short,
    ratings_in_short,
    scores_table,
)
from .table import Table
from .without_repeats import without_repeats

WIDTH = 100  # letters in a line, where nothing says how many there are

# The tables that `--tables` prints: those of cells that learn classes, then those of all cells.
OF_CLASSES: dict[str, Callable[[Cells], Table]] = {
    "results": results_table,
    "papers": papers_table,
    "against-linear": against_linear_table,
    "calibration": calibration_table,
    "raters": votes_table,
    "hardest": hardest_table,
    "significance": significance_table,
    "papers-tests": papers_tests_table,
}
OF_ALL: dict[str, Callable[[Cells], Table]] = {
    "ratings": ratings_table,
    "corpora": corpora_table,
    "chosen": chosen_table,
    "layers": layers_table,
    "features": features_table,
    "protocol": protocols_table,
    "left-out": left_out_table,
    "commands": commands_table,
    "settings": settings_table,
    "versions": versions_table,
    "runs": runs_table,
}
TABLES = {**OF_CLASSES, **OF_ALL}


def report_text(
    cells: Cells,
    unfinished: Sequence[Run],
    paired: bool = False,
    tables: Sequence[str] = (),
    width: int = WIDTH,
    measured: Sequence[Importance] = (),
) -> str:
    """Each cell's scores, and the papers' numbers beside them, in lines of at most `width` letters.

    `paired`: the tests between cells too. `tables`: in place of the scores these of `TABLES`, with
    every column. `measured`: what the cells lose without groups of their features. Raises
    `WrongUse` for a name of no table, and if tests are requested for fewer than two cells that
    learn classes.
    """
    classifying = [cell for cell in cells if cell.scores.classes]
    if paired and len(classifying) < 2:
        raise WrongUse(_no_pair(cells))

    pieces = [_filled(caution, width) for caution in cautions(cells)]
    if tables:
        for table in named_tables(cells, tables):
            pieces += _table_pieces(table, width)
    else:
        pieces += _scores(cells, width)
    if paired:
        for table in (significance_table(classifying), papers_tests_table(classifying)):
            pieces += _table_pieces(without_repeats(table), width)
    if measured:
        pieces += _table_pieces(without_repeats(importance_table(measured)), width)

    if not tables:
        pieces += [_filled(words, width) for words in conditions_in_words(cells)]
    if unfinished:
        noun = "run" if len(unfinished) == 1 else "runs"
        pieces.append(f"not finished, and counted nowhere here: {len(unfinished)} {noun}")
    if not tables:
        pieces.append(_filled(_more_tables(cells), width))
    return "\n\n".join(pieces)


def named_tables(cells: Cells, names: Sequence[str]) -> list[Table]:
    """These of the `TABLES`, as far as they have rows; "all" is all of them.

    Raises `WrongUse` for another name, and if none of them has a row.
    """
    if "all" in names:
        names = list(TABLES)
    for name in names:
        if name not in TABLES:
            raise unknown("table", name, [*TABLES, "all"])

    classifying = [cell for cell in cells if cell.scores.classes]
    tables = []
    for name in names:
        if name in OF_ALL:
            tables.append(OF_ALL[name](cells))
        elif classifying:
            tables.append(OF_CLASSES[name](classifying))

    with_rows = [table for table in tables if table]
    if not with_rows:
        raise WrongUse(
            f"--tables {','.join(names)}: these runs have nothing to show there; without --tables "
            "the report says which tables they have"
        )
    return with_rows


def _scores(cells: Cells, width: int) -> list[str]:
    """The tables that are printed by themselves."""
    classifying = [cell for cell in cells if cell.scores.classes]
    letters = letters_of_conditions(cells)

    tables = [ratings_in_short(cells, letters)]
    if classifying:
        tables.insert(0, scores_table(classifying, letters))
        tables.insert(1, papers_in_short(classifying))

    pieces: list[str] = []
    for table in tables:
        pieces += _table_pieces(table, width)
    beside_linear = against_linear(classifying)
    if beside_linear:
        pieces.append(_filled(beside_linear, width))
    return pieces


def _table_pieces(table: Table, width: int) -> list[str]:
    """The caption, the table and its note; nothing of a table without rows."""
    if not table:
        return []
    pieces = [_filled(table.caption, width), fitted(table, width)]
    if table.note:
        pieces.append(_filled(table.note, width))
    return pieces


def _more_tables(cells: Cells) -> str:
    """Which other tables these cells have."""
    names = ["results", "calibration"] if cells[0].scores.classes else []
    raters_voted = any(result.raters for cell in cells for result in cell.results)
    if raters_voted:
        names.append("raters")
    if any(cell.scores.dimensions for cell in cells):
        names.append("ratings")
    if any(cell.results[0].corpora for cell in cells):
        names.append("corpora")
    if any(cell.search for cell in cells):
        names.append("chosen")
    listed = ",".join(names)
    return f"More tables: --tables {listed} or all; everything: --html FILE, --csv FILE."


def _filled(text: str, width: int) -> str:
    return fill(printable(text), width, break_on_hyphens=False)


def _no_pair(cells: Cells) -> str:
    """Why nothing can be tested, and the remedy."""
    fault = "are one cell"
    if len(cells) > 1:
        fault = "have fewer than two cells of classes, which the tests are for"
    return f"--paired compares cells, and these runs {fault}; name the runs of another one too"
