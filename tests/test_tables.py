"""Tables of other people: no row is merged, no index is a feature, no person is two."""

import csv
import json
import textwrap
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import zarr
from hypothesis import strategies as st

from ser.cache.store import open_store
from ser.cache.tools.importing import import_feature
from ser.corpus.delimited import read_columns, read_delimited
from ser.corpus.manifest import Manifest
from ser.corpus.people import one_spelling, spelled_alike
from ser.errors import CorpusError, StoreError, WrongUse, printable
from ser.extract.corpora.counts import summary
from ser.extract.corpora.scan import scan_corpus
from ser.extract.corpora.table import read_manifest
from ser.predict.inputs import read_inputs
from ser.tests.command_line import printed, ser
from ser.tests.named_commands import next_command
from ser.tests.store_samples import manifest_of
from ser.train.data.fold_files import read_folds

# A quotation that opens in one row and closes in another.
QUOTED = [
    ["audio", "text", "speaker", "label"],
    ["a.wav", '"I will go', "s1", "ang"],
    ["b.wav", "to the sea", "s1", "neu"],
    ["c.wav", 'and come back."', "s2", "hap"],
    ["d.wav", "fine", "s2", "neu"],
]


@pytest.fixture
def four_files(tmp_path: Path) -> Path:
    for number, name in enumerate("abcd"):
        sf.write(tmp_path / f"{name}.wav", np.full(800, 0.1 * (number + 1)), 16000)
    return tmp_path


def joined(rows: list[list[str]], delimiter: str) -> str:
    return "".join(delimiter.join(cells) + "\n" for cells in rows)


def cells_of(text: str, has_tabs: bool = False) -> list[list[str]]:
    return [row.cells for row in read_delimited(text, has_tabs)]


def test_tsv_knows_no_quotation(four_files: Path) -> None:
    path = four_files / "t.tsv"
    path.write_text(joined(QUOTED, "\t"))

    manifest = scan_corpus(path).manifest
    assert manifest.ids == ["a", "b", "c", "d"]
    assert manifest.column("text") == [row[1] for row in QUOTED[1:]]
    assert manifest.column("label") == ["ang", "neu", "hap", "neu"]


def test_a_quotation_without_an_end_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('audio,text\na.wav,well\nb.wav,"well\nc.wav,well\n')
    with pytest.raises(CorpusError, match="line 3: a quotation opens there and is never closed"):
        scan_corpus(path)


@pytest.mark.parametrize("delimiter", [",", ";"], ids=["commas", "semicolons"])
def test_a_quotation_that_swallows_rows_is_refused_with_its_line(
    four_files: Path, delimiter: str
) -> None:
    path = four_files / "t.csv"
    path.write_text(joined(QUOTED, delimiter))
    with pytest.raises(CorpusError, match=r"line 2: a quotation opens there .* up to 4 into one"):
        scan_corpus(path)

    # The remedy that it names: the marks doubled in a quoted cell.
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(QUOTED)
    manifest = scan_corpus(path).manifest
    assert manifest.column("text") == [row[1] for row in QUOTED[1:]]


SWALLOWED = {
    "two rows": 'a,b,c\n1,"2,3\n4,5",6\n',
    "with a cell less": 'a,b,c\n1,"2,3\n4,5"\n',
    "in the last column": 'a,b,c\n1,2,"3\n4,5,6"\n',
    "with carriage returns": 'a,b,c\r\n1,"2,3\r\n4,5",6\r\n',
    "up to the end": 'a,b,c\n1,"2,3\n4,5,6\n',
    "from the first column": 'a,b,c\n"1,2,3\n4",5,6\n',
    "in the first column too": 'a,b,c\n"1\n2,3,4\n5",6,7\n',
    "a row between": 'a,b\n1,"x\n2,y\nz"\n',
    "below quoted headings": '"a","b","c"\nu1,2,"3\nu2,5,6"\n',
    "below quoted headings, by number": '"a","b"\n1,"2\n3,4"\n',
}


@pytest.mark.parametrize("kind", SWALLOWED)
def test_swallowed_rows_are_seen(kind: str) -> None:
    with pytest.raises(csv.Error, match="line 2: "):
        cells_of(SWALLOWED[kind])


KEPT = {
    "a line break in a cell": ('a,b,c\n1,"x\ny",3\n', [["a", "b", "c"], ["1", "x\ny", "3"]]),
    "one in the first cell": ('a,b,c\n"x\ny",2,3\n', [["a", "b", "c"], ["x\ny", "2", "3"]]),
    "a doubled mark": ('a,b\n1,"say ""no"""\n', [["a", "b"], ["1", 'say "no"']]),
    "a mark within": ('a,b\n1,6" long\n', [["a", "b"], ["1", '6" long']]),
    "an empty line": ("a,b\n\n1,2\n", [["a", "b"], ["1", "2"]]),
    "other line ends": ("a,b\r1,x\u2028y\r", [["a", "b"], ["1", "x\u2028y"]]),
    "nothing": ("", []),
}


@pytest.mark.parametrize("kind", KEPT)
def test_rows_are_read_as_they_are(kind: str) -> None:
    text, expected = KEPT[kind]
    assert cells_of(text) == expected


PLAIN_CELLS = ["a", "b c", " ", "", "NA", "null", "1", "\u00e9", "'x"]


@hypothesis.settings(max_examples=300, deadline=None, derandomize=True)
@hypothesis.given(
    st.lists(
        st.lists(
            st.sampled_from([*PLAIN_CELLS, '"a, b"', '""', '"', 'a"', '"a""b"', ' "c"', '"d\ne"']),
            max_size=3,
        )
    ),
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from(["\n", "\r\n", "\r", "\n\n"]),
)
def test_columns_are_what_the_rows_say(
    rows: list[list[str]], delimiter: str, line_end: str
) -> None:
    text = line_end.join(delimiter.join(cells) for cells in [["h", "i", "j"], *rows])
    plain = read_columns(text, has_tabs=delimiter == "\t")
    if plain is None:
        return
    header, *read = cells_of(text, has_tabs=delimiter == "\t")
    assert list(plain) == header
    for place, column in enumerate(plain.values()):
        assert column == [cells[place] if cells[place].strip() else None for cells in read]


def test_columns_are_read_where_each_row_is_a_line() -> None:
    assert read_columns("a;b\n1;\n\n2; \n", False) is None
    assert read_columns("a;b\n1;\n\n2;NA\n", False) == {"a": ["1", "2"], "b": [None, "NA"]}
    assert read_columns('a,b\n1,"2, 3"\n', False) == {"a": ["1"], "b": ["2, 3"]}
    assert read_columns('a\tb\n1\t"2"\n', False) is None
    assert read_columns('a,b\n1,"2\n3"\n', False) is None
    assert read_columns("a,b\n1\n", False) is None
    assert read_columns("a,a\n1,2\n", False) is None


def test_rows_on_several_lines_are_counted(four_files: Path) -> None:
    path = four_files / "t.csv"
    path.write_text('audio,text,label\na.wav,"one\ntwo",ang\nb.wav,three,neu\n')
    scan = scan_corpus(path)
    assert scan.manifest.column("text") == ["one\ntwo", "three"]
    assert "t.csv: 2 rows on 4 lines: 1 hold line breaks, such as lines 2 to 3" in scan.warnings


def test_transcripts_and_folds_are_read_alike(four_files: Path) -> None:
    corpus = four_files / "corpus.csv"
    corpus.write_text("audio\na.wav\nb.wav\n")
    text = four_files / "asr.tsv"
    text.write_text('id\ttext\na\t"oh\nb\tno"\n')
    assert scan_corpus(corpus, text=text).manifest.column("text") == ['"oh', 'no"']

    folds = four_files / "folds.tsv"
    folds.write_text('id\tfold\n"a\t1\nb"\t2\n')
    assert [fold.ids["test"] for fold in read_folds(folds)] == [{'"a'}, {'b"'}]

    folds = four_files / "folds.csv"
    folds.write_text('id,fold\n"a,1\nb",2\n')
    with pytest.raises(WrongUse, match=r"folds\.csv: not a list of folds .*line 2: a quotation"):
        read_folds(folds)


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        pytest.param('"say ""no"""', 'say "no"', id="doubled by a writer"),
        pytest.param('"no"', '"no"', id="marks of the text"),
        pytest.param('"a" ""b""', '"a" ""b""', id="both"),
        pytest.param('"', '"', id="one mark"),
        # As polars writes an empty text.
        pytest.param('""', "", id="two marks"),
    ],
)
def test_marks_of_a_tsv(cell: str, expected: str) -> None:
    assert cells_of(f"a\tb\n1\t{cell}\n", has_tabs=True) == [["a", "b"], ["1", expected]]


INDEXED = {
    "an index without a name": (",a,b\n0,1,2\n1,3,4\n", "column 1 has no name, and may be the"),
    "an index that pandas read": ("Unnamed: 0,a\n0,1\n1,3\n", "column 1 has no name"),
    "ids without a name": (",a,b\nu001,1,2\nu000,3,4\n", "call it id if it holds the ids"),
    "numbers of the columns": ("0,1,2\n1,2,3\n4,5,6\n", "say --no-header if it is a row"),
    "numbers from 1": ("1,2\n1.5,2\n4,5\n", "its first line is 1, 2, …"),
    "an index called so": ("index,a\n0,1\n1,3\n", "column 1 is called index, and may be the"),
    "an index called otherwise": ("X,a\n1,1\n2,3\n3,5\n", r"counts the rows \(X\)"),
    "an index at the end": ("a,b,n\n1.5,2,7\n3,4.5,8\n5,1,9\n", r"counts the rows \(n\)"),
    "an index that falls": ("n,a\n3,1.5\n2,2.5\n1,4.5\n", r"counts the rows \(n\)"),
    "an index in between": (
        "a,n,b\n1.5,0,2\n3,1,4.5\n1,2,9\n2,3,0\n4,4,1\n",
        r"counts the rows \(n\)",
    ),
    "an index by tens": ("n,a\n10,1.5\n20,2.5\n30,4.5\n", r"counts the rows \(n\)"),
    "classes as numbers": (
        "id,a,emotion\nu001,1,0\nu000,3,2\n",
        "emotion is no feature",
    ),
    "people as numbers": ("id,SPK,a\nu001,1,0\nu000,3,2\n", "but the speaker"),
    "an index and no header": ("000,0.1\n001,0.3\n", "a column of it counts the rows"),
    "an index and numbers": (",0,1\n0,1,2\n1,3,4\n", "column 1 has no name"),
}


@pytest.mark.parametrize("kind", INDEXED)
def test_an_index_is_no_feature(kind: str, tmp_path: Path) -> None:
    content, sentence = INDEXED[kind]
    path = tmp_path / "x.csv"
    path.write_text(content)
    store = open_store(tmp_path / "store", create=True)
    with pytest.raises(StoreError, match=sentence):
        import_feature(store, "mine", path, "audio", manifest_of(2))
    assert store.corpora() == []


def test_the_remedies_of_an_index_work(tmp_path: Path) -> None:
    store = tmp_path / "store"
    table = tmp_path / "utterances.csv"
    table.write_text("id\nu000\nu001\n")
    words = ("--modality", "audio", "--manifest", table, "--store", store)

    # Named id, it joins: the rows are in another order than the table's.
    ids = tmp_path / "ids.csv"
    ids.write_text("id,a,b\nu001,3,4\nu000,1,2\n")
    done = ser("cache", "import", "by-id", ids, *words)
    assert "2 rows of 2 numbers, of 2 utterances; 0 missing; joined by id" in done.stdout
    assert open_store(store)["by-id"]["u000"].tolist() == [1.0, 2.0]

    numbers = tmp_path / "numbers.csv"
    numbers.write_text("0,1\n3,4\n")
    done = ser("cache", "import", "by-order", numbers, "--no-header", *words)
    assert "2 rows of 2 numbers, of 2 utterances; 0 missing; joined by manifest" in done.stdout
    assert open_store(store)["by-order"]["u000"].tolist() == [0.0, 1.0]

    np.save(tmp_path / "x.npy", np.ones((2, 2)))
    done = ser("cache", "import", "array", tmp_path / "x.npy", "--no-header", *words)
    assert done.exit_code == 2
    assert "leave --no-header out" in done.stderr


def test_one_person_has_one_name(four_files: Path) -> None:
    path = four_files / "t.csv"
    lines = ["audio,speaker,session", "a.wav,anna,1", "b.wav, anna ,1", "c.wav,A\u0308nne,2"]
    path.write_text("\n".join([*lines, "d.wav,\u00c4nne,02"]), encoding="utf-8")

    scan = scan_corpus(path)
    assert scan.manifest.column("speaker") == ["anna", "anna", "\u00c4nne", "\u00c4nne"]
    [warning] = [text for text in scan.warnings if "case or zeros" in text]
    assert warning.startswith("1 sessions are written in several ways")
    assert "such as 02, 2: each way counts as another session" in warning


def test_training_says_who_may_be_one_person(tmp_path: Path) -> None:
    lines = ["audio,speaker,session,label"]
    names = ["anna", "ben", "01", "Anna", "eve", "1"]
    for number in range(12):
        sf.write(tmp_path / f"{number}.wav", np.full(800, 0.01 * (number + 1)), 16000)
        session = number // 6
        lines.append(f"{number}.wav,{names[number // 2]},{session},{['ang', 'neu'][number % 2]}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    ser("features", tmp_path / "t.csv", "--features", "logmel", "--store", tmp_path / "store")

    words = ("--store", tmp_path / "store", "--features", "logmel", "--fusion", "audio")
    done = ser("train", *words, "--labels", "all", "--protocol", "session-out", "--dry-run")

    assert done.exit_code == 0, done.output
    assert "warning: 4 test speakers are spelled as ones in training but for" in done.stderr


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("  anna\t", "anna", id="blanks around"),
        pytest.param("anna  maria", "anna maria", id="two blanks within"),
        pytest.param("anna\u00a0maria", "anna maria", id="a blank that does not break"),
        pytest.param("e\u0301", "\u00e9", id="a composed letter"),
        pytest.param("Anna", "Anna", id="a capital stays"),
        pytest.param("01", "01", id="a zero stays"),
    ],
)
def test_spellings(name: str, expected: str) -> None:
    assert one_spelling(name) == expected


# Whether two ways to write a speaker count as one person, as one with a warning, or as two.
PEOPLE: dict[str, tuple[object, object, str]] = {
    "a tab before": ("\tanna", "anna", "one"),
    "a line end behind": ("anna\n", "anna", "one"),
    "a wide blank": ("anna\u3000", "anna", "one"),
    "thin blanks within": ("anna\u2009 b", "anna b", "one"),
    "an Angstrom sign": ("\u212bsa", "\u00c5sa", "one"),
    "accents apart": ("Zoe\u0308", "Zo\u00eb", "one"),
    "a number and its text": (7, "7", "one"),
    "a number with a point": (7.0, "7", "one"),
    "a text with a point": ("7.0", "7", "warned"),
    "a zero before": ("07", "7", "warned"),
    "zeros within": ("Ses01F", "Ses1F", "warned"),
    "a large letter": ("anna B", "anna b", "warned"),
    "capitals alone": ("ANNA", "anna", "warned"),
    "a sharp s": ("Stra\u00dfe", "STRASSE", "warned"),
    "wide digits": ("\uff17", "7", "warned"),
    "a ligature": ("\ufb01ona", "fiona", "warned"),
    "nothing that is seen": ("an\u200bna", "anna", "warned"),
    "a soft hyphen": ("an\u00adna", "anna", "warned"),
    "a mark of order": ("\ufeffanna", "anna", "warned"),
    "true and True": (True, "true", "warned"),
    "another number": ("10", "1", "two"),
    "more zeros behind": ("100", "10", "two"),
    "a point behind": ("anna.", "anna", "two"),
    "another accent": ("Zo\u00eb", "Zo\u00e9", "two"),
}


@pytest.mark.parametrize("column", ["speaker", "session", "dialogue"])
@pytest.mark.parametrize("kind", PEOPLE)
def test_who_counts_as_one_person(four_files: Path, kind: str, column: str) -> None:
    first, second, expected = PEOPLE[kind]
    path = four_files / "t.jsonl"
    rows: list[dict[str, object]] = []
    for name, value in zip("ab", (first, second), strict=True):
        rows.append({"audio": f"{name}.wav", column: value})
    write_jsonl(path, rows)

    scan = scan_corpus(path)
    count = len(set(scan.manifest.column(column)))
    is_warned = any("differ by case or zeros" in warning for warning in scan.warnings)
    assert (count, is_warned) == {"one": (1, False), "warned": (2, True), "two": (2, False)}[
        expected
    ]


def test_what_differs_by_case_or_zeros() -> None:
    names = ["S1", "s01", "s10", "1", "01", "1.0", "10", "100", "0", "00", "Anna", "anna", "1.5"]
    names += ["7", "\u0667"]  # the same digit in Arabic
    assert spelled_alike(names) == [
        ["0", "00"],
        ["01", "1", "1.0"],
        ["7", "\u0667"],
        ["Anna", "anna"],
        ["S1", "s01"],
    ]


# What is missing
# ----------------------------------------


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parquet(path: Path, rows: list[dict[str, object]]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        sheet = csv.DictWriter(file, list(rows[0]))
        sheet.writeheader()
        sheet.writerows(rows)


TABLES = {"jsonl": write_jsonl, "parquet": write_parquet, "csv": write_csv}
WITH_A_HOLE = {
    "null": ("jsonl", None),
    "a JSON NaN": ("jsonl", float("nan")),
    "an empty text": ("jsonl", ""),
    "a Parquet null": ("parquet", None),
    "an empty cell": ("csv", ""),
    "a blank cell": ("csv", "  "),
}


@pytest.mark.parametrize("column", ["label", "speaker", "session", "gender", "text", "valence"])
@pytest.mark.parametrize("kind", WITH_A_HOLE)
def test_missing_is_missing_in_every_format(four_files: Path, kind: str, column: str) -> None:
    ending, hole = WITH_A_HOLE[kind]
    there = {"label": "ang", "speaker": "s1", "session": "1", "gender": "F", "text": "oh"}
    rows: list[dict[str, object]] = []
    for name in "abcd":
        rows.append({"audio": f"{name}.wav", **there, "valence": "2.5"})
    rows[1][column] = hole
    path = four_files / f"t.{ending}"
    TABLES[ending](path, rows)

    facts = summary(scan_corpus(path))

    assert facts["missing"] == {column: 1}
    assert facts["problems"] == []
    assert "nan" not in json.dumps(facts).casefold()


def test_parquet_of_pandas_has_no_class_nan(four_files: Path) -> None:
    path = four_files / "t.parquet"
    frame = pd.DataFrame({"audio": ["a.wav", "b.wav", "c.wav"], "label": ["ang", None, np.nan]})
    frame["speaker"] = [1, 2, None]
    frame.to_parquet(path)

    manifest = scan_corpus(path).manifest
    assert manifest.column("label") == ["ang", None, None]
    assert manifest.column("speaker") == ["1", "2", None]


def test_words_of_a_csv_stay_words_and_are_named(four_files: Path) -> None:
    path = four_files / "t.csv"
    path.write_text("audio,label,valence\na.wav,NA,NA\nb.wav,nan,0.5\nc.wav,ang,\n")
    scan = scan_corpus(path)

    assert scan.manifest.column("label") == ["NA", "nan", "ang"]
    assert scan.manifest.column("valence") == [None, 0.5, None]
    [warning] = [text for text in scan.warnings if "is the word" in text]
    assert "the label of 2 utterances is the word 'NA'" in warning
    assert "valence 2" in printed("corpus", "show", path)


@pytest.mark.parametrize("word", ["?", "-", ".", "#N/A", "\\N", "Unknown", "NULL", "<NA>"])
def test_words_that_may_stand_for_nothing_are_named(four_files: Path, word: str) -> None:
    path = four_files / "t.csv"
    path.write_text(f"audio,label,speaker\na.wav,{word},ben\nb.wav,ang,{word}\n")
    scan = scan_corpus(path)

    assert scan.manifest.column("label") == [word, "ang"]
    for column in ("label", "speaker"):
        assert f"the {column} of 1 utterances is the word {word!r}" in "\n".join(scan.warnings)


def test_decimals_of_a_database_are_names(four_files: Path) -> None:
    table = pa.table({"audio": ["a.wav", "b.wav"], "speaker": [Decimal("1.00"), None]})
    pq.write_table(table, four_files / "t.parquet")
    assert scan_corpus(four_files / "t.parquet").manifest.column("speaker") == ["1", None]


def test_numbers_of_a_described_table_are_names(four_files: Path) -> None:
    """A column of whole numbers holds 1.0 where another row has none."""
    frame = pd.DataFrame({"id": ["a", "b", "c", "d"], "who": [1, 2, None, 1]})
    frame.to_parquet(four_files / "people.parquet")
    layout = four_files / "layout.toml"
    layout.write_text(
        'name = "toy"\npattern = \'[a-d]\'\n[columns]\nspeaker = "{who}"\n'
        '[[tables]]\nfile = "people.parquet"\nof = "{stem}"\nkey = "{id}"\n'
    )
    manifest = scan_corpus(four_files, str(layout)).manifest
    assert manifest.column("speaker") == ["1", "2", None, "1"]


def test_a_list_of_utterances_is_warned_of_as_a_corpus(four_files: Path) -> None:
    path = four_files / "t.csv"
    rows = ["id,audio,speaker,text,age", "1,a.wav,Anna,oh,30", "2,b.wav,an\u200bna,no,31"]
    path.write_text("\n".join([*rows, "3,c.wav,nan,so,32"]), encoding="utf-8")

    said = "\n".join(read_manifest(path, "mine").warnings)
    assert "1 speakers are written in several ways" in said
    assert "the speaker of 1 utterances is the word 'nan'" in said
    assert "columns that are not read: age" in said
    assert read_inputs([], None, path, takes_audio=True).warnings == said.split("\n")

    np.save(four_files / "x.npy", np.ones((3, 2)))
    words = ("--modality", "audio", "--manifest", path, "--store", four_files / "store")
    done = ser("cache", "import", "mine", four_files / "x.npy", *words)
    assert done.exit_code == 0, done.output
    for sentence in said.split("\n"):
        assert f"warning: {printable(sentence)}" in done.stderr


# Numbers and headings
# ----------------------------------------

TURNS = {
    "points in CSV": ("t.csv", ["0.0", "1.0", "2.0"], [0, 1, 2]),
    "commas in CSV": ("t.csv", ["0,0", "1,0", "2,0"], [0, 1, 2]),
    "floats in JSON": ("t.jsonl", [0.0, 1.0, 2.0], [0, 1, 2]),
    "floats in Parquet": ("t.parquet", [0.0, 1.0, 2.0], [0, 1, 2]),
    "fractions in CSV": ("t.csv", ["0.2", "1.7", "2"], "line 2: the turn '0.2' is not a whole"),
    "fractions in JSON": ("t.jsonl", [0.2, 1.7, 2.5], "line 1: the turn 0.2 is not a whole"),
    "fractions in Parquet": ("t.parquet", [0.2, 1.7, 1.2], "row 1: the turn 0.2 is not a whole"),
    "truths in JSON": ("t.jsonl", [True, False, True], "line 1: the turn True is not a whole"),
}


@pytest.mark.parametrize("kind", TURNS)
def test_turns_are_whole_numbers(four_files: Path, kind: str) -> None:
    name, turns, expected = TURNS[kind]
    rows = [
        {"audio": f"{a}.wav", "dialogue": "d", "turn": turn}
        for a, turn in zip("abc", turns, strict=True)
    ]
    rows.append({"audio": "d.wav", "dialogue": "d", "turn": 7})
    if name != "t.csv":
        rows[3]["turn"] = float(7)
    path = four_files / name
    TABLES[path.suffix[1:]](path, rows)

    scan = scan_corpus(path)
    if isinstance(expected, list):
        assert scan.manifest.column("turn") == [*expected, 7]
    else:
        assert expected in scan.problems[0].reason


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        pytest.param("0,300", 0.3, id="a comma"),
        pytest.param(" 2,5 ", 2.5, id="blanks around"),
        pytest.param("-1,5", -1.5, id="a sign"),
        pytest.param("1e-1", 0.1, id="an exponent"),
        pytest.param("1.234,5", None, id="thousands with points"),
        pytest.param("1,234,567", None, id="thousands with commas"),
        pytest.param("1_0", None, id="an underscore"),
        pytest.param("inf", None, id="infinite"),
    ],
)
def test_ratings_with_decimal_commas(four_files: Path, cell: str, expected: float | None) -> None:
    path = four_files / "t.csv"
    path.write_text(f"audio;valence\na.wav;{cell}\nb.wav;1,0\n")
    scan = scan_corpus(path)
    if expected is None:
        assert f"line 2: the valence {cell!r} is not a number" in scan.problems[0].reason
        assert scan.manifest.ids == ["b"]
    else:
        assert scan.manifest.column("valence") == [expected, 1.0]


def test_headings_in_any_case_and_columns_that_are_not_read(four_files: Path) -> None:
    path = four_files / "t.csv"
    path.write_text("File,Speaker,Label, Text ,Age,\na.wav,s0,happy,hello,30,x\n")
    scan = scan_corpus(path)

    [row] = scan.manifest.table.to_pylist()
    assert [row["audio"], row["speaker"], row["label"], row["text"]] == [
        "a.wav",
        "s0",
        "happy",
        "hello",
    ]
    [warning] = scan.warnings
    assert warning.startswith("t.csv: columns that are not read: Age, one without a name; ")

    path.write_text("audio,label,Label\na.wav,happy,sad\n")
    with pytest.raises(CorpusError, match=r"two columns stand for the label \(label, Label\)"):
        scan_corpus(path)


@pytest.mark.parametrize("heading", ["path", "Path", "filename", "file_path"])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_column_of_paths_is_the_audio_where_no_other_is(
    four_files: Path, heading: str, form: str
) -> None:
    path = four_files / f"t.{form}"
    if form == "csv":
        path.write_text(f"{heading};emotion;valence\na.wav;happy;0,300\nb.wav;sad;1\n")
    else:
        path.write_text(f'{{"{heading}": "a.wav"}}\n{{"emotion": "sad", "{heading}": "b.wav"}}\n')

    scan = scan_corpus(path)

    assert scan.manifest.column("audio") == ["a.wav", "b.wav"]
    assert scan.manifest.ids == ["a", "b"]
    assert scan.warnings == []
    assert scan.problems == []


def test_a_column_of_paths_beside_the_audio_is_not_read(four_files: Path) -> None:
    path = four_files / "t.csv"

    path.write_text("path,audio\nb.wav,a.wav\n")
    scan = scan_corpus(path)
    path.write_text("path,filename\nb.wav,a.wav\n")

    assert scan.manifest.column("audio") == ["a.wav"]
    assert "columns that are not read: path" in scan.warnings[0]
    with pytest.raises(WrongUse, match=r"no audio column \(path, filename\); name one of its"):
        scan_corpus(path)


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"],
)
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_encodings(four_files: Path, encoding: str, ending: str) -> None:
    row = {"audio": "a.wav", "speaker": "Jürgen", "text": "schön, ja"}
    text = f"{json.dumps(row, ensure_ascii=False)}\n"
    if ending == "csv":
        text = 'audio,speaker,text\na.wav,Jürgen,"schön, ja"\n'
    path = four_files / f"t.{ending}"
    path.write_bytes(text.encode(encoding))

    manifest = scan_corpus(path).manifest
    assert manifest.column("speaker") == ["Jürgen"]
    assert manifest.column("text") == ["schön, ja"]


def test_bytes_that_are_no_text_are_refused(four_files: Path) -> None:
    path = four_files / "t.csv"
    path.write_bytes(b"audio\na.wav\n" + bytes(100))
    with pytest.raises(CorpusError, match="is full of zero bytes, and so is no text"):
        scan_corpus(path)


# Quotation
# ----------------------------------------


def test_a_tsv_of_pandas_or_r_has_its_texts(four_files: Path) -> None:
    frame = pd.DataFrame({"audio": ["a.wav", "b.wav"], "text": ['say "no"', "plain"]})
    path = four_files / "t.tsv"
    frame.to_csv(path, sep="\t", index=False)
    assert scan_corpus(path).manifest.column("text") == ['say "no"', "plain"]

    frame.to_csv(path, sep="\t", index=False, quoting=csv.QUOTE_ALL)
    assert scan_corpus(path).manifest.column("text") == ['say "no"', "plain"]


def test_lines_of_a_first_column_are_no_rows() -> None:
    """Behind the quoted cell, the last line always has the rest of its row."""
    text = 'text,audio,speaker\n"oh\nno",a.wav,s1\n'
    assert cells_of(text)[1:] == [["oh\nno", "a.wav", "s1"]]

    with pytest.raises(csv.Error, match="line 2: a quotation"):
        cells_of('text,audio,speaker\n"oh,a.wav,s1\nno",b.wav,s1\n')
    with pytest.raises(csv.Error, match="line 2: a quotation"):
        cells_of('audio,text,speaker\na.wav,"oh, well,s1\nb.wav,no, not",s1\n')


def test_a_writer_that_quotes_all_has_its_line_breaks() -> None:
    text = '"audio","text"\n"a.wav","one, two,\nthree, four"\n'
    assert cells_of(text)[1:] == [["a.wav", "one, two,\nthree, four"]]

    text = '"turn","text"\n1,"one, two,\nthree, four"\n'
    assert cells_of(text)[1:] == [["1", "one, two,\nthree, four"]]


def test_blanks_before_a_quoted_cell() -> None:
    assert cells_of('audio, text\na.wav, "oh, no"\n')[1:] == [["a.wav", "oh, no"]]


def test_folds_of_any_table(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"Key": "a", "Fold": 1.0}, {"Key": "b", "Fold": 2.0}]
    for ending in ("jsonl", "parquet"):
        TABLES[ending](tmp_path / f"f.{ending}", rows)
        folds = read_folds(tmp_path / f"f.{ending}")
        assert [(fold.name, fold.ids["test"]) for fold in folds] == [("1", {"a"}), ("2", {"b"})]


def test_a_fold_that_two_columns_name(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("id,fold,Fold\na,1,2\nb,2,1\n")
    with pytest.raises(WrongUse, match="two columns are called fold; keep the one that counts"):
        read_folds(path)


def test_what_is_odd_in_transcripts_is_said(four_files: Path) -> None:
    corpus = four_files / "corpus.csv"
    corpus.write_text("audio\na.wav\nb.wav\n")
    text = four_files / "asr.csv"
    text.write_text('id,text,score\na,"oh\nno",0.1\nb,yes,0.2\n')
    scan = scan_corpus(corpus, text=text)
    assert scan.manifest.column("text") == ["oh\nno", "yes"]
    assert any("2 rows on 4 lines" in warning for warning in scan.warnings)
    assert any("not read: score" in warning for warning in scan.warnings)


# Tables of features
# ----------------------------------------

NUMBERS = [[0.125, -0.5, 3.0], [-0.5, 0.25, 1.5], [2.0, 0.75, -1.25]]
FEATURE_TABLES = {
    "semicolons and decimal commas": "id;a;b;c\n{0};0,125;-0,5;3\n{1};-0,5;0,25;1,5\n"
    "{2};2;0,75;-1,25\n",
    "openSMILE in Python": "file,start,end,a,b,c\n/data/wav/{0}.wav,0 days,0 days 00:00:01.5,"
    "0.125,-0.5,3\nwav\\{1}.wav,0 days,0 days 00:00:01.5,-0.5,0.25,1.5\n"
    "{2}.wav,0 days,0 days 00:00:01.5,2,0.75,-1.25\n",
    "SMILExtract": "name;frameTime;a;b;c\n'{0}';0.0;0.125;-0.5;3\n'{1}';0.0;-0.5;0.25;1.5\n"
    "'{2}';0.0;2;0.75;-1.25\n",
    "ids in the last column": "a,b,c,ID\n0.125,-0.5,3,{0}\n-0.5,0.25,1.5,{1}\n2,0.75,-1.25,{2}\n",
    "R": '"id","a","b","c"\n"{0}",0.125,-0.5,3\n"{1}",-0.5,0.25,1.5\n"{2}",2,0.75,-1.25\n',
}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", FEATURE_TABLES)
def test_feature_tables_of_other_tools(tmp_path: Path, kind: str, encoding: str) -> None:
    """Their rows are in another order than the manifest's."""
    manifest = manifest_of(3)
    order = [2, 0, 1]
    path = tmp_path / "x.csv"
    content = FEATURE_TABLES[kind].format(*(manifest.ids[place] for place in order))
    path.write_text(content, encoding=encoding)
    store = open_store(tmp_path / "store", create=True)

    imported = import_feature(store, "mine", path, "audio", manifest)

    assert imported.dim == 3
    assert imported.joined_by == "id"
    for numbers, place in zip(NUMBERS, order, strict=True):
        assert store["mine"][manifest.ids[place]].tolist() == numbers


REFUSED_TABLES = {
    "an index called index": ("index,a\n0,1.5\n1,2.5\n", "column 1 is called index"),
    "numbers of columns from one": ("1,2,3\n4,5,6\n7,8,9\n", "say --no-header"),
    "an index without any header": ("0,1.5,2\n1,3.5,4\n", "a column of it counts the rows"),
    "a word": ("a,b\n1,2\n3,x\n", "line 3: 'x' in column 'b' is not a number"),
    "an empty cell": ("a,b\n1,\n3,4\n", "line 2: '' in column 'b' is not a number"),
    "a cell too many": ("a,b\n1,2,3\n4,5\n", "line 2 has 3 columns where the first line has 2"),
    "a quotation": ('a,b\n"1,2\n3,4",5\n', "line 2: a quotation"),
    "thousands": ('a,b\n"1.234,5",2\n3,4\n', "is not a number"),
    "headings alone": ("a,b\n", "has headings and no row"),
    "nothing": ("", "is empty"),
    "ids alone": ("id\nu000\nu001\n", "has no column of values"),
    "a person of nobody": (
        "file,a\nx/u000.wav,1\nx/who.wav,2\n",
        "1 of 2 ids are not in .*'x/who'",
    ),
    "one file twice": ("file,a\nx/u000.wav,1\ny/u000.wav,2\n", "id 'u000' appears twice"),
}


@pytest.mark.parametrize("kind", REFUSED_TABLES)
def test_feature_tables_that_are_refused(tmp_path: Path, kind: str) -> None:
    content, sentence = REFUSED_TABLES[kind]
    path = tmp_path / "x.csv"
    path.write_text(content)
    store = open_store(tmp_path / "store", create=True)
    with pytest.raises(StoreError, match=sentence):
        import_feature(store, "mine", path, "audio", manifest_of(2))
    assert store.features() == []


def test_arrays_of_other_tools(tmp_path: Path) -> None:
    manifest = manifest_of(3)
    values = np.array(NUMBERS, np.float32)
    store = open_store(tmp_path / "store", create=True)

    np.savez(tmp_path / "bytes.npz", values=values, ids=np.array(manifest.ids, "S"))
    import_feature(store, "bytes", tmp_path / "bytes.npz", "audio", manifest)
    assert np.array_equal(store["bytes"].load(manifest).values, values)

    # These numbers are exact in bfloat16, the first half of a float32.
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    entry = {"dtype": "BF16", "shape": [3, 3], "data_offsets": [0, len(halves)]}
    header = json.dumps({"values": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + halves
    (tmp_path / "bf16.safetensors").write_bytes(content)
    import_feature(store, "bf16", tmp_path / "bf16.safetensors", "audio", manifest)
    assert np.array_equal(store["bf16"].load(manifest).values, values)


def test_arrays_of_hdf5_whose_ids_are_paths(tmp_path: Path) -> None:
    ids = ["ses1/a", "ses1/b", "ses2/deep/a"]
    manifest = Manifest.from_rows("paths", [{"id": id_, "audio_sha256": "0" * 64} for id_ in ids])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        for id_, numbers in zip(ids, NUMBERS, strict=True):
            file[id_] = np.array(numbers, np.float32)
    store = open_store(tmp_path / "store", create=True)

    import_feature(store, "mine", tmp_path / "x.h5", "audio", manifest)
    assert store["mine"].load(manifest).values.tolist() == NUMBERS

    with h5py.File(tmp_path / "x.h5", "a") as file:
        file["ses2/itself"] = file["ses2"]
    with pytest.raises(StoreError, match="is a group, or a link to elsewhere"):
        import_feature(store, "again", tmp_path / "x.h5", "audio", manifest)


def test_zarr_of_other_tools_comes_with_a_remedy(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", create=True)
    old = zarr.create_group(tmp_path / "old.zarr", zarr_format=2)
    old.create_array("values", data=np.array(NUMBERS))
    with pytest.raises(StoreError, match=r"is in the format Zarr 2; save it in Zarr 3"):
        import_feature(store, "mine", tmp_path / "old.zarr", "audio", manifest_of(3))

    zeros = np.zeros((3, 3))
    holes = zarr.create_group(tmp_path / "holes.zarr")
    holes.create_array("values", data=zeros, chunks=(1, 3))
    with pytest.raises(StoreError, match=r"0 of 3 chunks.*\"write_empty_chunks\": True"):
        import_feature(store, "mine", tmp_path / "holes.zarr", "audio", manifest_of(3))

    whole = zarr.create_group(tmp_path / "whole.zarr")
    config: Any = {"write_empty_chunks": True}
    whole.create_array("values", data=zeros, chunks=(1, 3), config=config)
    import_feature(store, "mine", tmp_path / "whole.zarr", "audio", manifest_of(3))


# Paths
# ----------------------------------------

FOUND = {
    "backslashes": ("wav\\a.wav", "wav/a.wav", "wav/a"),
    "a dot and backslashes": (".\\wav\\a.wav", "wav/a.wav", "wav/a"),
    "another case": ("WAV/A.wav", "wav/a.wav", "WAV/A"),
    "another Unicode form": ("wav/Ju\u0308rgen.wav", "wav/J\u00fcrgen.wav", "wav/Ju\u0308rgen"),
    "blanks around": (" wav/a.wav ", "wav/a.wav", "wav/a"),
    "as it is": ("wav/a.wav", "wav/a.wav", "wav/a"),
    "a file with a backslash": ("odd\\b.wav", "odd\\b.wav", "odd/b"),
}


@pytest.fixture
def wav_folder(tmp_path: Path) -> Path:
    (tmp_path / "wav").mkdir()
    for number, name in enumerate(["wav/a.wav", "wav/J\u00fcrgen.wav", "odd\\b.wav"]):
        sf.write(tmp_path / name, np.full(800, 0.1 * (number + 1)), 16000)
    return tmp_path


@pytest.mark.parametrize("kind", FOUND)
def test_audio_paths_that_nearly_fit_are_found(wav_folder: Path, kind: str) -> None:
    written, path, id_ = FOUND[kind]
    table = wav_folder / "t.csv"
    table.write_text(f"audio\n{written}\n")

    scan = scan_corpus(table)

    assert scan.problems == []
    assert scan.manifest.column("audio") == [path]
    assert scan.manifest.ids == [id_]
    is_said = any("differ from the names of their files" in text for text in scan.warnings)
    assert is_said == (written.strip() != path)


def test_audio_paths_that_could_mean_two_files_are_not_guessed(wav_folder: Path) -> None:
    sf.write(wav_folder / "wav/A.wav", np.full(800, 0.4), 16000)
    table = wav_folder / "t.csv"
    table.write_text("audio\nwav/a.WAV\nelse/J\u00fcrgen.wav\nwav/b.wav\n")
    reasons = [problem.reason for problem in scan_corpus(table).problems]

    assert len(reasons) == 3
    assert "did you mean" not in reasons[0]
    assert reasons[1].endswith("; did you mean wav/J\u00fcrgen.wav?")
    # The names of most corpora are codes: nothing is taken for a misspelling.
    assert "did you mean" not in reasons[2]


def test_odd_names_of_files(tmp_path: Path) -> None:
    sf.write(tmp_path / " a.wav", np.full(800, 0.1), 16000)
    scan = scan_corpus(tmp_path, "folder")
    assert scan.manifest.column("audio") == [" a.wav"]
    assert scan.problems == []

    table = tmp_path / "t.csv"
    table.write_text("audio\n\\\n a.wav\n")
    scan = scan_corpus(table)
    assert scan.manifest.column("audio") == [" a.wav"]
    assert [problem.reason for problem in scan.problems] == ["line 2: the id is empty"]


def test_recordings_inside_a_parquet_come_with_a_remedy(tmp_path: Path) -> None:
    audio = {"bytes": b"RIFF", "path": "a.wav"}
    pq.write_table(pa.Table.from_pylist([{"audio": audio, "label": "x"}]), tmp_path / "t.parquet")
    with pytest.raises(CorpusError, match="holds recordings, not their paths"):
        scan_corpus(tmp_path / "t.parquet")


def test_the_lines_that_write_recordings_of_a_parquet(
    four_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = []
    for name in "abcd":
        content = (four_files / f"{name}.wav").read_bytes()
        rows.append({"audio": {"bytes": content, "path": None}, "label": name})
    pq.write_table(pa.Table.from_pylist(rows), four_files / "hf.parquet")
    page = (Path(__file__).parents[1] / "docs/corpora.md").read_text()
    [block] = [text for text in page.split("```")[1::2] if "hf.parquet" in text]

    monkeypatch.chdir(four_files)
    exec(textwrap.dedent(block.removeprefix("python")), {})

    scan = scan_corpus(four_files / "table.csv")
    assert scan.problems == []
    assert scan.manifest.column("label") == ["a", "b", "c", "d"]


def test_a_folder_of_recordings_is_a_corpus_without_labels(wav_folder: Path) -> None:
    with pytest.raises(WrongUse, match="--format folder reads its recordings"):
        scan_corpus(wav_folder)

    scan = scan_corpus(wav_folder, "folder")
    assert scan.manifest.ids == ["odd/b", "wav/J\u00fcrgen", "wav/a"]
    assert scan.manifest.column("audio") == ["odd\\b.wav", "wav/J\u00fcrgen.wav", "wav/a.wav"]
    assert set(scan.manifest.column("label")) == {None}
    assert scan.problems == []

    (wav_folder / "labels.csv").write_text("audio\n")
    [warning] = scan_corpus(wav_folder, "folder").warnings
    assert warning.startswith("labels.csv is not read: give that file")

    with pytest.raises(WrongUse, match="is not a folder"):
        scan_corpus(wav_folder / "labels.csv", "folder")


@pytest.mark.parametrize("feature", ["logmel", "egemaps"])
def test_without_labels_an_export_is_offered(
    wav_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, feature: str
) -> None:
    """And no training: as a table where an utterance has one row, else as arrays."""
    monkeypatch.chdir(tmp_path)
    for path in wav_folder.rglob("*.wav"):
        # Long enough for openSMILE.
        sf.write(path, np.full(8000, 0.1), 16000)
    words = ("--format", "folder", "--features", feature, "--store", tmp_path / "s")
    done = ser("features", wav_folder, *words)
    assert done.exit_code == 0, done.output
    assert "ser train" not in done.output

    exported = ser(*next_command(done))
    assert exported.exit_code == 0, exported.output
    ids = open_store(tmp_path / "s").manifest().ids
    if feature == "logmel":
        assert np.load("logmel.npz", allow_pickle=False)["ids"].tolist() == ids
    else:
        assert pd.read_csv("egemaps.csv")["id"].tolist() == ids


# audformat
# ----------------------------------------


def write_database(folder: Path, *lines: str) -> None:
    """Columns without a scheme, so that nothing says whether they hold texts or numbers."""
    columns = "{speaker: {}, transcription: {}}"
    table = f"tables: {{files: {{type: filewise, columns: {columns}}}}}"
    (folder / "db.yaml").write_text(f"name: mine\n{table}\n")
    (folder / "db.files.csv").write_text("\n".join(["file,speaker,transcription", *lines]))


def test_texts_of_audformat_are_no_numbers(four_files: Path) -> None:
    write_database(four_files, "a.wav,01,NA", "b.wav,1.0,007", "c.wav,1,12", "d.wav,,")
    manifest = scan_corpus(four_files, "audformat").manifest
    assert manifest.column("speaker") == ["01", "1.0", "1", None]
    assert manifest.column("text") == ["NA", "007", "12", None]


def test_rows_of_audformat_that_are_torn_are_named(four_files: Path) -> None:
    write_database(four_files, "a.wav,anna,oh", "b.wav,ben,oh, no")
    scan = scan_corpus(four_files, "audformat")
    assert scan.manifest.ids == ["a"]
    assert "line 3: has 4 columns where the header has 3" in str(scan.problems[0])


@pytest.mark.parametrize("kind", ["ilewise", "Filewise", "misc"])
def test_tables_of_audformat_are_by_file_or_of_segments(four_files: Path, kind: str) -> None:
    write_database(four_files, "a.wav,anna,oh")
    header = four_files / "db.yaml"
    header.write_text(header.read_text().replace("filewise", kind))
    with pytest.raises(WrongUse, match=rf"the table files is '{kind}'; write filewise or segment"):
        scan_corpus(four_files, "audformat")


def test_columns_of_audformat_that_its_header_lacks_are_named(four_files: Path) -> None:
    write_database(four_files, "a.wav,anna,oh")
    row = {"file": "a.wav", "speaker": "anna", "transcription": "oh", "age": 30}
    (four_files / "db.files.csv").unlink()
    pq.write_table(pa.Table.from_pylist([row]), four_files / "db.files.parquet")
    scan = scan_corpus(four_files, "audformat")
    assert scan.manifest.column("speaker") == ["anna"]
    assert "columns that are not read, since db.yaml does not list them: age" in scan.warnings[0]
