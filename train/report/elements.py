"""What a section of the page is made of; page.html lays it out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from .svg import to_svg
from .table import Table

LONG = 40  # rows; a table with more is folded
DESCRIBED = 6  # rows of a plot for those who do not see it

# Letters: a column whose texts are all so short is not broken, one with a text so long needs room.
SHORT = 18
ROOMY = 34


class Element:
    """A part of a section. Its `kind` names the macro of page.html that lays it out."""

    kind: ClassVar[str]

    @property
    def tables(self) -> Sequence[Table]:
        """Those in it, or behind it, in reading order."""
        return ()


@dataclass(frozen=True)
class Paragraph(Element):
    """A few sentences."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Caution(Element):
    """What a reader must know before using the numbers."""

    kind: ClassVar[str] = "caution"
    text: str


@dataclass(frozen=True)
class TableElement(Element):
    """A table in the open, or behind its caption."""

    kind: ClassVar[str] = "table"
    table: Table
    turned: bool = False  # a few rows of many words: each column is a line, so none leaves the page

    @property
    def tables(self) -> Sequence[Table]:
        return [self.table]

    @property
    def folded(self) -> bool:
        return self.table.folded or len(self.table.rows) > LONG


@dataclass(frozen=True)
class Plot(Element):
    """A plot, with its numbers behind it as a table."""

    kind: ClassVar[str] = "plot"
    table: Table
    title: str
    draw: Callable[[], Any]  # returns matplotlib's figure
    note: str = ""  # below the plot

    @property
    def tables(self) -> Sequence[Table]:
        return [self.table]

    @cached_property
    def svg(self) -> tuple[str, str]:
        """The view box, and what the SVG element holds."""
        return to_svg(self.draw, self.table.name)

    @property
    def description(self) -> str:
        """For those who do not see the plot: a few of its rows, evenly spread."""
        step = -(-len(self.table.rows) // DESCRIBED)
        lines = []
        for texts in self.table.texts[::step]:
            pairs = zip(self.table.headings, texts, strict=True)
            lines.append(", ".join(f"{heading} {text}" for heading, text in pairs))
        return "; ".join(lines)


@dataclass(frozen=True)
class Word:
    """A word of a transcript, with its weight as a share of the heaviest one's."""

    text: str
    share: float


@dataclass(frozen=True)
class Card(Element):
    """One utterance: what was predicted, its words by weight, and a plot."""

    kind: ClassVar[str] = "card"
    title: str
    prediction: str
    words_caption: str
    words: Sequence[Word]
    plot: Plot

    @property
    def tables(self) -> Sequence[Table]:
        return self.plot.tables


@dataclass(frozen=True)
class SideBySide(Element):
    """Blocks beside each other where the page is wide enough."""

    kind: ClassVar[str] = "side"
    elements: Sequence[Element]

    @property
    def tables(self) -> Sequence[Table]:
        tables: list[Table] = []
        for element in self.elements:
            tables += element.tables
        return tables


@dataclass(frozen=True)
class Section:
    """A section of the page: its anchor, its title, and what stands in it."""

    anchor: str
    title: str
    elements: Sequence[Element]

    @property
    def in_contents(self) -> str:
        """What the table of contents calls it."""
        return self.anchor.replace("-", " ").capitalize()

    @property
    def tables(self) -> Iterator[Table]:
        for element in self.elements:
            yield from element.tables


def table_elements(*tables: Table) -> list[Element]:
    """Those of these tables that have rows."""
    return [TableElement(table) for table in tables if table]


def side_by_side(*elements: Element | None) -> list[Element]:
    """One element of those that there are; none if there are none."""
    shown = [element for element in elements if element is not None]
    return [SideBySide(shown)] if shown else []


def css_classes(table: Table) -> list[str]:
    """How each column is set: numbers to the right, short words unbroken, long texts with room."""
    classes = []
    for position, column in enumerate(table.shown_columns):
        longest = max(len(texts[position]) for texts in table.texts)
        if table.to_the_right(column):
            classes.append("n")
        elif longest <= SHORT:
            classes.append("short")
        else:
            classes.append("long" if longest > ROOMY else "")
    return classes
