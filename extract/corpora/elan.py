"""Annotation documents of ELAN (.eaf), read by the package pympi."""

import os
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ser.disk.read import open_named
from ser.errors import CorpusError

from .annotations import AnnotationFormat, Annotations, Interval, Tier

if TYPE_CHECKING:
    import pympi

# ELAN counts milliseconds.
MILLISECONDS = 1000

# First and last millisecond, None where the document does not say it.
Span = tuple[float | None, float | None]


def read_eaf(path: Path) -> Annotations:
    """The tiers of a document, those too that lean on another, of which they have the times.

    A tier's participant is the speaker. Raises `CorpusError` for what is none.
    """
    import pympi

    try:
        # Refuses a pipe, which would be waited for.
        os.close(open_named(path))
        with warnings.catch_warnings():
            # That it is of a later version of the format.
            warnings.simplefilter("ignore")
            document = pympi.Eaf(str(path))
        recording = _recording_of(document)
        return [(recording, _tier_of(document, name)) for name in document.get_tier_names()]
    # It raises plain exceptions, too.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CorpusError(f"is not a document of ELAN that can be read ({reason})") from None


def _tier_of(document: "pympi.Eaf", name: str) -> Tier:
    aligned, references, attributes, _ = document.tiers[name]
    speaker = attributes.get("PARTICIPANT") or None

    spans = _spans_of(document, name)
    labels = {annotation: label for annotation, (_, _, label, _) in aligned.items()}
    for annotation, (_, label, _, _) in references.items():
        labels[annotation] = label
        spans[annotation] = _span_of_reference(document, annotation)

    intervals = []
    points = 0
    untimed = 0
    for annotation, label in labels.items():
        start, end = spans[annotation]
        if start is None or end is None:
            untimed += 1
        elif start == end:
            points += 1
        else:
            intervals.append(Interval(start / MILLISECONDS, end / MILLISECONDS, label, speaker))

    note = ""
    if untimed:
        note = f"{untimed} annotations of tier {name!r} have no time, and are left out"
    return Tier(name, intervals, points, note)


def _spans_of(document: "pympi.Eaf", name: str) -> dict[str, Span]:
    """Where the annotations of a tier that have times of their own begin and end.

    Between annotations that divide another one, ELAN writes times only where somebody moved them:
    the others lie evenly between their neighbours, as it shows them.
    """
    aligned = document.tiers[name][0]
    times: dict[str, float | None] = dict(document.timeslots)
    following = {start: end for start, end, *_ in aligned.values()}

    for first in list(following):
        if times.get(first) is None:
            continue
        chain = [first]
        while chain[-1] in following and len(chain) <= len(following):
            chain.append(following[chain[-1]])
            if times.get(chain[-1]) is not None:
                break

        begin = times[first]
        end = times.get(chain[-1])
        if begin is None or end is None:
            continue
        for place, slot in enumerate(chain[1:-1], 1):
            times[slot] = begin + (end - begin) * place / (len(chain) - 1)

    spans = {}
    for annotation, (start, end, *_) in aligned.items():
        spans[annotation] = (times.get(start), times.get(end))
    return spans


def _span_of_reference(document: "pympi.Eaf", annotation: str) -> Span:
    """Where an annotation without times lies: as the one that it leans on, or that leans on."""
    seen = set()
    while annotation not in seen:
        seen.add(annotation)
        tier = document.annotations[annotation]
        aligned, references, *_ = document.tiers[tier]
        if annotation in aligned:
            return _spans_of(document, tier)[annotation]
        annotation = references[annotation][0]
    return None, None


def _recording_of(document: "pympi.Eaf") -> str:
    """The name of the first medium that the document is linked with, without its ending."""
    for medium in document.get_linked_files():
        url = medium.get("RELATIVE_MEDIA_URL") or medium.get("MEDIA_URL") or ""
        if url:
            return PurePosixPath(url.replace("\\", "/")).stem
    return ""


FORMAT = AnnotationFormat("elan", ".eaf", read_eaf)
