"""Tables of other people: no row is merged, no index is a feature, no person is two."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from ser.cache.store import open_store
from ser.cache.tools.importing import import_feature
from ser.corpus.delimited import read_delimited
from ser.corpus.people import one_spelling, spelled_alike
from ser.errors import CorpusError, StoreError, WrongUse
from ser.extract.corpora.scan import scan_corpus
from ser.tests.command_line import ser
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
        pytest.param('""', '""', id="two marks"),
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
    "an index called so": ("index,a\n0,1\n1,3\n", "its first column counts the rows"),
    "an index and no header": ("000,0.1\n001,0.3\n", "its first column counts the rows"),
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


def test_what_differs_by_case_or_zeros() -> None:
    names = ["S1", "s01", "s10", "1", "01", "1.0", "10", "100", "0", "00", "Anna", "anna", "1.5"]
    assert spelled_alike(names) == [
        ["0", "00"],
        ["01", "1", "1.0"],
        ["Anna", "anna"],
        ["S1", "s01"],
    ]
