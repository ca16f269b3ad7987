"""Runs grouped into the cells of a report."""

from collections.abc import Iterable, Sequence

from ser.errors import WrongUse, unknown
from ser.train.run_folder import Run
from ser.train.sweep.search import choose_candidates
from ser.train.sweep.search_record import SearchRecord, cell_name

from .cell import Cell, cell_config, grouped, same_run
from .labels import name_apart


def group_runs(
    runs: Iterable[Run],
    searches: Sequence[SearchRecord] = (),
    ours: str = "",
    with_text: bool = False,
) -> tuple[list[Cell], list[Run]]:
    """The cells of the finished runs, highest UA first, and the runs that are not finished.

    Cells without classes come after those with, highest mean CCC first. A search is one cell, of
    the runs that were chosen; its other runs are in none, nor is a search within a longer one.
    `ours` is the label of the user's own cell; `with_text` as of `Cell`. Raises `WrongUse` if no
    run is finished, or no cell has that label.
    """
    all_runs = sorted(runs, key=lambda run: run.path.name)
    finished = [run for run in all_runs if run.finished]
    if not finished:
        raise WrongUse(
            f"none of these {len(all_runs)} runs is finished; the same command with --resume goes "
            "on with them"
        )

    if searches:
        members = _members_of_searches(all_runs, searches)
    else:
        members = [(of_cell, None) for of_cell in _by_cell(finished).values()]
    if not members:
        raise WrongUse(
            "no fold has a run of every candidate of its search yet; run the same sweep again to "
            "go on"
        )

    labels = name_apart([cell_config(of_cell[0], search) for of_cell, search in members])
    if ours and ours not in labels:
        raise unknown("cell", ours, labels)

    cells = []
    for label, (of_cell, search) in zip(labels, members, strict=True):
        cells.append(Cell(label, of_cell, search, ours=label == ours, with_text=with_text))
    cells.sort(key=_order)
    return cells, [run for run in all_runs if not run.finished]


def _order(cell: Cell) -> tuple[bool, float, str]:
    """Cells of classes first, then the highest score first."""
    metric = "ua" if cell.scores.classes else "ccc"
    return not cell.scores.classes, -cell.scores.score(metric).pooled, cell.label


def _by_cell(runs: Iterable[Run]) -> dict[str, list[Run]]:
    return grouped(runs, lambda run: cell_name(run.config))


def _members_of_searches(
    runs: Sequence[Run], searches: Sequence[SearchRecord]
) -> list[tuple[list[Run], SearchRecord | None]]:
    """What each search chose, then the runs of each cell that no search has tried."""
    by_cell = _by_cell(runs)
    longest = [search for search in searches if not _within_another(search, searches)]
    members: list[tuple[list[Run], SearchRecord | None]] = []

    searched: set[str] = set()
    for search in longest:
        searched.update(search.candidates)
        tried: list[Run] = []
        for name in search.candidates:
            tried += by_cell.get(name, [])
        complete = []
        for candidates in grouped(tried, same_run).values():
            if len(candidates) == len(search.candidates):
                complete.append(candidates)
        members.append((choose_candidates(complete), search))

    for name, of_cell in by_cell.items():
        if name not in searched:
            members.append(([run for run in of_cell if run.finished], None))
    return [(of_cell, search) for of_cell, search in members if of_cell]


def _within_another(search: SearchRecord, searches: Sequence[SearchRecord]) -> bool:
    """Whether a longer search tried all its candidates."""
    return any({*search.candidates} < {*other.candidates} for other in searches)
