"""The tables that `ser report` prints by itself: one line a cell, and only what is read first.

What is the same for all cells, and what belongs to none, is said once, in words around them.
"""

from collections.abc import Sequence
from string import ascii_lowercase

from ser.train.scores.measures import SHOWN

from .cell import Cell, Cells, grouped
from .cell_scores import NO_INTERVAL
from .conditions import caveat, conditions
from .formats import (
    COUNT,
    DIFFERENCE,
    FINE,
    FINE_IN_SHORT,
    PERCENT,
    PERCENT_IN_SHORT,
    TEXT,
)
from .headings import heading_of
from .paper import MAIN, Quoted, quoted_for
from .sections.notes import CHOSEN
from .table import Column, Row, Table, columns_of, joined

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
    """The scores of each cell that learns classes, with their intervals.

    How many runs and predictions there are stands in columns only where cells differ.
    """
    runs = {cell.folds_and_seeds for cell in cells}
    sizes = {_predictions_of_a_seed(cell) for cell in cells}
    rows: list[Row] = []
    for cell in cells:
        row: Row = {"cell": cell.label}
        for name, metric in SHOWN.items():
            row[f"{name} %"] = cell.scores.with_interval(metric)
        if len(runs) > 1:
            row["runs"] = cell.folds_and_seeds
        if len(sizes) > 1:
            row["n"] = cell.scores.n
        _add_letter(row, cell, letters)
        rows.append(row)

    return Table(
        name="scores",
        caption="Scores",
        columns=[
            Column("cell", TEXT),
            *columns_of(PERCENT_IN_SHORT, [f"{name} %" for name in SHOWN]),
            Column("runs", TEXT),
            Column("n", COUNT),
            Column(HEADING_OF_CONDITIONS, TEXT),
        ],
        rows=rows,
        note=joined(
            "UA: mean recall of the classes; WA: share that is right; macro-F1: mean F1 of the "
            "classes.",
            _runs_in_words(runs),
            _sizes_in_words(sizes),
            intervals_in_words(cells, list(SHOWN.values())),
            CHOSEN if len(cells) > 1 else "",
        ),
    )


def _predictions_of_a_seed(cell: Cell) -> float:
    return cell.scores.n / len(cell.seeds)


def _runs_in_words(runs: set[str]) -> str:
    if len(runs) > 1:
        return "Runs: folds × seeds."
    return f"Runs: {runs.pop()} (folds × seeds)."


def _sizes_in_words(sizes: set[float]) -> str:
    if len(sizes) > 1:
        return "n: predictions."
    return f"Predictions of each seed: {sizes.pop():,.0f}."


def intervals_in_words(cells: Cells, metrics: Sequence[str]) -> str:
    """What the intervals are, and what they are over: once for all cells, or by the cells.

    And why some of these metrics have none.
    """
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
    words = f"In brackets: 95 % interval (jackknife, Student’s t) over {', '.join(over)}"
    if too_few:
        words += f"; none of {' or '.join(too_few)}, which are too few"
    if any(_lacks_an_interval(cell, metrics) for cell in cells):
        words += "; none where the score is the same, or not known, without any one of them"
    return f"{words}."


def _lacks_an_interval(cell: Cell, metrics: Sequence[str]) -> bool:
    """Whether one of these scores has no interval although there are groups enough."""
    if cell.scores.interval_over.startswith(NO_INTERVAL):
        return False
    known = [metric for metric in metrics if metric in cell.scores.metrics]
    return any(cell.scores.with_interval(metric)[1] is None for metric in known)


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
        name="ratings-in-short",
        caption="Valence, arousal and dominance",
        columns=[
            Column("cell", TEXT),
            Column("mean CCC", FINE),
            *columns_of(FINE_IN_SHORT, [heading_of(metric) for metric in metrics]),
            Column("n", COUNT),
            Column(HEADING_OF_CONDITIONS, TEXT),
        ],
        rows=rows,
        note=joined(
            "CCC: Lin’s concordance correlation coefficient, 1 at best.",
            intervals_in_words(rating, list(metrics)) if rating else "",
        ),
    )


def papers_in_short(cells: Cells) -> Table:
    """The nearest number of the papers that each cell may stand beside; no row without one.

    Without a difference where no comparison is meant.
    """
    nearest: dict[str, Quoted] = {}
    for cell in cells:
        with_numbers = [quoted for quoted in quoted_for(cell) if quoted.of(MAIN)]
        if with_numbers:
            # A paper's full model stands in several of its tables.
            nearest[cell.label] = max(with_numbers, key=lambda quoted: quoted.numbers_beside_it)

    all_differ = _what_all_differ_in(list(nearest.values()))
    rows: list[Row] = []
    for cell in cells:
        if cell.label in nearest:
            rows.append(_papers_row(cell, nearest[cell.label], all_differ))

    columns = columns_of(TEXT, ["cell", "paper"])
    for metric in MAIN:
        name = metric.upper()
        columns.append(Column(f"paper’s {name} %", PERCENT))
        columns.append(Column(f"ours − {name}", DIFFERENCE))
    columns.append(Column("differs in", TEXT))
    ours = "Ours differs" if len(rows) == 1 else "Each of ours differs"
    return Table(
        name="papers-in-short",
        caption="Beside the papers’ numbers",
        columns=columns,
        rows=rows,
        note=f"{ours} from the paper’s in {', '.join(all_differ)}." if all_differ else "",
    )


def _what_all_differ_in(nearest: Sequence[Quoted]) -> list[str]:
    """What none of our cells has as its paper, in the order of the first."""
    if not nearest:
        return []
    first, *others = nearest
    shared = []
    for difference in first.differs:
        if all(difference in other.differs for other in others):
            shared.append(difference)
    return shared


def _papers_row(cell: Cell, quoted: Quoted, all_differ: Sequence[str]) -> Row:
    row: Row = {"cell": cell.label, "paper": quoted.source}
    for metric in MAIN:
        name = metric.upper()
        number = quoted.numbers.get(metric)
        row[f"paper’s {name} %"] = number
        if number is not None and caveat(cell.results) is None:
            pooled = cell.scores.score(metric).pooled
            row[f"ours − {name}"] = (pooled - number, None, None)

    others = [difference for difference in quoted.differs if difference not in all_differ]
    if others:
        row["differs in"] = ", ".join(others)
    return row
