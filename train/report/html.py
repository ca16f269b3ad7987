"""The page as one HTML file: page.html lays out what the sections found, and escapes all that it is given."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser.cache.atomic_io import write_whole

from .cells import Cell
from .figures import svg_of
from .tables import Table

SHORT, ROOMY = 18, 34  # letters: up to here words are not broken; from here on a column needs room
Part = Mapping[str, Any]  # tables, plots and plain data of a section, in reading order; empty: nothing to say


@dataclass(frozen=True)
class Page:
    """A report of cells, highest UA first."""

    cells: Sequence[Cell]
    cautions: Sequence[str]
    sections: Mapping[str, Part]  # by anchor; page.html says what each of them holds

    @property
    def tables(self) -> list[Table]:
        """All tables in reading order, those behind plots included."""
        return [table for table in _tables(self.sections) if table]


def _tables(part: Any) -> Iterator[Table]:
    match part:
        case Table():
            yield part
        case dict() | list():
            for inner in part.values() if isinstance(part, dict) else part:
                yield from _tables(inner)


def write_html(page: Page, path: Path) -> None:
    """Write the page as one file that needs no other."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"classes": _classes, "svg": svg_of}
    write_whole(path, environment.get_template("page.html").render(page=page).encode())


def _classes(table: Table) -> list[str]:
    """A class for each column: numbers to the right, short words unbroken, long texts with room."""
    longest = [max(map(len, texts)) for texts in zip(*table.texts, strict=True)]
    return [
        "n" if not isinstance(first, str) else "short" if n <= SHORT else "long" if n > ROOMY else ""
        for first, n in zip(table.columns.values(), longest, strict=True)
    ]
