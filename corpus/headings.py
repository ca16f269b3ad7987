"""What the columns of other people's tables are called."""

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from .schema import SCHEMA

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


def column_of(heading: str) -> str:
    """The manifest's column that a heading means, whatever its case; else the heading itself.

    >>> column_of("Speaker"), column_of("WAV"), column_of("Age")
    ('speaker', 'audio', 'Age')
    """
    name = heading.strip().casefold()
    column = ALIASES.get(name, name)
    return column if column in SCHEMA.names else heading


def check_headings(headings: Iterable[str]) -> None:
    """Raise `ValueError` if two headings mean the same column of the manifest."""
    _check_headings(tuple(headings))


# Each line of a JSONL file has headings, most often the same.
@lru_cache(64)
def _check_headings(headings: tuple[str, ...]) -> None:
    counts = Counter(column_of(heading) for heading in headings)
    for column in SCHEMA.names:
        if counts[column] > 1:
            rivals = [heading for heading in headings if column_of(heading) == column]
            raise ValueError(
                f"two columns stand for the {column} ({', '.join(rivals)}): "
                "keep the one that counts"
            )
