"""Names of speakers, sessions and dialogues: one spelling for one of them."""

import re
import unicodedata
from collections.abc import Iterable


def one_spelling(name: str) -> str:
    """The name in Unicode's composed form (NFC), without blanks around it, single ones within."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def spelled_alike(names: Iterable[str]) -> list[list[str]]:
    """The names that differ by case, zeros or the form of characters alone.

    `anna` and `Anna`; `1`, `01` and `1.0`; what is wide, or joined by characters without a shape.

    >>> spelled_alike(["anna", "Anna", "1", "01", "1.0", "10", "ben"])
    [['01', '1', '1.0'], ['Anna', 'anna']]
    """
    groups: dict[str, set[str]] = {}
    for name in names:
        groups.setdefault(_without_case_and_zeros(_plain(name)), set()).add(name)
    return [sorted(group) for _, group in sorted(groups.items()) if len(group) > 1]


def _plain(name: str) -> str:
    """The name in Unicode's plainest form (NFKC), without characters that have no shape.

    All dashes are one, what joins words is a blank, and digits of any script are 0 to 9.
    """
    letters = []
    for letter in unicodedata.normalize("NFKC", name):
        category = unicodedata.category(letter)
        if category == "Pd":
            letters.append("-")
        elif category == "Pc":
            letters.append(" ")
        elif category == "Nd":
            letters.append(str(unicodedata.decimal(letter)))
        elif category != "Cf":
            letters.append(letter)
    return "".join(letters)


def _without_case_and_zeros(name: str) -> str:
    # "1.0" is what a table's numbers become where one of them is missing.
    whole = re.sub(r"^(\d+)\.0+$", r"\1", name.casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", whole)
