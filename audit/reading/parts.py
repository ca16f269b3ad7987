"""How toolkits call the parts of a split, in a column or in the name of a file."""

import re

WORDS = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "dev": "dev",
    "development": "dev",
    "devel": "dev",
    "val": "dev",
    "valid": "dev",
    "validation": "dev",
    "test": "test",
    "tst": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}

# A part's word, perhaps with a number, between anything but letters.
IN_A_NAME = re.compile(
    rf"(?<![a-z])({'|'.join(sorted(WORDS, key=len, reverse=True))})(\d?)(?![a-z])", re.IGNORECASE
)

# "fold_3", "Session1", "cv2": what a file or folder says of the fold.
FOLD_IN_A_NAME = re.compile(
    r"(?<![a-z])((?:fold|session|ses|cv|split|run)[ _-]?\d+)", re.IGNORECASE
)


def part_of(word: str) -> str | None:
    """The part that a cell names: "train", "dev", "test", "test1", …; None if it names none."""
    match = IN_A_NAME.fullmatch(word.strip())
    if match is None:
        return None
    return _part(match)


def part_in_name(name: str) -> str | None:
    """The part that the name of a file names, if it names exactly one."""
    parts = {_part(match) for match in IN_A_NAME.finditer(name)}
    if len(parts) == 1:
        return parts.pop()
    return None


def fold_in_name(name: str) -> str | None:
    """The fold that a file or folder names, such as "fold_3"."""
    match = FOLD_IN_A_NAME.search(name)
    return None if match is None else match[1]


def _part(match: re.Match[str]) -> str:
    part = WORDS[match[1].lower()]
    # Only a test part comes in several: "train5" is a name that somebody gave.
    return f"{part}{match[2]}" if part == "test" else part
