"""The page as one HTML file: page.html lays out what the sections found, and escapes all that it is given."""

from pathlib import Path

from ser.cache.atomic_io import write_whole

from .figures import svg_of
from .sections import Page
from .tables import Table

SHORT, ROOMY = 18, 34  # letters: so short a word is not broken, so long a text needs room


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
