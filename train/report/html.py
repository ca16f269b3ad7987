"""What a page is made of, and the page as one HTML file: its templates escape all that they are given."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .figures import Svg
from .tables import Table

LONG = 40  # rows: a longer table is folded
SHORT, ROOMY = 18, 34  # letters: up to here words are not broken; from here on a column needs room
DESCRIBED = 6  # rows of a plot's table in its description


@dataclass(frozen=True)
class Text:
    """Something to type into a shell ("command"), or a sentence that must not be missed ("warned")."""

    role: Literal["command", "warned"]
    text: str


@dataclass(frozen=True)
class Weighed:
    """Words, each with a weight in [0, 1] that is shown as the strength of its colour."""

    caption: str
    words: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Plot:
    """A figure, drawn when the page is written, above its numbers."""

    title: str
    data: Table
    draw: Callable[[], Svg]
    note: str = ""

    @property
    def words(self) -> str:
        """A description for those who do not see it: some of its numbers, evenly spread."""
        rows = self.data.texts[:: -(-len(self.data.rows) // DESCRIBED)]
        return "; ".join(", ".join(map(" ".join, zip(self.data.columns, row, strict=True))) for row in rows)


@dataclass(frozen=True)
class Group:
    """Blocks side by side where the page is wide enough; with a title, blocks on a card below a small heading."""

    blocks: Sequence["Block"]
    title: str = ""


# A plain `str` is a paragraph.
Block = str | Text | Weighed | Table | Plot | Group


@dataclass(frozen=True)
class Section:
    """One of the reader's questions with its answer; `name` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """A report: its headline, and its sections."""

    title: str
    kicker: str
    heading: str
    scores: Sequence[tuple[str, str, str]]  # name, value, what else to know
    lead: str
    cautions: Sequence[str]
    sections: Sequence[Section]

    @property
    def tables(self) -> list[Table]:
        """All tables in reading order, those behind plots included."""
        return [table for section in self.sections for table in _tables(section.blocks)]


def _tables(blocks: Sequence[Block]) -> Iterator[Table]:
    for block in blocks:
        match block:
            case Table():
                yield block
            case Plot(data=table):
                yield table
            case Group(inner):
                yield from _tables(inner)


def write_html(page: Page, path: Path) -> None:
    """Write the page as one file that needs no other."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"kind": lambda block: type(block).__name__, "classes": _classes, "own_ids": _own_ids}
    environment.globals["LONG"] = LONG
    path.write_text(environment.get_template("page.html").render(page=page), encoding="utf-8")


def _classes(table: Table) -> list[str]:
    """A class for each column: numbers to the right, short words unbroken, long texts with room."""
    longest = [max(map(len, texts)) for texts in zip(*table.texts, strict=True)]
    kinds = zip(table.columns.values(), longest, strict=True)
    return ["n" if k != "text" else "short" if n <= SHORT else "long" if n > ROOMY else "" for k, n in kinds]


def _own_ids(svg: str, name: str) -> Any:
    """The inside of an SVG with ids that no other figure of the page has."""
    from markupsafe import Markup

    return Markup(re.sub(r"<[^>]*>", lambda tag: re.sub(r'(\bid="|url\(#|href="#)', rf"\1{name}-", tag[0]), svg))
