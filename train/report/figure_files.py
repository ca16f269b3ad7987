"""Each figure of a report as files for a paper, with its numbers beside it."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ser.disk.write import make_folder, write_whole

from .csv_file import rows_to_csv
from .elements import Plot
from .svg import STYLE, VARIABLES

# What the page shows in its own colours, by its variable: those of the light scheme on white.
COLOURS = {"ink": "#1b1f24", "muted": "#5a636e", "grid": "#e3e6ea"}
# No dates: the same runs give the same bytes.
METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}
DOTS_PER_INCH = 300


def write_figures(plots: Sequence[Plot], folder: Path, decimal: str = ".") -> None:
    """Write NAME.pdf, NAME.svg, NAME.png and NAME.csv of each plot into the folder.

    The numbers of a CSV have a `decimal` point or comma.
    """
    make_folder(folder)
    for plot in plots:
        for form, content in _drawn(plot).items():
            write_whole(folder / f"{plot.table.name}.{form}", content)
        numbers = rows_to_csv(plot.table, decimal).encode()
        write_whole(folder / f"{plot.table.name}.csv", numbers)


def _drawn(plot: Plot) -> dict[str, bytes]:
    """The plot in each form."""
    import matplotlib

    settings: Any = {**_style(), "svg.hashsalt": plot.table.name}
    contents = {}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        drawing = plot.draw()
        _recolour(drawing)
        for form, metadata in METADATA.items():
            sink = io.BytesIO()
            drawing.savefig(sink, format=form, metadata=metadata)
            contents[form] = sink.getvalue()
    return contents


def _style() -> dict[str, Any]:
    """The report's style on white paper, its fonts those of a PDF's reader."""
    import matplotlib

    style: dict[str, Any] = {}
    for key, value in matplotlib.rc_params_from_file(STYLE, use_default_template=False).items():
        style[key] = _shown_colour(value) or value
    return {
        **style,
        "savefig.transparent": False,
        "savefig.facecolor": "white",
        "savefig.dpi": DOTS_PER_INCH,
        "pdf.fonttype": 42,
    }


def _shown_colour(value: Any) -> str | None:
    """The colour in place of one that only the page knows; None for any other value."""
    if not isinstance(value, str):
        return None
    variable = VARIABLES.get(f"#{value.lstrip('#')}")
    return None if variable is None else COLOURS[variable]


def _recolour(drawing: Any) -> None:
    """Give the lines and texts that a plot draws in a colour of the page one of `COLOURS`."""
    from matplotlib.colors import to_hex

    for artist in drawing.findobj(lambda artist: hasattr(artist, "get_color")):
        value = artist.get_color()
        colour = _shown_colour(value if isinstance(value, str) else None)
        if colour is not None:
            artist.set_color(colour)
    for collection in drawing.findobj(lambda artist: hasattr(artist, "get_edgecolors")):
        shown = [_shown_colour(to_hex(edge)) for edge in collection.get_edgecolors()]
        if shown and shown[0] is not None:
            collection.set_edgecolor(shown[0])
