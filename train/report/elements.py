"""What a section of the page is made of; page.html lays it out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any, ClassVar

from .svg import to_svg
from .table import Table
from .without_repeats import without_repeats

LONG = 40  # rows; a table with more is folded
DESCRIBED = 6  # rows of a plot for those who do not see it

# Letters: a column whose texts are all so short is not broken, one with a text so long needs room.
SHORT = 18
ROOMY = 34

# Widths in rem, as style.css has them: a letter of a table, the gap behind a column, and the least
# of a column of words, and of one of long texts.
LETTER = 0.53
GAP = 1.4
WORDS = 11.0
LONG_TEXT = 15.0
STEP = 4  # widths of tables are told apart by as much


class Element:
    """A part of a section. Its `kind` names the macro of page.html that lays it out."""

    kind: ClassVar[str]

    @property
    def tables(self) -> Sequence[Table]:
        """Those in it, or behind it, in reading order."""
        return ()

    @property
    def plots(self) -> "Sequence[Plot]":
        """Those in it."""
        return ()

    @property
    def table_widths(self) -> Sequence[int]:
        """What `table_width` gives for each table that the page shows of it."""
        return [table_width(table) for table in self.tables]


@dataclass(frozen=True)
class Paragraph(Element):
    """A few sentences; a command in them stands between backticks."""

    kind: ClassVar[str] = "paragraph"
    text: str

    @property
    def pieces(self) -> list[tuple[str, bool]]:
        """Its texts without the backticks, and whether each is a command."""
        return [(text, number % 2 == 1) for number, text in enumerate(self.text.split("`"))]


@dataclass(frozen=True)
class Note(Element):
    """Small words below a table or a plot."""

    kind: ClassVar[str] = "note"
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
    turned: bool = False  # one row of many words: each column is a line, so none leaves the page
    in_short: bool = False  # the page has the same with more columns, which goes into files

    @property
    def tables(self) -> Sequence[Table]:
        return [] if self.in_short else [self.table]

    @property
    def table_widths(self) -> Sequence[int]:
        return [table_width(self.shown)]

    @property
    def shown(self) -> Table:
        """The table as it stands in the open: what repeats is said once.

        Not so in a short form, whose scores are what is read first.
        """
        as_it_is = self.folded or self.in_short
        return self.table if as_it_is else without_repeats(self.table)

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

    @property
    def plots(self) -> "Sequence[Plot]":
        return [self]

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

    @property
    def plots(self) -> Sequence[Plot]:
        return [self.plot]


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

    @property
    def plots(self) -> Sequence[Plot]:
        plots: list[Plot] = []
        for element in self.elements:
            plots += element.plots
        return plots


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


def column_classes(table: Table) -> list[str]:
    """How each column is set: numbers to the right, short words unbroken, long texts with room."""
    classes = []
    for position, column in enumerate(table.shown_columns):
        longest = max(len(texts[position]) for texts in table.texts)
        if table.to_the_right(column):
            classes.append("n")
        elif longest <= SHORT:
            classes.append("short")
        else:
            classes.append("long" if longest > ROOMY else "words")
    return classes


def table_width(table: Table) -> int:
    """The rem that a table needs; where there are fewer, each of its rows becomes a card."""
    width = 0.0
    for position, name in enumerate(column_classes(table)):
        words_of_heading = table.headings[position].split()
        heading = max((len(word) for word in words_of_heading), default=0)
        longest = max(len(texts[position]) for texts in table.texts)
        least = LETTER * longest
        if name in ("words", "long"):
            words = [len(word) for texts in table.texts for word in texts[position].split()]
            longest_word = LETTER * max(words, default=0)
            least = max(longest_word, WORDS if name == "words" else LONG_TEXT)
        width += max(LETTER * heading, least) + GAP
    return STEP * ceil(width / STEP)
