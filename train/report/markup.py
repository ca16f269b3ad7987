"""The page's HTML: the only place that writes markup, so the only one that must escape."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from .plots import Plot
from .tables import Table, shown

# Nothing is fetched, whatever a text may say: not even a script or a picture of the page's own folder.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
LONG = 40  # rows: a longer table is folded
SHORT, ROOMY = 18, 34  # letters: up to here words are not broken; from here on a column needs room


@dataclass(frozen=True)
class Command:
    """Something to type into a shell."""

    text: str


@dataclass(frozen=True)
class Warned:
    """A sentence that must not be missed."""

    text: str


@dataclass(frozen=True)
class Weighed:
    """Words, each with a weight in [0, 1] that is shown as the strength of its colour."""

    caption: str
    words: Sequence[tuple[str, float]]


@dataclass(frozen=True)
class Folded:
    """A table behind its caption."""

    table: Table


@dataclass(frozen=True)
class Side:
    """Blocks side by side where the page is wide enough."""

    blocks: Sequence["Block"]


@dataclass(frozen=True)
class Card:
    """Blocks that belong together, under a small heading."""

    title: str
    blocks: Sequence["Block"]


# A plain `str` is a paragraph.
Block = str | Command | Warned | Weighed | Table | Folded | Plot | Side | Card


@dataclass(frozen=True)
class Section:
    """One of the reader's questions with its answer."""

    name: str  # the anchor
    title: str
    blocks: Sequence[Block]


def tables_of(blocks: Sequence[Block]) -> list[Table]:
    """All tables in reading order, those behind plots included."""
    found: list[Table] = []
    for block in blocks:
        match block:
            case Table():
                found.append(block)
            case Folded(table) | Plot(data=table):
                found.append(table)
            case Side(inner) | Card(_, inner):
                found += tables_of(inner)
    return found


def section(one: Section) -> str:
    """A `<section>` with its heading."""
    body = "\n".join(map(block, one.blocks))
    heading = f'<h2 id="{one.name}-title">{escape(one.title)}</h2>'
    return f'<section id="{one.name}" aria-labelledby="{one.name}-title">\n{heading}\n{body}\n</section>'


def block(one: Block) -> str:
    """Any block as HTML."""
    match one:
        case str():
            return f"<p>{escape(one)}</p>"
        case Command(text):
            return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
        case Warned(text):
            return f'<p class="warned" role="note">{escape(text)}</p>'
        case Weighed():
            return _weighed(one)
        case Table():
            return folded(one, one.caption) if len(one.rows) > LONG else table(one)
        case Folded(inside):
            return folded(inside, inside.caption)
        case Plot():
            return plot(one)
        case Side(blocks):
            return '<div class="side">\n' + "\n".join(map(block, blocks)) + "\n</div>"
        case Card(title, blocks):
            return (
                f'<article class="card">\n<h3>{escape(title)}</h3>\n' + "\n".join(map(block, blocks)) + "\n</article>"
            )


def _widths(one: Table) -> list[str]:
    """A class for each column: numbers to the right, short words unbroken, long texts with room."""
    found = []
    for number, column in enumerate(one.columns):
        longest = max((len(shown(row[number], column.kind)) for row in one.rows), default=0)
        found.append(
            "n" if column.kind != "text" else "short" if longest <= SHORT else "long" if longest > ROOMY else ""
        )
    return found


def table(one: Table, visible_caption: bool = True) -> str:
    """A table that scrolls in its own frame where it is too wide."""
    kinds = [f' class="{name}"' if name else "" for name in _widths(one)]
    heads = "".join(
        f'<th scope="col"{c}>{escape(column.name)}</th>' for column, c in zip(one.columns, kinds, strict=True)
    )
    lines = []
    for row in one.rows:
        texts = [escape(shown(value, column.kind)) for value, column in zip(row, one.columns, strict=True)]
        first = f'<th scope="row"{kinds[0]}>{texts[0]}</th>'
        lines.append(
            f"<tr>{first}{''.join(f'<td{c}>{text}</td>' for c, text in zip(kinds[1:], texts[1:], strict=True))}</tr>"
        )
    rows = "\n".join(lines)
    hidden = "" if visible_caption else ' class="hidden"'
    note = f'<p class="note">{escape(one.note)}</p>' if one.note else ""
    return (
        f'<div class="frame" tabindex="0" role="region" aria-label="{escape(one.caption)}">\n'
        f'<table id="table-{one.name}">\n<caption{hidden}><span>{escape(one.caption)}</span></caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>\n</div>{note}"
    )


def folded(one: Table, summary: str) -> str:
    """A table that opens on request."""
    return (
        f"<details>\n<summary>{escape(summary)} <span>{len(one.rows):,} rows</span></summary>\n"
        f"{table(one, visible_caption=False)}\n</details>"
    )


def plot(one: Plot) -> str:
    """A figure with its words for those who do not see it, and its numbers."""
    name = one.data.name
    opening = f'<svg class="plot" role="img" aria-labelledby="{name}-t {name}-d" '
    words = f'<title id="{name}-t">{escape(one.title)}</title><desc id="{name}-d">{escape(one.alt)}</desc>'
    svg = re.sub(r"<svg ([^>]*)>", lambda m: f"{opening}{m[1]}>{words}", _own_ids(one.svg, name), count=1)
    note = f'<p class="note">{escape(one.note)}</p>' if one.note else ""
    return (
        f"<figure>\n<figcaption>{escape(one.title)}</figcaption>\n{svg}\n{note}"
        f"{folded(one.data, 'The numbers')}\n</figure>"
    )


def _own_ids(svg: str, name: str) -> str:
    """The same SVG with ids that no other figure of the page has."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    return re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)


def _weighed(one: Weighed) -> str:
    words = " ".join(
        f'<span style="--w:{weight:.2f}" title="{100 * weight:.0f} %">{escape(word)}</span>'
        for word, weight in one.words
    )
    return f'<p class="weighed"><span class="caption">{escape(one.caption)}</span> {words}</p>'


def page(title: str, head: str, sections: Sequence[Section]) -> str:
    """The whole document; `head` is HTML."""
    style = files(__package__).joinpath("style.css").read_text(encoding="utf-8")
    links = "".join(
        f'<li><a href="#{one.name}">{escape(one.name.replace("-", " ").capitalize())}</a></li>' for one in sections
    )
    body = "\n".join(map(section, sections))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<header>
{head}
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main>
{body}
</main>
<footer><p>Written by <code>ser report</code>. This file needs nothing else: no network, no script.
WA is the share of utterances that are right; UA the mean of the classes' recalls.</p></footer>
</body>
</html>
"""
