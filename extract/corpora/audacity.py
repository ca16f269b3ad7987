"""Label tracks of Audacity: a text file beside the recording, with a label on each line.

A line is `start<TAB>end<TAB>label`, in seconds; a line that begins with a backslash gives the
frequencies of the label before it.
"""

from pathlib import Path

from ser.corpus.times import seconds_of
from ser.disk.text import read_text
from ser.errors import CorpusError

from .annotations import AnnotationFormat, Annotations, Interval, Tier


def read_labels(path: Path) -> Annotations:
    """The labels of a track. Raises `CorpusError` for a line that is none, with its number."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise CorpusError(f"cannot be read ({error})") from None

    intervals = []
    points = 0
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("\\"):
            continue
        start_cell, _, rest = line.partition("\t")
        end_cell, _, label = rest.partition("\t")
        try:
            start = seconds_of(start_cell)
            end = seconds_of(end_cell)
        except ValueError:
            raise CorpusError(
                f"line {number}: is not start, end and label, with tabs between them"
            ) from None
        if start == end:
            points += 1
        else:
            intervals.append(Interval(start, end, label))
    return [("", Tier(path.stem, intervals, points))]


FORMAT = AnnotationFormat("audacity", ".txt", read_labels, has_tiers=False, keeps_empty=True)
