"""Segments from the files of Praat, ELAN, Audacity and diarisation."""

from pathlib import Path

import audformat
import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from ser.errors import WrongUse
from ser.extract.corpora.scan import Scan, scan_corpus

RATE = 16000

LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 4
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "emotion"
        xmin = 0
        xmax = 4
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "zornig"
        intervals [3]:
            xmin = 1.25
            xmax = 3
            text = "sie sagt ""fröhlich"""
        intervals [4]:
            xmin = 3
            xmax = 4
            text = "  "
    item [2]:
        class = "TextTier"
        name = "bells"
        xmin = 0
        xmax = 4
        points: size = 1
        points [1]:
            number = 1
            mark = "ding"
    item [3]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 4
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 4
            text = "oh"
'''

SHORT = '''File type = "ooTextFile"
Object class = "TextGrid"

0
4
<exists>
3
"IntervalTier"
"emotion"
0
4
4
0
0.5
""
0.5
1.25
"zornig"
1.25
3
"sie sagt ""fröhlich"""
3
4
"  "
"TextTier"
"bells"
0
4
1
1
"ding"
"IntervalTier"
"words"
0
4
1
0
4
"oh"'''

EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT AUTHOR="" DATE="2026-01-01T00:00:00+00:00" FORMAT="3.0" VERSION="3.0"
 xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"
 xsi:noNamespaceSchemaLocation="http://www.mpi.nl/tools/elan/EAFv3.0.xsd">
<HEADER MEDIA_FILE="" TIME_UNITS="milliseconds">
<MEDIA_DESCRIPTOR MEDIA_URL="file:///x/a.wav" MIME_TYPE="audio/x-wav" RELATIVE_MEDIA_URL="./a.wav"/>
</HEADER>
<TIME_ORDER>
<TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1250"/>
<TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="3000"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="4000"/>
</TIME_ORDER>
<TIER LINGUISTIC_TYPE_REF="default" TIER_ID="emotion" PARTICIPANT="anna">
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
<ANNOTATION_VALUE>zornig</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="ts3">
<ANNOTATION_VALUE>sie sagt "fröhlich"</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a3" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
<ANNOTATION_VALUE></ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
</TIER>
<TIER LINGUISTIC_TYPE_REF="sub" TIER_ID="note" PARENT_REF="emotion">
<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a4" ANNOTATION_REF="a1">
<ANNOTATION_VALUE>loud</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
</TIER>
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="default" TIME_ALIGNABLE="true"/>
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="sub" TIME_ALIGNABLE="false"
 CONSTRAINTS="Symbolic_Association"/>
</ANNOTATION_DOCUMENT>
"""

LABELS = '0.500000\t1.250000\tzornig\n\\\t200.0\t300.0\n1,25\t3\tsie sagt "fröhlich"\n2\t2\tclick\n'

RTTM = """;; who speaks when
SPKR-INFO a 1 <NA> <NA> <NA> unknown anna <NA> <NA>
SPEAKER a 1 0.5 0.75 <NA> <NA> anna <NA> <NA>
SPEAKER a 1 1.25 1.75 <NA> <NA> <NA> <NA> <NA>
"""

EXPECTED = [(0.5, 1.25, "zornig"), (1.25, 3.0, 'sie sagt "fröhlich"')]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    sf.write(tmp_path / "a.wav", rng.normal(0, 0.1, 4 * RATE), RATE)
    return tmp_path


def segments(scan: Scan) -> list[tuple[float, float, str]]:
    assert scan.problems == []
    assert scan.manifest.is_segmented
    columns = [scan.manifest.column(name) for name in ("start", "end", "label")]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-8-sig", "cp1252"])
@pytest.mark.parametrize("content", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_textgrids(folder: Path, content: str, encoding: str, line_end: str) -> None:
    """The last line of the short one has no end."""
    # Praat writes blanks at the ends of lines.
    text = content.replace("\n", f" {line_end}")
    if encoding == "utf-16-be":
        text = "\ufeff" + text
    (folder / "a.TextGrid").write_bytes(text.encode(encoding))
    scan = scan_corpus(folder, "textgrid:emotion")
    assert segments(scan) == EXPECTED
    assert scan.manifest.ids == ["a_0.500_1.250", "a_1.250_3.000"]
    assert scan.manifest.column("dialogue") == ["a", "a"]
    assert scan.manifest.column("turn") == [0, 1]
    assert "2 empty intervals are left out" in scan.warnings
    assert scan_corpus(folder, "textgrid:WORDS").manifest.column("label") == ["oh"]


def test_a_tier_has_to_be_named(folder: Path) -> None:
    (folder / "a.TextGrid").write_text(LONG)
    with pytest.raises(WrongUse, match="has the tiers emotion, bells, words: name the one"):
        scan_corpus(folder, "textgrid")
    with pytest.raises(WrongUse, match="no file has the tier 'mood'; their tiers: emotion, bells"):
        scan_corpus(folder, "textgrid:mood")
    with pytest.raises(WrongUse, match="--format textgrid:TIER reads its TextGrids"):
        scan_corpus(folder)


def test_what_some_files_lack_is_named(folder: Path) -> None:
    (folder / "a.TextGrid").write_text(LONG)
    (folder / "b.TextGrid").write_text(LONG)
    (folder / "c.TextGrid").write_text(LONG.replace('"emotion"', '"other"'))
    # Says that it has more intervals than it has.
    (folder / "d.TextGrid").write_text(LONG.replace("size = 4", "size = 5"))
    (folder / "e.TextGrid").write_text("no TextGrid")
    sf.write(folder / "unused.wav", np.zeros(RATE), RATE)

    scan = scan_corpus(folder, "textgrid:emotion")
    assert len(scan.manifest) == 2
    reasons = {problem.path: problem.reason for problem in scan.problems}
    assert reasons["b.TextGrid"].startswith("no recording is called b: put it beside the file")
    assert reasons["c.TextGrid"].startswith("has no tier 'emotion'; its tiers: other, bells")
    assert "[5, 1, 1] intervals, and [4, 1, 1] can be read" in reasons["d.TextGrid"]
    assert "is not a TextGrid" in reasons["e.TextGrid"]
    assert any("1 recordings, such as unused.wav" in warning for warning in scan.warnings)


def test_recordings_in_another_folder(tmp_path: Path) -> None:
    for name in ("wav", "annotated"):
        (tmp_path / name).mkdir()
    sf.write(tmp_path / "wav" / "A.flac", np.random.default_rng(0).normal(0, 0.1, 4 * RATE), RATE)
    (tmp_path / "annotated" / "a.TextGrid").write_text(LONG)
    scan = scan_corpus(tmp_path, "textgrid:emotion")
    assert segments(scan) == EXPECTED
    assert set(scan.manifest.column("audio")) == {"wav/A.flac"}


def test_elan(folder: Path) -> None:
    (folder / "session.eaf").write_text(EAF)
    scan = scan_corpus(folder, "elan:emotion")
    assert segments(scan) == EXPECTED
    assert scan.manifest.column("speaker") == ["anna", "anna"]
    assert "1 empty intervals are left out" in scan.warnings
    # It has the times of the tier that it leans on.
    assert segments(scan_corpus(folder, "elan:note")) == [(0.5, 1.25, "loud")]

    (folder / "session.eaf").write_text(EAF[:-300])
    with pytest.raises(WrongUse, match="is not a document of ELAN"):
        scan_corpus(folder, "elan:emotion")


SUBDIVIDED = """<TIER LINGUISTIC_TYPE_REF="t" TIER_ID="words" PARENT_REF="emotion">
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="b1" TIME_SLOT_REF1="ts2" TIME_SLOT_REF2="u1">
<ANNOTATION_VALUE>one</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="b2" TIME_SLOT_REF1="u1" TIME_SLOT_REF2="u2">
<ANNOTATION_VALUE>two</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="b3" TIME_SLOT_REF1="u2" TIME_SLOT_REF2="u3">
<ANNOTATION_VALUE>three</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="b4" TIME_SLOT_REF1="u3" TIME_SLOT_REF2="ts3">
<ANNOTATION_VALUE>four</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="b5" TIME_SLOT_REF1="ts4" TIME_SLOT_REF2="u4">
<ANNOTATION_VALUE>nowhere</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
</TIER>
<TIER LINGUISTIC_TYPE_REF="sub" TIER_ID="gloss" PARENT_REF="words">
<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="c1" ANNOTATION_REF="b2">
<ANNOTATION_VALUE>zwei</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>
</TIER>
<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="t" TIME_ALIGNABLE="true" CONSTRAINTS="Time_Subdivision"/>
"""


def test_elan_divides_what_has_no_times_evenly(folder: Path) -> None:
    """And one tier that cannot be read whole is in no other's way."""
    slots = "".join(f'<TIME_SLOT TIME_SLOT_ID="u{number}"/>' for number in (1, 2, 3, 4))
    first_type = '<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="default"'
    text = EAF.replace("</TIME_ORDER>", slots + "</TIME_ORDER>")
    (folder / "a.eaf").write_text(text.replace(first_type, SUBDIVIDED + first_type))

    assert segments(scan_corpus(folder, "elan:emotion")) == EXPECTED
    scan = scan_corpus(folder, "elan:words")
    places = zip(scan.manifest.column("start"), scan.manifest.column("end"), strict=True)
    assert list(places) == [(1.25, 1.6875), (1.6875, 2.125), (2.125, 2.5625), (2.5625, 3.0)]
    assert any("1 annotations of tier 'words' have no time" in note for note in scan.warnings)
    assert segments(scan_corpus(folder, "elan:gloss")) == [(1.6875, 2.125, "zwei")]


def test_tiers_that_cannot_be_utterances_say_why(folder: Path) -> None:
    (folder / "a.TextGrid").write_text(LONG)
    with pytest.raises(WrongUse, match="no interval is left to be an utterance: 1 points"):
        scan_corpus(folder, "textgrid:bells")
    (folder / "a.TextGrid").write_text(LONG.replace('"words"', '"emotion"'))
    with pytest.raises(WrongUse, match="has 2 tiers called 'emotion': rename all but one"):
        scan_corpus(folder, "textgrid:emotion")


def test_audacity(folder: Path) -> None:
    (folder / "a.txt").write_text(LABELS)
    scan = scan_corpus(folder, "audacity")
    assert segments(scan) == EXPECTED
    assert any("1 points, which have no length" in warning for warning in scan.warnings)
    with pytest.raises(WrongUse, match="audacity"):
        scan_corpus(folder, "audacity:x")


def test_rttm(folder: Path) -> None:
    (folder / "who.rttm").write_text(RTTM)
    scan = scan_corpus(folder, "rttm")
    assert segments(scan) == [(0.5, 1.25, None), (1.25, 3.0, None)]
    assert scan.manifest.column("speaker") == ["anna", None]

    (folder / "who.rttm").write_text(RTTM.replace("a 1 0.5", "a 2 0.5"))
    [note] = scan_corpus(folder, "rttm").warnings[:1]
    assert "1 segments of a are of another channel than 1" in note


@pytest.fixture
def database(folder: Path) -> audformat.Database:
    """Segments with emotions, and files with speakers, whose genders are in a table of its own."""
    sf.write(folder / "b.wav", np.random.default_rng(1).normal(0, 0.1, RATE), RATE)
    db = audformat.Database("mine")
    db.schemes["emotion"] = audformat.Scheme(labels=["anger", "joy"])
    db.schemes["arousal"] = audformat.Scheme("float")
    db.splits["train"] = audformat.Split("train")

    speakers = pd.Index(["s1", "s2"], name="speaker", dtype="string")
    table = db["speakers"] = audformat.MiscTable(speakers)
    db.schemes["gender"] = audformat.Scheme(labels=["female", "male"])
    table["gender"] = audformat.Column(scheme_id="gender")
    table["gender"].set(["female", "male"])
    db.schemes["speaker"] = audformat.Scheme("str", labels="speakers")

    files = db["files"] = audformat.Table(audformat.filewise_index(["a.wav", "b.wav"]))
    files["speaker"] = audformat.Column(scheme_id="speaker")
    files["speaker"].set(["s1", "s2"])

    index = audformat.segmented_index(["a.wav"] * 2, ["1.5s", "0s"], [None, "1.5s"])
    segments = db["segments"] = audformat.Table(index, split_id="train")
    segments["emotion"] = audformat.Column(scheme_id="emotion")
    segments["emotion"].set(["joy", "anger"])
    segments["arousal"] = audformat.Column(scheme_id="arousal")
    segments["arousal"].set([0.5, None])
    return db


@pytest.mark.parametrize("storage", ["csv", "parquet"])
def test_segments_of_audformat(database: audformat.Database, folder: Path, storage: str) -> None:
    database.save(str(folder), storage_format=storage)
    scan = scan_corpus(folder)
    assert segments(scan) == [(0.0, 1.5, "anger"), (1.5, None, "joy")]

    manifest = scan.manifest
    assert manifest.ids == ["a_0.000_1.500", "a_1.500_end"]
    assert manifest.column("duration") == [1.5, 2.5]
    assert manifest.column("speaker") == ["s1", "s1"]
    assert manifest.column("gender") == ["F", "F"]
    assert manifest.column("session") == ["train", "train"]
    assert manifest.column("arousal") == [None, 0.5]
    assert any("1 files, such as b.wav, have no segment" in warning for warning in scan.warnings)


def test_a_label_that_its_scheme_lacks_is_named(database: audformat.Database, folder: Path) -> None:
    database.save(str(folder), storage_format="csv")
    path = folder / "db.segments.csv"
    path.write_text(path.read_text().replace("joy", "delight"))
    scan = scan_corpus(folder)
    assert scan.manifest.column("label") == ["anger", None]
    [warning] = [warning for warning in scan.warnings if "scheme" in warning]
    assert "1 values of emotion in the table segments are none of its scheme" in warning
    assert "'delight'" in warning


def test_no_table_is_unpickled(database: audformat.Database, folder: Path) -> None:
    """The package would take a .pkl before what is beside it."""
    database.save(str(folder), storage_format="csv")
    for path in folder.glob("db.*.csv"):
        path.with_suffix(".pkl").write_bytes(b"\x80\x04cbuiltins\nexit\n(tR.")
    assert len(scan_corpus(folder).manifest) == 2

    (folder / "db.segments.csv").unlink()
    scan = scan_corpus(folder)
    assert any("table segments is not here as CSV" in warning for warning in scan.warnings)
