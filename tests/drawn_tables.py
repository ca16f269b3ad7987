"""Random tables of utterances, with what each value means: what goes in, and what has to come out.

What has to come out is written here by hand, not computed: no function of ser is asked.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st

# In place of a value: the row that holds it is wrong, and has to be named.
FAULT = object()

# So many utterances at most; each has a recording.
MOST_ROWS = 6

# Texts as people write them, and as tables are torn apart by.
TEXTS = [
    "well",
    '"I will go',
    "to the sea",
    'and come back."',
    '"no"',
    'say "no" to',
    '"',
    '""',
    "a,b",
    "a;b",
    "two  blanks",
    "it's",
    "NA",
    "null",
    "0,5",
    "ja, sch\u00f6n",
    "e\u0301",
    "one\ntwo",
    "one\r\ntwo, three",
    "=1+1",
    "",
    None,
]

# By a name as it is written, how it is spelled.
NAMES: dict[Any, str | None] = {
    "anna": "anna",
    " anna ": "anna",
    "Anna": "Anna",
    "anna  lee": "anna lee",
    "anna\u00a0lee": "anna lee",
    "e\u0301va": "\u00e9va",
    "\u00e9va": "\u00e9va",
    "01": "01",
    "1": "1",
    "1.0": "1.0",
    "NA": "NA",
    "nan": "nan",
    "None": "None",
    "": None,
    "  ": None,
    None: None,
}
# Names that may be one person's: each stands as it is, and that is said.
ALIKE = [{"anna", "Anna"}, {"1", "01", "1.0"}]
NUMBERS_AS_NAMES: dict[Any, str | None] = {1: "1", 2.0: "2", 10: "10", math.nan: None, None: None}

LABELS: dict[Any, str | None] = {
    "ang": "ang",
    " happy": "happy",
    "Neutral": "Neutral",
    "nan": "nan",
    "NA": "NA",
    "": None,
    None: None,
}

GENDERS: dict[Any, str | None] = {
    "f": "F",
    "Female": "F",
    "W": "F",
    "m": "M",
    " male ": "M",
    "x": None,
    "": None,
    None: None,
}

RATINGS: dict[Any, Any] = {
    "0.5": 0.5,
    "2,5": 2.5,
    " 3 ": 3.0,
    "-1": -1.0,
    "1e-1": 0.1,
    "nan": None,
    "N/A": None,
    "": None,
    None: None,
    "good": FAULT,
    "1.234,5": FAULT,
    "inf": FAULT,
}
NUMBERS_AS_RATINGS: dict[Any, Any] = {0.25: 0.25, 3: 3.0, -1.5: -1.5, math.nan: None, None: None}

# Without a turn, a row takes the next one of its dialogue: None here.
TURNS: dict[Any, Any] = {
    "0": 0,
    "1.0": 1,
    "2,0": 2,
    " 7 ": 7,
    "": None,
    None: None,
    "0.2": FAULT,
    "1,7": FAULT,
    "-1": FAULT,
    "first": FAULT,
}
NUMBERS_AS_TURNS: dict[Any, Any] = {0.0: 0, 3: 3, 4.0: 4, math.nan: None, None: None, 1.7: FAULT}

VOTES: list[Any] = [[["ang"], ["neu", "sad"]], [["hap"]], None]

# By column, the values that are texts, and those that are numbers.
VALUES: dict[str, tuple[Mapping[Any, Any], Mapping[Any, Any]]] = {
    "session": (NAMES, NUMBERS_AS_NAMES),
    "dialogue": (NAMES, NUMBERS_AS_NAMES),
    "speaker": (NAMES, NUMBERS_AS_NAMES),
    "gender": (GENDERS, {}),
    "label": (LABELS, NUMBERS_AS_NAMES),
    "valence": (RATINGS, NUMBERS_AS_RATINGS),
    "turn": (TURNS, NUMBERS_AS_TURNS),
}

# How other people call a column.
HEADINGS = {
    "id": ["id", "ID", "key", "Key", " id "],
    "audio": ["audio", "file", "wav", "File", "WAV"],
    "text": ["text", "Text", "TEXT "],
    "session": ["session", "Session"],
    "dialogue": ["dialogue", "Dialogue"],
    "speaker": ["speaker", "Speaker", "spk", "SPK"],
    "gender": ["gender", "Gender"],
    "label": ["label", "Label", "emotion", "Emotion", "emo"],
    "valence": ["valence", "Valence"],
    "turn": ["turn", "Turn"],
    "votes": ["votes", "Votes"],
}
STRANGE_HEADINGS = ["age", "Unnamed: 0", "duration_ms"]

# What stands before the number in an id.
PREFIXES = ["u", "0", "Ses01_", "\u00e4", "wav/u", "d e", "'c", 'b"']
PATHS = ["wav/u{}.wav", "./wav/u{}.wav", "wav\\u{}.wav", "WAV/u{}.wav", "flac/u{}.flac"]


@dataclass(frozen=True)
class DrawnTable:
    """A table as somebody has it in mind: one utterance a row."""

    ids: list[str]
    """Of each row `[n]`, whether a column says them or not."""
    columns: dict[str, list[Any]]
    """By the manifest's column, what goes in `[n]`; in the order of the table."""
    headings: dict[str, str]
    """By column, what the table calls it."""
    strangers: list[str]
    """Headings of columns that ser does not know."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, as_written: Callable[[Any], Any]) -> list[dict[str, Any]]:
        """By heading, the values of each row as a writer takes them."""
        rows = []
        for number in range(len(self)):
            row = {heading: as_written(f"{heading} {number}") for heading in self.strangers}
            for column, values in self.columns.items():
                row[self.headings[column]] = as_written(values[number])
            rows.append(row)
        return rows


def is_hole(value: Any) -> bool:
    """Whether a value is none: None, or a number that is none."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any) -> str:
    """A value in a table of texts."""
    if is_hole(value):
        return ""
    if isinstance(value, list):
        return repr(value).replace("'", '"')
    return str(value)


def as_typed(value: Any) -> Any:
    """A value in a table that knows numbers, lists and holes."""
    return value


def meant_by(column: str, value: Any) -> Any:
    """What has to come out of a column for a value as it was written: None for a hole, or `FAULT`.

    Of a text it is the text itself.
    """
    if is_hole(value):
        return None
    if column == "text":
        return value if value.strip() else None
    if column == "votes":
        return next((votes for votes in VOTES if value in (votes, as_text(votes))), None)

    texts, numbers = VALUES[column]
    if not isinstance(value, str):
        return numbers[value]
    if value in texts:
        return texts[value]
    # A number that was written as a text.
    for number, meaning in numbers.items():
        if str(number) == value:
            is_name = column not in ("valence", "turn")
            return value if is_name else meaning
    raise KeyError(value)


@st.composite
def drawn_tables(draw: Any, columns: Sequence[str], can_lack_ids: bool = False) -> DrawnTable:
    """Tables of some of these columns, in any order; always with ids, unless paths can name rows.

    Each value is drawn by itself; a column holds texts, or numbers and holes.
    """
    size = draw(st.integers(1, MOST_ROWS))
    chosen = [column for column in columns if column in ("id", "audio") or draw(st.booleans())]
    if can_lack_ids and draw(st.booleans()):
        chosen.remove("id")

    prefix = draw(st.sampled_from(PREFIXES))
    path = draw(st.sampled_from(PATHS))
    audio = [path.format(number) for number in range(size)]
    ids = [f"{prefix}{number}" for number in range(size)]
    if "id" not in chosen:
        # Without its ending, the path is the id.
        names = [name.removeprefix("./").replace("\\", "/") for name in audio]
        ids = [name.rpartition(".")[0] for name in names]

    values: dict[str, list[Any]] = {}
    for column in draw(st.permutations(chosen)):
        if column == "id":
            values[column] = ids
        elif column == "audio":
            values[column] = audio
        else:
            values[column] = draw(_values_of(column, size))

    headings = {column: draw(st.sampled_from(HEADINGS[column])) for column in values}
    strangers = draw(st.lists(st.sampled_from(STRANGE_HEADINGS), max_size=2, unique=True))
    return DrawnTable(ids, values, headings, strangers)


def _values_of(column: str, size: int) -> Any:
    if column == "text":
        kinds = [st.sampled_from(TEXTS)]
    elif column == "votes":
        kinds = [st.sampled_from(VOTES)]
    else:
        texts, numbers = VALUES[column]
        kinds = [st.sampled_from(list(texts))]
        if numbers:
            kinds.append(st.sampled_from(list(numbers)))
    return st.one_of([st.lists(kind, min_size=size, max_size=size) for kind in kinds])


def meanings_of_row(
    written: Mapping[str, list[Any]], gives: Sequence[str], number: int
) -> dict[str, Any]:
    """What has to come out of a row, by column, but for its names."""
    meanings = {}
    for column, values in written.items():
        if column in gives and column not in ("id", "audio"):
            meanings[column] = meant_by(column, values[number])
    return meanings


def assert_comes_out(
    table: DrawnTable, written: Mapping[str, list[Any]], gives: Sequence[str], out: Any
) -> None:
    """Compare what came out with what went in: rows, ids, labels and every other value.

    `written` are the columns as the writer wrote them, `gives` those that come out, and `out` is a
    `CameOut`. A row that holds a wrong value has to be missing and named; every other one has to be
    there.
    """
    expected_ids = []
    for number, id_ in enumerate(table.ids):
        meanings = meanings_of_row(written, gives, number)
        if FAULT in meanings.values():
            assert id_ not in out.rows, f"{id_} came out although a value of it is wrong"
            continue

        expected_ids.append(id_)
        assert id_ in out.rows, f"{id_} went in and did not come out"
        for column, meaning in meanings.items():
            value = out.rows[id_].get(column)
            if column == "turn" and meaning is None:
                continue
            # Without a dialogue it is one by itself.
            if column == "dialogue" and meaning is None:
                meaning = id_
            if isinstance(meaning, float):
                meaning = pytest.approx(meaning)
            assert value == meaning, f"{column} of {id_}"

    assert list(out.rows) == expected_ids, "other rows, or another order"
    lost = len(table) - len(expected_ids)
    assert len(out.problems) >= lost, "rows are lost without a word"
