"""How far recognised transcripts are from manual ones: the word error rate."""

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import regex

from ..text import TAG

# With its combining marks, such as the vowel signs of Hindi, and the joiners within a word.
LETTERS = r"[\p{L}\p{N}][\p{L}\p{N}\p{M}\p{Join_Control}]*"
WORD = regex.compile(f"{LETTERS}(?:'{LETTERS})*")


@dataclass(frozen=True)
class WordErrors:
    """The word errors of recognised transcripts, all together."""

    errors: int
    """Words inserted, deleted and substituted."""
    words: int
    """Words of the manual transcripts."""
    utterances: int
    """Utterances that are compared."""

    @property
    def rate(self) -> float | None:
        """The word error rate, which may be above 1; None without a manual word."""
        return self.errors / self.words if self.words else None


def word_errors(pairs: Iterable[tuple[str, str]]) -> WordErrors:
    """The word errors of (manual, recognised) texts; a manual one without a word is left out."""
    errors = 0
    words = 0
    utterances = 0
    for manual_text, recognised_text in pairs:
        manual = split_words(manual_text)
        if manual:
            errors += edit_distance(manual, split_words(recognised_text))
            words += len(manual)
            utterances += 1
    return WordErrors(errors, words, utterances)


def split_words(text: str) -> list[str]:
    """The words that are compared: without case, punctuation and tags such as [LAUGHTER].

    An apostrophe within a word stays.
    """
    untagged = TAG.sub(" ", text)
    folded = unicodedata.normalize("NFKC", untagged).casefold()
    return WORD.findall(folded.replace("’", "'"))


def edit_distance(manual: Sequence[str], recognised: Sequence[str]) -> int:
    """The Levenshtein distance, in words."""
    # distances[n]: from the manual words so far to the first n recognised ones.
    distances = list(range(len(recognised) + 1))
    for row, word in enumerate(manual, 1):
        diagonal = distances[0]
        distances[0] = row
        for column, other in enumerate(recognised, 1):
            substituted = diagonal + (word != other)
            deleted = distances[column] + 1
            inserted = distances[column - 1] + 1
            diagonal = distances[column]
            distances[column] = min(deleted, inserted, substituted)
    return distances[-1]
