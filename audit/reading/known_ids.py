"""What the ids of known corpora say by themselves: who speaks, in which dialogue, which emotion."""

from collections.abc import Iterable
from pathlib import Path

from ser.extract.corpora.formats import FORMATS
from ser.extract.corpora.iemocap import ID as IEMOCAP_ID
from ser.extract.corpora.layout import Layout, read_layout
from ser.extract.corpora.patterns import fill

from ..evidence import Utterance

# Ids that decide which corpus they are of, and the share of them that must fit.
SAMPLE = 50
SHARE = 0.9


def known_utterances(keys: Iterable[str]) -> dict[str, Utterance]:
    """What the ids say, by id; nothing for those of a corpus that is not known."""
    keys = list(keys)
    step = max(1, len(keys) // SAMPLE)
    sample = keys[::step]

    if _share_of_iemocap(sample) >= SHARE:
        return _of_iemocap(keys)
    for layout in _layouts():
        fitting = [key for key in sample if layout.match(key) is not None]
        if sample and len(fitting) >= SHARE * len(sample):
            return _of_layout(keys, layout)
    return {}


def is_iemocap(keys: Iterable[str]) -> bool:
    """Whether these are ids of IEMOCAP."""
    keys = list(keys)
    return _share_of_iemocap(keys[:: max(1, len(keys) // SAMPLE)]) >= SHARE


def _share_of_iemocap(sample: list[str]) -> float:
    if not sample:
        return 0.0
    return sum(IEMOCAP_ID.fullmatch(key) is not None for key in sample) / len(sample)


def _of_iemocap(keys: Iterable[str]) -> dict[str, Utterance]:
    known = {}
    for key in keys:
        match = IEMOCAP_ID.fullmatch(key)
        if match is not None:
            dialogue = match["dialogue"]
            # Not dialogue[:6]: that letter says who wore the markers.
            known[key] = Utterance(speaker=dialogue[:5] + match["gender"], dialogue=dialogue)
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
        fields = layout.match(key)
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
