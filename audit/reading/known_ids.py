"""What the ids of known corpora say by themselves: who speaks, in which dialogue, which emotion."""

import re
from collections.abc import Iterable
from pathlib import Path

from ser.extract.corpora.formats import FORMATS
from ser.extract.corpora.iemocap import ID as IEMOCAP_ID
from ser.extract.corpora.layout import Layout, read_layout
from ser.extract.corpora.patterns import Fields, fill

from ..evidence import Utterance

# MSP-Podcast: the number of the podcast, then that of the part. Its ids do not say who speaks.
MSP_PODCAST_ID = re.compile(r"MSP-PODCAST_(?P<podcast>\d{4,5})_\d{4}(?:_\d{4})?", re.ASCII)

# MSP-IMPROV: the sentence to be said, the speaker, how it came to be said, and who speaks to whom.
# The two of a session have one number.
MSP_IMPROV_ID = re.compile(
    r"MSP-IMPROV-(?P<scene>S\d{2}[A-Z])-(?P<speaker>[FM](?P<session>\d{2}))-[A-Z]-[FM]{2}\d{2}",
    re.ASCII,
)

# ESD: who speaks, and the number of the recording.
ESD_ID = re.compile(r"(?P<speaker>00(?:0[1-9]|1\d|20))_\d{6}", re.ASCII)

# Ids that decide which corpus they are of, and the share of them that must fit.
SAMPLE = 50
SHARE = 0.9


def known_utterances(keys: Iterable[str]) -> dict[str, Utterance]:
    """What the ids say, by id; nothing for those of a corpus that is not known."""
    keys = list(keys)
    sample = _sample(keys)

    if _share(sample, IEMOCAP_ID) >= SHARE:
        return _of_iemocap(keys)
    if is_msp_podcast(keys):
        return _of_msp_podcast(keys)
    if _share(sample, MSP_IMPROV_ID) >= SHARE:
        return _of_msp_improv(keys)
    if _share(sample, ESD_ID) >= SHARE:
        return {key: Utterance(speaker=key[:4]) for key in keys if ESD_ID.fullmatch(key)}
    for layout in _layouts():
        fitting = [key for key in sample if _fields(layout, key) is not None]
        if sample and len(fitting) >= SHARE * len(sample):
            return _of_layout(keys, layout)
    return {}


def is_iemocap(keys: Iterable[str]) -> bool:
    """Whether these are ids of IEMOCAP."""
    return _share(_sample(list(keys)), IEMOCAP_ID) >= SHARE


def is_msp_podcast(keys: Iterable[str]) -> bool:
    """Whether these are ids of MSP-Podcast."""
    return _share(_sample(list(keys)), MSP_PODCAST_ID) >= SHARE


def _sample(keys: list[str]) -> list[str]:
    return keys[:: max(1, len(keys) // SAMPLE)]


def _share(sample: list[str], pattern: re.Pattern[str]) -> float:
    """The share of the sample that a pattern matches."""
    if not sample:
        return 0.0
    return sum(pattern.fullmatch(key) is not None for key in sample) / len(sample)


def _of_iemocap(keys: Iterable[str]) -> dict[str, Utterance]:
    known = {}
    for key in keys:
        match = IEMOCAP_ID.fullmatch(key)
        if match is not None:
            dialogue = match["dialogue"]
            # Not dialogue[:6]: that letter says who wore the markers.
            known[key] = Utterance(speaker=dialogue[:5] + match["gender"], dialogue=dialogue)
    return known


def _of_msp_podcast(keys: Iterable[str]) -> dict[str, Utterance]:
    """A podcast is a dialogue of its own."""
    known = {}
    for key in keys:
        match = MSP_PODCAST_ID.fullmatch(key)
        if match is not None:
            known[key] = Utterance(dialogue=f"podcast {match['podcast']}")
    return known


def _of_msp_improv(keys: Iterable[str]) -> dict[str, Utterance]:
    known = {}
    for key in keys:
        match = MSP_IMPROV_ID.fullmatch(key)
        if match is not None:
            dialogue = f"session {match['session']}, {match['scene']}"
            known[key] = Utterance(speaker=match["speaker"], dialogue=dialogue)
    return known


def _layouts() -> list[Layout]:
    """Described corpora whose file names alone name the speaker."""
    layouts = []
    for entry in FORMATS.data.values():
        if isinstance(entry, Path):
            layout = read_layout(entry)
            if (not layout.tables and "speaker" in layout.columns) or layout.name == "CREMA-D":
                layouts.append(layout)
    return layouts


def _of_layout(keys: Iterable[str], layout: Layout) -> dict[str, Utterance]:
    known = {}
    for key in keys:
        fields = _fields(layout, key)
        if fields is None:
            continue
        values = {}
        for column in ("speaker", "label"):
            value = fill(layout.columns.get(column, ""), fields)
            mapping = layout.maps.get(column)
            if value and mapping is not None:
                value = mapping.get(value, mapping.get("*"))
            values[column] = value or None
        known[key] = Utterance(speaker=values["speaker"], label=values["label"])
    return known


def _fields(layout: Layout, key: str) -> Fields | None:
    """What a name says, if it is one of the corpus: its emotion must be one of the corpus's.

    Oréau's names are made as EmoDB's are, of other letters.
    """
    fields = layout.match(key)
    if fields is None:
        return None
    emotions = layout.maps.get("label")
    label = fill(layout.columns.get("label", ""), fields)
    if emotions is not None and label and label not in emotions and "*" not in emotions:
        return None
    return fields
