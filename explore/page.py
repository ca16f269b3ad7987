"""The largest effects as one HTML page, with dots over speakers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ser.disk.write import write_whole
from ser.train import report
from ser.train.report.svg import to_svg

from .dots import draw_dots
from .effects import Design, Effect
from .measured import Measured

# Effects on the page.
LARGEST = 20


@dataclass(frozen=True)
class Shown:
    """One effect on the page."""

    effect: Effect
    view_box: str
    plot: str
    sentence: str


def largest(effects: Sequence[Effect]) -> list[Effect]:
    """The effects with the largest sizes, the largest first."""
    known = [effect for effect in effects if effect.d == effect.d]
    return sorted(known, key=lambda effect: -abs(effect.d))[:LARGEST]


def write_page(
    path: Path,
    title: str,
    effects: Sequence[Effect],
    measured: Measured,
    design: Design,
    within: str,
) -> None:
    """Write the page as one file that needs no other.

    page.html lays it out in the report's style, and escapes all that it is given.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    shown = []
    for number, effect in enumerate(largest(effects)):
        values = measured.values[:, list(measured.dimensions).index(effect.dimension)]
        place = design.groups.index(effect.group)

        view_box, plot = to_svg(
            partial(draw_dots, values, effect.dimension, design, place), f"explore{number}"
        )
        shown.append(Shown(effect, view_box, plot, in_words(effect, design.groups[0])))

    folders = [Path(__file__).parent, Path(report.__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html").render(
        title=title,
        shown=shown,
        effects=len(effects),
        speakers=len(set(measured.speakers)),
        utterances=len(measured.groups),
        within=within,
        notes=measured.notes,
    )
    write_whole(path, text.encode())


def in_words(effect: Effect, reference: str) -> str:
    """Such as "angry against neutral: d = 0.52 [0.31, 0.73], p = 0.002 after Holm"."""
    interval = f" [{effect.low:.2f}, {effect.high:.2f}]" if effect.low == effect.low else ""
    p = f", p = {effect.p_holm:.2g} after Holm" if effect.p_holm == effect.p_holm else ""
    return f"{effect.group} against {reference}: d = {effect.d:.2f}{interval}{p}"
