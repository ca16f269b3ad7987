"""The page as one HTML file: page.html lays out what the sections found, and escapes all that it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ser.cache.atomic_io import write_whole
from ser.train.run_folder import Run

from .cells import Cell
from .examples import Inside
from .figures import svg_of
from .provenance import COMMANDS, command
from .tables import Table

SHORT, ROOMY = 18, 34  # letters: so short a word is not broken, so long a text needs room


@dataclass(frozen=True)
class Page:
    """A report of cells, highest UA first."""

    cells: Sequence[Cell]
    unfinished: Sequence[Run]
    cautions: Sequence[str]
    sections: Mapping[str, Sequence[Table]]  # by anchor, in reading order
    inside: Inside

    @property
    def tables(self) -> list[Table]:
        """All tables in reading order, those behind plots included."""
        return [table for tables in self.sections.values() for table in tables]

    @property
    def commands(self) -> list[str]:
        """What runs the first cells again."""
        return list(dict.fromkeys(map(command, self.cells)))[:COMMANDS]


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
