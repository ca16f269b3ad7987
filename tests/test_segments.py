"""Segments: utterances that are parts of a recording have the features of those parts alone."""

import csv
import datetime
import hashlib
import json
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf

from ser.cache.store import Store, open_store
from ser.corpus.headings import column_of, unit_of
from ser.corpus.manifest import Manifest
from ser.corpus.times import seconds_of
from ser.errors import CorpusError, LeakageError, UtteranceError
from ser.extract.audio import decode
from ser.extract.check import relative_deviation
from ser.extract.config import ExtractionConfig
from ser.extract.corpora.counts import summary
from ser.extract.corpora.sample_digest import OPENING
from ser.extract.corpora.scan import Scan, scan_corpus
from ser.extract.recording import Recording, Span
from ser.extract.run import extract, plan
from ser.tests.command_line import in_a_process, ser
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import UNLABELLED
from ser.weights.demo import write_random_checkpoint

RATE = 44100

# In seconds; they overlap, and two of them end between samples.
SPANS = [(0.0, 0.7), (0.5, 1.3), (1.23456, 2.34567), (2.9999, 4.1), (0.1, 4.0), (4.2, 5.0)]


def write_rows(path: Path, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([headings, *rows])
    return path


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """16-bit samples `[n, channels]`, louder from second to second."""
    count = round(seconds * rate)
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 1, (count, channels)) * np.linspace(500, 5000, count)[:, None]
    return samples.astype(np.int16)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five seconds at 44.1 kHz, its spans as segments.csv, and in cut/ as files with cut.csv."""
    folder = tmp_path_factory.mktemp("recording")
    samples = noise(5.0)
    sf.write(folder / "long.wav", samples, RATE)
    (folder / "cut").mkdir()

    segments = []
    files = []
    for number, (start, end) in enumerate(SPANS):
        part = samples[round(start * RATE) : round(end * RATE)]
        sf.write(folder / "cut" / f"{number}.wav", part, RATE)
        speaker = f"s{number % 2}"
        segments.append([f"u{number}", "long.wav", start, end, speaker, "ang"])
        files.append([f"u{number}", f"{number}.wav", speaker, "ang"])

    write_rows(
        folder / "segments.csv", ["id", "file", "start", "end", "speaker", "label"], segments
    )
    write_rows(folder / "cut" / "cut.csv", ["id", "file", "speaker", "label"], files)
    return folder


def extracted(corpus: Path, store: Path, features: str, **options: Any) -> Store:
    extract(plan(ExtractionConfig(corpus, features, store=store, **options)))
    return open_store(store)


def rows_of(store: Store, name: str) -> dict[str, np.ndarray]:
    feature = store[name]
    manifest = store.manifest()
    packed = feature.load(manifest, range(len(manifest)))
    return {id_: packed[number] for number, id_ in enumerate(packed.ids)}


# Exact
# ----------------------------------------


@pytest.mark.parametrize("name", ["logmel", "egemaps", "logmel:view=noise-1"])
def test_a_segment_has_the_features_of_the_same_samples_as_a_file(
    recording: Path, tmp_path: Path, name: str
) -> None:
    """Bit for bit, resampled from 44.1 to 16 kHz."""
    of_segments = rows_of(extracted(recording / "segments.csv", tmp_path / "a", name), name)
    of_files = rows_of(extracted(recording / "cut" / "cut.csv", tmp_path / "b", name), name)

    assert list(of_segments) == list(of_files)
    for id_, values in of_files.items():
        assert np.array_equal(of_segments[id_], values), id_


@pytest.mark.parametrize("batch_seconds", [None, 8.0], ids=["one by one", "in batches"])
def test_a_segment_has_the_frames_of_an_encoder(
    recording: Path, tmp_path: Path, batch_seconds: float | None
) -> None:
    checkpoint = write_random_checkpoint(tmp_path / "hubert", "hubert", ["oh"])
    options = {"models": {"hubert": str(checkpoint)}, "dtype": "float32"}
    segments = extracted(
        recording / "segments.csv", tmp_path / "a", "hubert", batch_seconds=batch_seconds, **options
    )
    files = extracted(recording / "cut" / "cut.csv", tmp_path / "b", "hubert", **options)

    of_segments = rows_of(segments, "hubert")
    for id_, values in rows_of(files, "hubert").items():
        assert relative_deviation(of_segments[id_], values) < 1e-6


def test_140_tones_in_one_recording(tmp_path: Path) -> None:
    """Each segment has its own tone, whatever the order of the rows and the parts."""
    count = 140
    seconds = 0.1
    frequencies = 200 + 20 * np.arange(count)
    times = np.arange(round(seconds * RATE)) / RATE
    tones = [0.5 * np.sin(2 * np.pi * frequency * times) for frequency in frequencies]
    sf.write(tmp_path / "tones.flac", np.concatenate(tones), RATE)

    rows = []
    for number in range(count):
        rows.append(["tones.flac", number * seconds, (number + 1) * seconds, f"s{number % 4}"])
    order = np.random.default_rng(0).permutation(count)
    table = [rows[number] for number in order]
    path = write_rows(tmp_path / "t.csv", ["file", "start", "end", "speaker"], table)

    name = "logmel"
    store = extracted(path, tmp_path / "s", name, part_seconds=2.0, dtype="float32")
    features = rows_of(store, name)
    # The ids in the order of the recording.
    ids = [store.manifest().ids[place] for place in np.argsort(order)]
    in_order = [int(features[id_].mean(0).argmax()) for id_ in ids]
    assert len(features) == count
    assert in_order == sorted(in_order)
    assert len({values.tobytes() for values in features.values()}) == count

    (tmp_path / "cut").mkdir()
    for number in (0, 77, 139):
        samples = sf.read(tmp_path / "tones.flac", dtype="int16")[0]
        first = round(number * seconds * RATE)
        end = round((number + 1) * seconds * RATE)
        sf.write(tmp_path / "cut" / f"{number:03d}.wav", samples[first:end], RATE)
    cut = extracted(tmp_path / "cut", tmp_path / "c", name, format="folder", dtype="float32")
    for number, values in zip((0, 77, 139), rows_of(cut, name).values(), strict=True):
        assert np.array_equal(features[ids[number]], values)


CODINGS = {
    "16 bits": {"subtype": "PCM_16"},
    "24 bits": {"subtype": "PCM_24"},
    "mu-law": {"subtype": "ULAW"},
    "ADPCM": {"subtype": "IMA_ADPCM"},
    "G.721": {"format": "AU", "subtype": "G721_32"},
    "AIFF": {"format": "AIFF", "subtype": "PCM_16"},
    "FLAC": {"format": "FLAC"},
    "Vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "MP3": {"format": "MP3"},
}


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("channels", [1, 2], ids=["mono", "stereo"])
def test_parts_are_those_of_the_whole_in_any_order(
    tmp_path: Path, coding: str, channels: int
) -> None:
    if coding == "G.721" and channels == 2:
        return
    path = tmp_path / "a.wav"
    sf.write(path, noise(5.0, channels=channels), RATE, **{"format": "WAV", **CODINGS[coding]})
    whole = decode(path).samples

    with Recording(path) as recording:
        recording.open()
        assert recording.frames == len(whole)
        for start, end in [SPANS[3], SPANS[0], *SPANS, (4.5, None)]:
            first, last = Span(start, end).samples(RATE, len(whole))
            samples = recording.clip(Span(start, end)).samples
            # Of MP3 the decoder rounds otherwise where a block begins.
            assert np.abs(samples - whole[first:last]).max() <= (1e-7 if coding == "MP3" else 0)


def test_a_recorder_that_was_killed_leaves_parts(tmp_path: Path) -> None:
    """Its header counts no samples."""
    path = tmp_path / "a.wav"
    samples = noise(2.0)
    sf.write(path, samples, RATE)
    content = bytearray(path.read_bytes())
    content[40:44] = b"\0\0\0\0"
    path.write_bytes(content)

    table = write_rows(
        tmp_path / "t.csv", ["file", "start", "end"], [["a.wav", 1, 1.5], ["a.wav", 0, 1]]
    )
    scan = scan_corpus(table)
    assert scan.problems == []
    assert scan.manifest.column("duration") == [0.5, 1.0]
    with Recording(path) as recording:
        recording.open()
        part = recording.clip(Span(1.0, 1.5)).samples
    assert np.array_equal(part * 32768, samples[RATE : RATE * 3 // 2, 0])


def test_a_recording_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a coding that has to be decoded from its start, in several parts."""
    rate = 16000
    sf.write(tmp_path / "a.ogg", noise(20.0, rate), rate, format="OGG", subtype="VORBIS")
    rows = [["a.ogg", place, place + 1] for place in (7, 3, 11, 18, 0, 5, 15, 9, 13, 1)]
    path = write_rows(tmp_path / "t.csv", ["file", "start", "end"], rows)

    decoded = 0
    read = sf.SoundFile.read

    def counting(self: sf.SoundFile, *args: Any, **options: Any) -> np.ndarray:
        nonlocal decoded
        samples = read(self, *args, **options)
        decoded += len(samples)
        return samples

    monkeypatch.setattr(sf.SoundFile, "read", counting)
    extracted(path, tmp_path / "s", "logmel", part_seconds=3.0)
    # And its first samples before, by which the scan looks for copies of it.
    assert decoded == 20 * rate + OPENING


# What the store holds
# ----------------------------------------


def test_digests_are_of_file_and_span(recording: Path) -> None:
    manifest = scan_corpus(recording / "segments.csv").manifest
    sha256 = hashlib.sha256((recording / "long.wav").read_bytes()).hexdigest()
    assert manifest.recordings == {"long.wav": sha256}

    expected = []
    for start, end in SPANS:
        named = json.dumps([sha256, round(start * RATE), round(end * RATE)], separators=(",", ":"))
        expected.append(hashlib.sha256(named.encode()).hexdigest())
    assert manifest.column("audio_sha256") == expected
    assert manifest.column("start") == [start for start, _ in SPANS]
    assert manifest.column("duration") == pytest.approx(
        [end - start for start, end in SPANS], abs=1 / RATE
    )

    again = Manifest.from_content(manifest.content, manifest.digest, "here")
    assert again.same(manifest)
    assert again.digest == manifest.digest
    metadata = pq.read_schema(pa.BufferReader(manifest.content)).metadata
    assert metadata[b"format_version"] == b"1"
    assert json.loads(metadata[b"recordings"]) == {"long.wav": sha256}


def test_a_corpus_without_segments_says_nothing_of_them(recording: Path) -> None:
    manifest = scan_corpus(recording / "cut" / "cut.csv").manifest
    assert not manifest.is_segmented
    assert b"recordings" not in pq.read_schema(pa.BufferReader(manifest.content)).metadata


def test_a_span_that_moves_costs_one_row(recording: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "long.wav").symlink_to(recording / "long.wav")
    (corpus / "long.wav").unlink()
    (corpus / "long.wav").write_bytes((recording / "long.wav").read_bytes())
    table = corpus / "t.csv"
    table.write_text((recording / "segments.csv").read_text())
    options: dict[str, Any] = {"features": "logmel", "store": tmp_path / "s"}
    extract(plan(ExtractionConfig(table, **options)))
    table.write_text(table.read_text().replace("0.5,1.3", "0.5,1.4"))

    done = extract(plan(ExtractionConfig(table, **options)))
    assert done.features["logmel"]["computed"] == 1
    assert done.features["logmel"]["reused"] == len(SPANS) - 1


def test_one_recording_in_two_corpora_is_named(recording: Path) -> None:
    """However each of them cuts it."""
    first = scan_corpus(recording / "segments.csv", name="a").manifest
    second = scan_corpus(recording / "segments.csv", name="b", limit=2).manifest
    with pytest.raises(LeakageError, match="are the same recording in two of these corpora"):
        apply_policy(UNLABELLED, Manifest.joined([first, second]))


def test_a_recording_that_changes_stops_the_run(recording: Path, tmp_path: Path) -> None:
    (tmp_path / "long.wav").write_bytes((recording / "long.wav").read_bytes())
    (tmp_path / "t.csv").write_text((recording / "segments.csv").read_text())
    planned = plan(ExtractionConfig(tmp_path / "t.csv", "logmel", store=tmp_path / "s"))
    content = bytearray((tmp_path / "long.wav").read_bytes())
    content[-1] ^= 1
    (tmp_path / "long.wav").write_bytes(content)
    with pytest.raises(CorpusError, match=r"long\.wav: changed after the corpus was read"):
        extract(planned)


@pytest.mark.heavy
def test_processes_give_the_same_rows(recording: Path, tmp_path: Path) -> None:
    here = rows_of(extracted(recording / "segments.csv", tmp_path / "a", "logmel"), "logmel")
    there = rows_of(
        extracted(
            recording / "segments.csv", tmp_path / "b", "logmel", workers=2, part_seconds=1.0
        ),
        "logmel",
    )
    for id_, values in here.items():
        assert np.array_equal(there[id_], values)


# Tables
# ----------------------------------------

TIMES = {
    "seconds": ("1.5", 1.5),
    "a decimal comma": ("1,5", 1.5),
    "a number": (1.5, 1.5),
    "milliseconds": ("1500 ms", 1.5),
    "milliseconds in one word": ("1100ms", 1.1),
    "pandas": ("0 days 00:00:01.500000", 1.5),
    "more than a day": ("1 days 00:00:01.5", 86401.5),
    "a clock": ("01:02:03.250", 3723.25),
    "a clock of subtitles": ("00:00:01,500", 1.5),
    "a duration of Parquet": (datetime.timedelta(seconds=1.5), 1.5),
    "before the start": ("-0.5", -0.5),
}


@pytest.mark.parametrize("notation", TIMES)
def test_times(notation: str) -> None:
    value, seconds = TIMES[notation]
    assert seconds_of(value) == seconds


@pytest.mark.parametrize("value", ["soon", "1:30", "", "1_0", "inf", "00:99:00", True, "1 h"])
def test_what_is_no_time(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        seconds_of(value)


def test_headings_of_times() -> None:
    named = ["start", "End", "start_ms", "End (ms)", "start [s]", "Start time (sec)", "starter"]
    columns = ["start", "end", "start", "end", "start", "start", "starter"]
    assert [column_of(heading) for heading in named] == columns
    assert [unit_of(heading) for heading in named[:6]] == ["", "", "ms", "ms", "s", "sec"]

    # Of Praat, ELAN, MELD and BIDS.
    others = ["tmin", "tmax", "Begin Time - ss.msec", "End Time - msec", "EndTime", "onset"]
    assert [column_of(heading) for heading in others] == [*["start", "end"] * 2, "end", "start"]
    assert [unit_of(heading) for heading in others] == ["", "", "", "ms", "", ""]


def three_parts(folder: Path) -> Path:
    sf.write(folder / "a.wav", noise(3.0, 16000), 16000)
    sf.write(folder / "b.wav", noise(2.0, 16000), 16000)
    return folder


@pytest.mark.parametrize(
    ("headings", "rows"),
    [
        pytest.param(
            ["file", "start", "end"],
            [["a.wav", "0 days", "0 days 00:00:01.5"], ["a.wav", "0 days 00:00:01.5", "NaT"]],
            id="audformat",
        ),
        pytest.param(
            ["file", "start_ms", "end_ms"], [["a.wav", 0, 1500], ["a.wav", 1500, ""]], id="ms"
        ),
        pytest.param(
            ["wav", "Start", "End"], [["a.wav", "0", "1,5"], ["a.wav", "1,5", "3,0"]], id="commas"
        ),
        pytest.param(
            ["file", "onset", "duration"], [["a.wav", 0, 1.5], ["a.wav", 1.5, "n/a"]], id="BIDS"
        ),
        pytest.param(
            ["file", "begin_ms", "duration_ms"],
            [["a.wav", 0, 1500], ["a.wav", 1500, 1500]],
            id="ms and ms",
        ),
    ],
)
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_notations_in_every_kind_of_table(
    tmp_path: Path, headings: list[str], rows: list[list[object]], ending: str
) -> None:
    three_parts(tmp_path)
    path = tmp_path / f"t.{ending}"
    records = [dict(zip(headings, map(str, row), strict=True)) for row in rows]
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif ending == "jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, headings, delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            writer.writerows(records)

    manifest = scan_corpus(path).manifest
    assert manifest.column("duration") == [1.5, 1.5]
    assert manifest.column("start") == [0.0, 1.5]
    assert manifest.ids[0] == "a_0.000_1.500"
    assert len(set(manifest.column("audio_sha256"))) == 2


def test_durations_of_pandas_in_parquet(tmp_path: Path) -> None:
    import pandas as pd

    three_parts(tmp_path)
    frame = pd.DataFrame(
        {
            "file": ["a.wav", "a.wav"],
            "start": pd.to_timedelta([0.0, 1.5], unit="s"),
            "end": pd.to_timedelta([1.5, None], unit="s"),
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    assert scan_corpus(tmp_path / "t.parquet").manifest.column("duration") == [1.5, 1.5]


def test_a_duration_that_is_none_is_named(tmp_path: Path) -> None:
    three_parts(tmp_path)
    rows = [["x", "a.wav", 0.1, "soon"], ["y", "a.wav", 0.1, 0.2], ["z", "a.wav", 1, 1]]
    table = write_rows(tmp_path / "t.csv", ["id", "file", "start", "duration"], rows)
    scan = scan_corpus(table)
    [problem] = scan.problems
    assert "line 2: the duration 'soon' is not a time" in problem.reason
    assert scan.manifest.column("end") == [0.3, 2.0]


def scanned(folder: Path, rows: Sequence[Sequence[object]]) -> Scan:
    return scan_corpus(write_rows(folder / "t.csv", ["id", "file", "start", "end"], rows))


def test_spans_that_are_none_are_named(tmp_path: Path) -> None:
    """In one line for each kind, and the others are read."""
    three_parts(tmp_path)
    rows: list[list[object]] = [["good", "a.wav", 0, 1], ["rounded", "a.wav", 2, 3.004]]
    for number in range(4):
        rows.append([f"late{number}", "a.wav", 2, 4 + number])
        rows.append([f"after{number}", "a.wav", 5 + number, 9])
        rows.append([f"empty{number}", "a.wav", number / 2, number / 2])
        rows.append([f"reversed{number}", "a.wav", 2, number / 4])
        rows.append([f"negative{number}", "a.wav", -1 - number, 1])

    shown = ser(
        "corpus", "show", write_rows(tmp_path / "t.csv", ["id", "file", "start", "end"], rows)
    )
    assert shown.exit_code == 1
    lines = [line for line in shown.output.splitlines() if line.startswith("problem ")]
    assert len(lines) == 5, lines
    for kind in ("ends after the file", "begins after", "no length", "reversed", "before the file"):
        [line] = [line for line in lines if kind in line]
        assert "4 of one kind, such as a.wav: " in line

    scan = scan_corpus(tmp_path / "t.csv")
    assert len(scan.problems) == 20
    durations = dict(zip(scan.manifest.ids, scan.manifest.column("duration"), strict=True))
    assert durations["good"] == 1.0
    assert durations["rounded"] == 1.0
    assert durations["late0"] is None
    assert any("1 segments, such as rounded, end up to" in warning for warning in scan.warnings)


def test_the_same_span_twice_is_named(tmp_path: Path) -> None:
    three_parts(tmp_path)
    scan = scanned(tmp_path, [["x", "a.wav", 0, 1], ["y", "a.wav", 0, 1.0], ["z", "a.wav", 0, 2]])
    assert any("(x = y)" in warning for warning in scan.warnings)

    rows = [["a.wav", 0, 1], ["a.wav", 0, 1], ["a.wav", 1, 2]]
    table = write_rows(tmp_path / "n.csv", ["file", "start", "end"], rows)
    [problem] = scan_corpus(table).problems
    assert "the id a_0.000_1.000 is there twice: the same part of one recording" in problem.reason


def test_files_that_are_cut_out_have_places_in_a_dialogue(tmp_path: Path) -> None:
    three_parts(tmp_path)
    scan = scanned(tmp_path, [["x", "a.wav", 7.25, 10.25], ["y", "b.wav", 0, 1.95]])
    assert not scan.manifest.is_segmented
    assert scan.manifest.column("duration") == [3.0, 2.0]
    assert scan.warnings == []

    # Most are not as long as they say, and lie nowhere in their files.
    scan = scanned(tmp_path, [["x", "a.wav", 7.25, 9.25], ["y", "b.wav", 12, 13]])
    assert not scan.manifest.is_segmented
    assert any(
        "2 files, such as that of x, are not as long" in warning for warning in scan.warnings
    )


def test_one_segment_of_each_file(tmp_path: Path) -> None:
    """They lie within, and are shorter."""
    three_parts(tmp_path)
    scan = scanned(tmp_path, [["x", "a.wav", 1, 2], ["y", "b.wav", 0.5, 1.5]])
    assert scan.manifest.is_segmented
    assert scan.manifest.column("duration") == [1.0, 1.0]
    assert any("each utterance is a part of its file" in warning for warning in scan.warnings)


def test_counts_are_by_segments(recording: Path) -> None:
    facts = summary(scan_corpus(recording / "segments.csv"))
    assert facts["utterances"] == len(SPANS)
    assert facts["recordings"] == 1
    assert facts["hours"] == pytest.approx(
        sum(end - start for start, end in SPANS) / 3600, abs=1e-4
    )


def test_a_recording_of_over_an_hour_is_read_by_its_parts(tmp_path: Path) -> None:
    rate = 100
    sf.write(tmp_path / "a.wav", np.arange(3700 * rate).astype(np.int16), rate)
    scan = scanned(tmp_path, [["x", "a.wav", 3650, 3660], ["y", "a.wav", 0, 3650]])
    [problem] = scan.problems
    assert problem.id == "y"
    assert "over an hour" in problem.reason
    assert "name its parts by start and end" in problem.reason
    with Recording(tmp_path / "a.wav") as recording:
        recording.open()
        with pytest.raises(UtteranceError, match="over an hour"):
            recording.clip(Span())


# Large
# ----------------------------------------


def extract_two_hours(folder: str) -> None:
    """Print the largest memory of this process, in MB, once a table is extracted."""
    table = Path(folder) / "t.csv"
    config = ExtractionConfig(table, "logmel,egemaps", store=Path(folder) / "s")
    done = extract(plan(config))
    assert done.features["logmel"]["rows"] == 1000
    unit = 1 if sys.platform == "darwin" else 1024
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


@pytest.mark.slow
def test_two_hours_in_a_thousand_segments_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    seconds = 7200
    rng = np.random.default_rng(0)
    with sf.SoundFile(tmp_path / "long.wav", "w", RATE, 1, "PCM_16") as file:
        for _ in range(seconds // 60):
            file.write(rng.normal(0, 0.1, 60 * RATE))
    rows = [["long.wav", 7.2 * number, 7.2 * (number + 1)] for number in range(1000)]
    write_rows(tmp_path / "t.csv", ["file", "start", "end"], rows)
    assert float(in_a_process(extract_two_hours, tmp_path)) < 1000
