"""The report: one self-contained HTML file that answers a reviewer's questions in order, and all its tables.

write_html(find_runs("runs"), Path("report.html"))
write_tables(report_tables(find_runs("runs")), Path("report.tex"), "latex")
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from ser.train.run_folder import Run
from ser.train.scores import Interval, conditions

from . import classes, hardest, inside, learning, modalities, results, significance, what_was_run
from .cells import Cell, finished_cells
from .markup import Section, Warned, block, page, tables_of
from .tables import Table, write_tables
from .utterances import find_origins

__all__ = ["report_tables", "write_html", "write_tables"]


def write_html(runs: Sequence[Run], path: Path) -> None:
    """Write the report of these runs. Raises `WrongUse` if none of them is finished."""
    cells, sections = _report(runs)
    best = cells[0]
    title = f"{best.label}, {best.config['corpus']}" if len(cells) == 1 else f"{len(cells)} cells on {_corpora(cells)}"
    path.write_text(page(title, _head(cells, best), sections), encoding="utf-8")


def report_tables(runs: Sequence[Run]) -> list[Table]:
    """Every table of the report, those behind its plots included, in its order."""
    return [table for section in _report(runs)[1] for table in tables_of(section.blocks)]


def _report(runs: Sequence[Run]) -> tuple[list[Cell], list[Section]]:
    """The cells, highest UA first, and the sections about them."""
    cells, unfinished = finished_cells(runs)
    origins = find_origins(cells)
    found = [
        what_was_run.section(cells, origins, unfinished),
        results.section(cells),
        significance.section(cells),
        classes.section(cells),
        learning.section(cells),
        modalities.bias(cells),
        modalities.queries(cells),
        inside.section(cells, origins),
        hardest.section(cells, cells[0], origins),
    ]
    return cells, [section for section in found if section is not None]


def _corpora(cells: Sequence[Cell]) -> str:
    return ", ".join(dict.fromkeys(cell.config["corpus"] for cell in cells))


def _head(cells: Sequence[Cell], best: Cell) -> str:
    """The headline: the result first, with what it was won under."""
    ua, wa = best.intervals["ua"], best.intervals["wa"]
    runs = sum(len(cell.runs) for cell in cells)
    names = f"{f'{len(cells)} cells' if len(cells) > 1 else best.label} on corpus {_corpora(cells)}"
    told = f"The highest of {len(cells)} cells is {best.label}" if len(cells) > 1 else best.label
    told += f" ({best.features}; {conditions(best.results[0])}): {best.pooled['n']:,} predictions of "
    told += f"{_count(len(best.folds), 'fold')} and {_count(len(best.seeds), 'seed')}."
    scores = [
        ("UA, mean recall of the classes", f"{100 * ua.value:.1f} %", f"95 % interval {_ends(ua)}"),
        ("WA, share that is right", f"{100 * wa.value:.1f} %", f"95 % interval {_ends(wa)}"),
        ("Chance", f"{100 / len(best.classes):.0f} %", ", ".join(best.classes)),
    ]
    shown = "\n".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for what, value, more in scores
    )
    warned = "\n".join(block(Warned(text)) for text in results.cautions(cells))
    runs = sum(len(cell.runs) for cell in cells)
    return (
        f'<p class="kicker">Speech emotion recognition, {_count(runs, "run")}</p>\n<h1>{escape(names)}</h1>\n'
        f'<dl class="scores">\n{shown}\n</dl>\n<p class="lead">{escape(told)}</p>\n{warned}'
    )


def _ends(interval: Interval) -> str:
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
