"""Which rows are segments, parts of their audio file, and what each of them is by its samples.

Tables have `start` and `end` for two things: of a segment they are places in its audio file, of an
utterance that was cut out already they are places in its dialogue. Where a reader does not know,
the files say it: several rows of one file are its segments, and a file that is as long as its row
says is cut out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser.corpus.segments import segment_digest

from ..audio import check_length
from ..recording import Span
from .probe import Probe, probe

# Seconds by which a file that is cut out may differ from its place in the dialogue.
CUT_WITHIN = 0.1


@dataclass(frozen=True)
class Segment:
    """What a row is by the samples of its file."""

    digest: str
    duration: float
    """In seconds."""
    is_shortened: bool
    """Whether it ended after the file by less than times are rounded, and now ends with it."""


def has_place(row: Mapping[str, Any]) -> bool:
    """Whether a row says where it begins or ends."""
    return row.get("start") is not None or row.get("end") is not None


def segments_in_folder(rows: Sequence[Mapping[str, Any]], root: Path) -> bool:
    """As `are_segments`, of audio paths below `root`, whose files are opened where need be."""
    places = [row for row in rows if row.get("audio") is not None and has_place(row)]
    if not places:
        return False
    probes = {row["audio"]: probe(root / row["audio"]) for row in places}
    return are_segments(places, probes)


def are_segments(rows: Sequence[Mapping[str, Any]], probes: Mapping[str, Probe]) -> bool:
    """Whether `start` and `end` are places in the audio files.

    They are if rows with different places have one file. Else, if most of the rows lie within their
    file and are shorter than it.
    """
    if share_files(rows):
        return True

    within = 0
    measured = 0
    for row in rows:
        length = probes[row["audio"]].seconds
        if not has_place(row) or length is None:
            continue
        measured += 1
        span = _span_of(row)
        end = length if span.end is None else span.end
        lies_within = 0 <= span.start < end <= length + CUT_WITHIN
        if lies_within and not is_cut_out(row, probes[row["audio"]]):
            within += 1
    return 2 * within > measured


def share_files(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether rows with different places have one file."""
    places: dict[Any, set[tuple[Any, Any]]] = {}
    for row in rows:
        place = (row.get("start"), row.get("end"))
        places.setdefault(row.get("audio"), set()).add(place)
    places.pop(None, None)
    return any(len(of_file) > 1 for of_file in places.values())


def is_cut_out(row: Mapping[str, Any], probe: Probe) -> bool:
    """Whether a file is as long as its row says; where its length is not known, it may be."""
    if probe.seconds is None:
        return True
    span = _span_of(row)
    if span.end is None:
        return span.start == 0
    return abs(span.end - span.start - probe.seconds) <= CUT_WITHIN


def segment_of(row: Mapping[str, Any], probe: Probe) -> Segment:
    """What a row is by its place in a file that was opened.

    Raises `UtteranceError` for a place that is none in this file.
    """
    assert probe.sha256 is not None and probe.rate is not None and probe.frames is not None
    span = _span_of(row)
    first, end = span.samples(probe.rate, probe.frames)
    check_length(end - first, probe.rate, probe.channels)

    is_shortened = span.end is not None and round(span.end * probe.rate) > probe.frames
    digest = segment_digest(probe.sha256, first, end, probe.frames)
    return Segment(digest, (end - first) / probe.rate, is_shortened)


def _span_of(row: Mapping[str, Any]) -> Span:
    return Span(row.get("start") or 0.0, row.get("end"))
