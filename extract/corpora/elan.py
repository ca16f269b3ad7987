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
    attributes = document.get_parameters_for_tier(name)
    intervals = []
    points = 0
    for start, end, label, *_ in document.get_annotation_data_for_tier(name):
        if start is None or end is None:
            raise ValueError(f"an annotation of tier {name} has no time")
        if start == end:
            points += 1
            continue
        speaker = attributes.get("PARTICIPANT") or None
        intervals.append(Interval(start / MILLISECONDS, end / MILLISECONDS, label, speaker))
    return Tier(name, intervals, points)


def _recording_of(document: "pympi.Eaf") -> str:
    """The name of the first medium that the document is linked with, without its ending."""
    for medium in document.get_linked_files():
        url = medium.get("RELATIVE_MEDIA_URL") or medium.get("MEDIA_URL") or ""
        if url:
            return PurePosixPath(url.replace("\\", "/")).stem
    return ""


FORMAT = AnnotationFormat("elan", ".eaf", read_eaf)
