"""Where tables of other people are read: each place as a function from a file to what came out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from ser.extract.corpora.scan import scan_corpus
from ser.extract.corpora.table import read_manifest, read_transcripts
from ser.predict.inputs import read_inputs

from .drawn_tables import HEADINGS, MOST_ROWS, DrawnTable
from .table_writers import WRITERS

NAMES = ("session", "dialogue", "speaker", "gender", "label")
OF_CORPUS = ("id", "audio", "text", *NAMES, "valence", "turn", "votes")


@dataclass(frozen=True)
class CameOut:
    """What came out of a place."""

    rows: dict[str, dict[str, Any]]
    """By id, in order."""
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """A place where a table is read."""

    read: Callable[[Path, DrawnTable], CameOut]
    columns: tuple[str, ...]
    """Those that a table there may have."""
    gives: tuple[str, ...] = OF_CORPUS
    """Those that come out."""
    can_lack_ids: bool = False
    every_row_counts: bool = False
    """Whether one wrong row refuses the table."""
    writers: tuple[str, ...] = tuple(WRITERS)
    """The careful writers whose files it takes."""
    prepare: Callable[[DrawnTable], DrawnTable] = lambda table: table
    warns: bool = True
    """Whether it says which names may be none, or one and the same."""
    name: str = "table"
    """Of the file, without its ending."""


def write_recordings(folder: Path) -> None:
    """A different sound for each row that a table may have, as WAV and as FLAC."""
    (folder / "wav").mkdir()
    (folder / "flac").mkdir()
    for number in range(MOST_ROWS):
        sound = np.full(160, 0.1 * (number + 1))
        sf.write(folder / "wav" / f"u{number}.wav", sound, 16000)
        sf.write(folder / "flac" / f"u{number}.flac", sound, 16000)


def _scanned(path: Path, format: str | None = None) -> CameOut:
    scan = scan_corpus(path, format)
    rows = {row["id"]: row for row in scan.manifest.table.to_pylist()}
    for problem in scan.problems:
        assert problem.kind == "corpus", problem
    return CameOut(rows, [str(problem) for problem in scan.problems], scan.warnings)


def read_corpus(path: Path, table: DrawnTable) -> CameOut:
    out = _scanned(path)
    for number, id_ in enumerate(table.ids):
        if "audio" in table.columns and id_ in out.rows:
            kind = table.columns["audio"][number].rpartition(".")[2]
            assert out.rows[id_]["audio"] == f"{kind}/u{number}.{kind}"
    return out


def read_manifest_of_import(path: Path, table: DrawnTable) -> CameOut:
    listed = read_manifest(path, "mine")
    rows = {row["id"]: row for row in listed.manifest.table.to_pylist()}
    return CameOut(rows, warnings=listed.warnings)


def read_turns(path: Path, table: DrawnTable) -> CameOut:
    given = read_inputs([], None, path, takes_audio=True)
    rows = {turn.id: vars(turn) for turn in given.turns}
    return CameOut(rows, warnings=given.warnings)


def read_texts(path: Path, table: DrawnTable) -> CameOut:
    given = read_transcripts(path, table.ids)
    rows = {id_: {"text": text or None} for id_, text in given.texts.items()}
    return CameOut(rows, [str(problem) for problem in given.problems])


def named_plainly(table: DrawnTable) -> DrawnTable:
    """The table whose headings are the manifest's columns."""
    return replace(table, headings={column: column for column in table.columns})


SCHEMES = {"audio": "file", "label": "emotion", "text": "transcription", "gender": "sex"}


def as_audformat(table: DrawnTable) -> DrawnTable:
    """The table with the headings of an audformat database, and names of files as that has them."""
    headings = {column: SCHEMES.get(column, column) for column in table.columns}
    audio = [f"wav/u{number}.wav" for number in range(len(table))]
    ids = [name.removesuffix(".wav") for name in audio]
    # The package takes the first column for the files.
    others = {column: values for column, values in table.columns.items() if column != "audio"}
    return DrawnTable(ids, {"audio": audio, **others}, headings, [])


def read_database(path: Path, table: DrawnTable) -> CameOut:
    lines = ["name: mine", "tables:", "  files:", "    type: filewise", "    columns:"]
    columns = [heading for heading in table.headings.values() if heading != "file"]
    lines += [f"      {heading}: {{}}" for heading in columns]
    (path.parent / "db.yaml").write_text("\n".join(lines))
    try:
        return _scanned(path.parent, "audformat")
    finally:
        (path.parent / "db.yaml").unlink()


def with_stems(table: DrawnTable) -> DrawnTable:
    """The table whose ids are the names of its recordings, as a description joins them."""
    ids = [f"u{number}" for number in range(len(table))]
    return replace(named_plainly(table), ids=ids, columns={**table.columns, "id": ids})


def read_with_description(path: Path, table: DrawnTable) -> CameOut:
    columns = [column for column in table.columns if column not in ("id", "audio", "votes")]
    lines = ['name = "mine"', r"pattern = 'wav/u\d+'", "[columns]"]
    lines += [f'{column} = "{{{column}}}"' for column in columns]
    lines += ["[[tables]]", f'file = "{path.name}"', 'of = "{stem}"', 'key = "{id}"']
    layout = path.with_name("layout.toml")
    layout.write_text("\n".join(lines))
    try:
        out = _scanned(path.parent, str(layout))
    finally:
        layout.unlink()
    # The other recordings have no row in the table.
    named = {id_: row for id_, row in out.rows.items() if id_ in table.ids}
    return replace(out, rows=named)


PLACES = {
    "a corpus": Place(read_corpus, OF_CORPUS, can_lack_ids=True),
    "--manifest": Place(read_manifest_of_import, OF_CORPUS, every_row_counts=True),
    "predict --table": Place(
        read_turns,
        OF_CORPUS,
        gives=("id", "audio", "text", "dialogue", "turn", "speaker"),
        every_row_counts=True,
    ),
    "--text": Place(read_texts, ("id", "text", "speaker"), gives=("id", "text")),
    "audformat": Place(
        read_database,
        ("audio", "text", *NAMES, "valence", "turn"),
        writers=("commas", "lines of Unix", "all quoted", "pandas", "Parquet", "Parquet of codes"),
        prepare=as_audformat,
        name="db.files",
    ),
    "a description": Place(
        read_with_description,
        ("id", "text", *NAMES, "valence", "turn"),
        prepare=with_stems,
    ),
}
assert set(OF_CORPUS) == set(HEADINGS)
