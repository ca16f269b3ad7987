"""What is said in the demo corpus: words.toml, and how a text is put together of it."""

import re
import tomllib
import unicodedata
from pathlib import Path

from .draws import Random, draw_one

_WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))

PLAIN_PHRASES: list[str] = _WORDS["plain"]
"""Said in any emotion."""
TAGS: list[str] = _WORDS["tags"]
"""Such as [LAUGHTER]."""
ODD: list[str] = _WORDS["odd"]
"""Texts that a parser stumbles over."""
EMOTIONAL: dict[str, list[str]] = _WORDS["emotional"]
"""Said in one emotion."""


def draw_text(emotion: str | None, rng: Random) -> str:
    """Plain phrases around one of the phrases of an `emotion`, if any; sometimes with a tag."""
    count = int(rng.choice([1, 2, 3, 5], p=[0.62, 0.28, 0.07, 0.03]))
    if emotion is not None and rng.random() < 0.6:
        count -= 1
    phrases = [str(phrase) for phrase in rng.choice(PLAIN_PHRASES, count, replace=False)]

    if emotion is not None:
        place = int(rng.integers(len(phrases) + 1))
        phrases.insert(place, draw_one(rng, EMOTIONAL[emotion]))
    if rng.random() < 0.06:
        phrases.insert(0, draw_one(rng, TAGS))
    return " ".join(phrases)


def demo_vocabulary() -> list[str]:
    """Every word and punctuation mark of the texts, in lower case, sorted.

    Words with accents stand there without them too.
    """
    texts = [*PLAIN_PHRASES, *ODD, *TAGS]
    for phrases in EMOTIONAL.values():
        texts += phrases
    lower = " ".join(texts).lower()

    decomposed = unicodedata.normalize("NFD", lower)
    bare = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    return sorted(set(re.findall(r"\w+|[^\w\s]", f"{lower} {bare}")))
