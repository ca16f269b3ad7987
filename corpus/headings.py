"""What the columns of other people's tables are called."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from .schema import SCHEMA
from .times import UNITS

# What others call the columns of a manifest: nkululeko's CSV (file, speaker, gender, emotion),
# EmoBox's JSONL (key, wav, length, emo) and their like.
ALIASES = {
    "file": "audio",
    "wav": "audio",
    "emotion": "label",
    "emo": "label",
    "key": "id",
    "spk": "speaker",
}

# Columns that hold the path of the audio where no other is called audio. They may stand beside one
# that is, such as in the tables of Hugging Face.
PATHS = {"path", "filename", "file_name", "filepath", "file_path"}
PATHS |= {"audio_file", "audio_path", "wav_file", "wav_path"}

# What others call the times: Praat's tables tmin and tmax, ELAN's exports "Begin Time - ss.msec",
# BIDS onset and duration.
TIMES = {
    "start": "start",
    "begin": "start",
    "onset": "start",
    "tmin": "start",
    "end": "end",
    "stop": "end",
    "tmax": "end",
    "duration": "duration",
}

# Such as start_ms, End (s), "start time [ms]" or StartTime.
_TIME = re.compile(
    rf"({'|'.join(TIMES)})(?:[ _]?time)?"
    rf"(?:[ _]?[(\[]?({'|'.join(UNITS)})[)\]]?| - (hh:mm:ss\.ms|ss\.msec|msec))?"
)


def column_of(heading: str) -> str:
    """The manifest's column that a heading means, whatever its case; else the heading itself.

    >>> column_of("Speaker"), column_of("WAV"), column_of("Age")
    ('speaker', 'audio', 'Age')
    """
    name = heading.strip().casefold()
    column = ALIASES.get(name, name)
    time = _TIME.fullmatch(name)
    if time is not None:
        column = TIMES[time[1]]
    return column if column in SCHEMA.names else heading


def path_heading(headings: Iterable[str]) -> str | None:
    """The one heading of `PATHS` in a table without an audio column; None if it is not known.

    >>> path_heading(["Path", "emotion"]), path_heading(["path", "wav"]), path_heading(["id"])
    ('Path', None, None)
    """
    headings = list(headings)
    if any(column_of(heading) == "audio" for heading in headings):
        return None
    candidates = [heading for heading in headings if heading.strip().casefold() in PATHS]
    return candidates[0] if len(candidates) == 1 else None


def unit_of(heading: str) -> str:
    """The unit of the times under a heading, as it names it; empty if it names none.

    >>> unit_of("start"), unit_of("start_ms")
    ('', 'ms')
    """
    time = _TIME.fullmatch(heading.strip().casefold())
    if time is None:
        return ""
    return "ms" if time[3] == "msec" else time[2] or ""


def check_headings(headings: Iterable[str]) -> None:
    """Raise `ValueError` if two headings mean the same column of the manifest."""
    _check_headings(tuple(headings))


# Each line of a JSONL file has headings, most often the same.
@lru_cache(64)
def _check_headings(headings: tuple[str, ...]) -> None:
    counts = Counter(column_of(heading) for heading in headings)
    for column in SCHEMA.names:
        # One in seconds and one in milliseconds say the same, and no manifest takes either.
        if column != "duration" and counts[column] > 1:
            rivals = [heading for heading in headings if column_of(heading) == column]
            raise ValueError(
                f"two columns stand for the {column} ({', '.join(rivals)}): "
                "keep the one that counts"
            )
