"""The report as one HTML page: its head, and its sections in reading order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ser.disk.write import write_whole
from ser.train.run_folder import Run
from ser.train.scores.classes import chance

from .cell import Cell, Cells
from .cell_scores import NO_INTERVAL
from .conditions import cautions
from .elements import Plot, Section, column_classes, table_width
from .sections.calibration import calibration
from .sections.emotions import emotions
from .sections.errors import errors
from .sections.importance import Importance, importance
from .sections.inside import inside
from .sections.layers import layers
from .sections.modalities import modalities
from .sections.query_tokens import query_tokens
from .sections.ratings import ratings
from .sections.results import results
from .sections.significance import significance
from .sections.training import training
from .sections.what_was_run import what_was_run
from .table import Table


@dataclass(frozen=True)
class Highlight:
    """A number of the best cell at the top of the page."""

    name: str
    value: str
    detail: str


@dataclass(frozen=True)
class Page:
    """A report of cells, highest UA first."""

    cells: Cells
    title: str
    kicker: str
    heading: str
    highlights: Sequence[Highlight]
    lead: str
    cautions: Sequence[str]
    sections: Sequence[Section]

    @property
    def plots(self) -> list[Plot]:
        """All plots in reading order."""
        plots: list[Plot] = []
        for section in self.sections:
            for element in section.elements:
                plots += element.plots
        return plots

    @property
    def table_widths(self) -> list[int]:
        """The widths that tables of the page need, in rem."""
        widths: set[int] = set()
        for section in self.sections:
            for element in section.elements:
                widths.update(element.table_widths)
        return sorted(widths)

    @property
    def tables(self) -> list[Table]:
        """All tables in reading order, those behind plots included, for files."""
        tables: list[Table] = []
        for section in self.sections:
            tables += section.tables
        return tables


def make_page(cells: Cells, unfinished: Sequence[Run], measured: Sequence[Importance] = ()) -> Page:
    """The report of these cells, highest UA first.

    Sections about classes show the cells that learn classes. `measured` is what the cells lose
    without groups of their features, if that was measured.
    """
    classifying = [cell for cell in cells if cell.scores.classes]
    sections = [
        results(classifying),
        ratings(cells),
        significance(classifying),
        emotions(classifying),
        calibration(classifying),
        training(cells),
        layers(classifying),
        modalities(classifying),
        importance(measured) if measured else None,
        query_tokens(classifying),
        inside(classifying),
        errors(classifying, first_of_several=len(cells) > 1),
        what_was_run(cells, unfinished),
    ]

    best = cells[0]
    corpora = ", ".join(dict.fromkeys(cell.config.corpus for cell in cells))
    of_several = f"{len(cells)} cells"
    runs = sum(len(cell.runs) for cell in cells)
    several = len(cells) > 1
    return Page(
        cells=cells,
        title=f"{of_several} on {corpora}" if several else f"{best.label}, {corpora}",
        kicker=f"Speech emotion recognition, {_counted(runs, 'run')}",
        heading=f"{of_several if several else best.label} on corpus {corpora}",
        highlights=_highlights(best),
        lead=_lead(cells, classifying),
        cautions=cautions(cells),
        sections=[section for section in sections if section is not None],
    )


def _highlights(cell: Cell) -> list[Highlight]:
    """The scores at the top of the page, with their intervals."""
    if not cell.scores.classes:
        return [_rating_highlight(cell, dimension) for dimension in cell.scores.dimensions]

    classes = cell.scores.classes
    return [
        _class_highlight(cell, "ua", "UA, mean recall of the classes"),
        _class_highlight(cell, "wa", "WA, share that is right"),
        _class_highlight(cell, "macro_f1", "macro-F1, mean F1 of the classes"),
        Highlight("Chance", f"{chance(len(classes)):.0f} %", ", ".join(classes)),
    ]


def _class_highlight(cell: Cell, metric: str, name: str) -> Highlight:
    value, low, high = cell.scores.with_interval(metric)
    interval = f"95 % interval {low:.2f} to {high:.2f}" if low is not None else None
    return Highlight(name, f"{value:.2f} %", _about_interval(cell, interval))


def _about_interval(cell: Cell, interval: str | None) -> str:
    """The interval and what it is over, or that there is none."""
    over = cell.scores.interval_over
    if interval is not None:
        return f"{interval} over {over}"
    return over if over.startswith(NO_INTERVAL) else f"{NO_INTERVAL}the same without any of {over}"


def _rating_highlight(cell: Cell, dimension: str) -> Highlight:
    value, low, high = cell.scores.with_interval(f"ccc {dimension}")
    interval = f"95 % interval {low:.3f} to {high:.3f}" if low is not None else None
    return Highlight(f"CCC of {dimension}", f"{value:.3f}", _about_interval(cell, interval))


def _lead(cells: Cells, classifying: Cells) -> str:
    """Which cell the highlights are of."""
    best = cells[0]
    rivals = cells
    score = "mean CCC"
    if classifying:
        rivals = classifying
        score = "UA"

    opening = ""
    if len(rivals) > 1:
        opening = (
            f"The highest {score} of {len(rivals)} cells, chosen on the test score, is that of "
        )
    features = "+".join(feature.feature for feature in best.config.features.values())
    of_features = "" if features in best.label else f" ({features})"
    return (
        f"{opening}{best.label}{of_features}: "
        f"{_counted(best.scores.n, 'prediction')} of {_counted(len(best.folds), 'fold')} and "
        f"{_counted(len(best.seeds), 'seed')}."
    )


def _counted(n: int, noun: str) -> str:
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def write_html(page: Page, path: Path) -> None:
    """Write the page as one file that needs no other.

    page.html lays it out, and escapes all that it is given.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["column_classes"] = column_classes
    environment.filters["table_width"] = table_width
    text = environment.get_template("page.html").render(page=page)
    write_whole(path, text.encode())
