"""An audit as one HTML page for a reviewer."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ser.disk.write import write_whole
from ser.train import report

from .audit import Audit
from .in_words import score_sentence, verdict_sentence

if TYPE_CHECKING:
    from markupsafe import Markup


def _with_code(sentence: str) -> "Markup":
    """A sentence, escaped, with what stands between two grave accents as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def write_page(audit: Audit, path: Path) -> None:
    """Write the page as one file that needs no other.

    page.html lays it out in the report's style, and escapes all that it is given.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folders = [Path(__file__).parent, Path(report.__file__).parent]
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["coded"] = _with_code
    scores = []
    for predictions in audit.evidence.predictions:
        scores.append(score_sentence(audit.evidence, predictions))

    sentence = verdict_sentence(audit)
    text = environment.get_template("page.html").render(
        audit=audit, verdict=sentence[0].upper() + sentence[1:], scores=scores
    )
    write_whole(path, text.encode())
