"""The tables that `ser report` prints by itself: one line a cell, and only what is read first.

What is the same for all cells, and what belongs to none, is said once, in words around them.
"""

from string import ascii_lowercase

from ser.train.scores.measures import SHOWN

from .cell import Cell, Cells, grouped
from .conditions import caveat, conditions
from .formats import (
    COUNT,
    DIFFERENCE,
    FINE,
    FINE_WITH_INTERVAL,
    PERCENT,
    PERCENT_WITH_INTERVAL,
    TEXT,
)
from .headings import heading_of
from .paper import quoted_for
from .sections.notes import CHOSEN
from .sections.results import MAIN, folds_and_seeds
from .table import Column, Row, Table, columns_of, joined

NO_INTERVAL = "no interval: "  # what `CellScores.interval_over` begins with where there is none
HEADING_OF_CONDITIONS = "under"  # the letter of a cell's conditions


def letters_of_conditions(cells: Cells) -> dict[str, str]:
    """A letter for each of the conditions that cells were scored under: "a", "b", …, "z", "a2"."""
    letters: dict[str, str] = {}
    for cell in cells:
        words = conditions(cell.runs)
        if words not in letters:
            times, place = divmod(len(letters), len(ascii_lowercase))
            letters[words] = f"{ascii_lowercase[place]}{times + 1 if times else ''}"
    return letters


def conditions_in_words(cells: Cells) -> list[str]:
    """What the cells were scored under, a sentence for each letter; one alone needs no letter."""
    letters = letters_of_conditions(cells)
    if len(letters) == 1:
        return [f"Conditions: {words}." for words in letters]
    return [f"{HEADING_OF_CONDITIONS} {letter}: {words}" for words, letter in letters.items()]


def _add_letter(row: Row, cell: Cell, letters: dict[str, str]) -> None:
    if len(letters) > 1:
        row[HEADING_OF_CONDITIONS] = letters[conditions(cell.runs)]


def scores_table(cells: Cells, letters: dict[str, str]) -> Table:
    """The scores of each cell that learns classes, with their intervals."""
    rows: list[Row] = []
    for cell in cells:
        row: Row = {"cell": cell.label}
        for name, metric in SHOWN.items():
            row[f"{name} %"] = cell.scores.with_interval(metric)
        row["runs"] = folds_and_seeds(cell)
        row["n"] = cell.scores.n
        _add_letter(row, cell, letters)
        rows.append(row)

    return Table(
        name="scores",
        caption="Scores",
        columns=[
            Column("cell", TEXT),
            *columns_of(PERCENT_WITH_INTERVAL, [f"{name} %" for name in SHOWN]),
            Column("runs", TEXT),
            Column("n", COUNT),
            Column(HEADING_OF_CONDITIONS, TEXT),
        ],
        rows=rows,
        note=joined(
            intervals_in_words(cells),
            "UA: mean recall of the classes; WA: share that is right; macro-F1: mean F1 of the "
            "classes. Runs: folds × seeds; n: predictions.",
            CHOSEN if len(cells) > 1 else "",
        ),
    )


def intervals_in_words(cells: Cells) -> str:
    """What the intervals are, and what they are over: once for all cells, or by the cells."""
    over: list[str] = []
    too_few: list[str] = []
    by_groups = grouped(cells, lambda cell: cell.scores.interval_over)
    several = sum(not groups.startswith(NO_INTERVAL) for groups in by_groups) > 1
    for groups, members in by_groups.items():
        if groups.startswith(NO_INTERVAL):
            too_few.append(groups.removeprefix(NO_INTERVAL))
        elif several:
            over.append(f"{groups} ({', '.join(cell.label for cell in members)})")
        else:
            over.append(groups)

    if not over:
        return f"No intervals: only {' or '.join(too_few)}."
    words = f"[ ]: 95 % interval (jackknife, Student’s t) over {', '.join(over)}"
    if too_few:
        words += f"; none of {' or '.join(too_few)}, which are too few"
    return f"{words}."


def ratings_in_short(cells: Cells, letters: dict[str, str]) -> Table:
    """The CCC of each cell that learns ratings; no row without one."""
    rows: list[Row] = []
    metrics: dict[str, None] = {}
    rating = [cell for cell in cells if cell.scores.dimensions]
    for cell in rating:
        row: Row = {"cell": cell.label, "mean CCC": cell.scores.score("ccc").pooled}
        for dimension in cell.scores.dimensions:
            metric = f"ccc {dimension}"
            metrics[metric] = None
            row[heading_of(metric)] = cell.scores.with_interval(metric)
        row["n"] = cell.scores.n
        _add_letter(row, cell, letters)
        rows.append(row)

    return Table(
        name="ratings",
        caption="Valence, arousal and dominance",
        columns=[
            Column("cell", TEXT),
            Column("mean CCC", FINE),
            *columns_of(FINE_WITH_INTERVAL, [heading_of(metric) for metric in metrics]),
            Column("n", COUNT),
            Column(HEADING_OF_CONDITIONS, TEXT),
        ],
        rows=rows,
        note=joined(
            intervals_in_words(rating) if rating else "",
            "CCC: Lin’s concordance correlation coefficient, 1 at best.",
        ),
    )


def papers_in_short(cells: Cells) -> Table:
    """The nearest number of the papers that each cell may stand beside; no row without one.

    Without a difference where no comparison is meant.
    """
    rows: list[Row] = []
    for cell in cells:
        for quoted in quoted_for(cell):
            if not quoted.of(MAIN):
                continue
            row: Row = {"cell": cell.label, "paper": quoted.described}
            for metric in MAIN:
                name = metric.upper()
                number = quoted.numbers.get(metric)
                row[f"paper’s {name} %"] = number
                if number is not None and caveat(cell.results) is None:
                    pooled = cell.scores.score(metric).pooled
                    row[f"ours − {name}"] = (pooled - number, None, None)
            rows.append(row)
            break

    columns = columns_of(TEXT, ["cell", "paper"])
    for metric in MAIN:
        name = metric.upper()
        columns.append(Column(f"paper’s {name} %", PERCENT))
        columns.append(Column(f"ours − {name}", DIFFERENCE))
    return Table(
        name="papers-in-short", caption="Beside the papers’ numbers", columns=columns, rows=rows
    )
