"""EmoDB: its file names, and the real recordings where they are at hand."""

from collections import Counter
from pathlib import Path

import soundfile

from ser.extract.corpora.scan import read_corpus
from ser.tests.shared_data import emodb


def write(path: Path, samples: int = 1600) -> None:
    soundfile.write(path, [0.1] * samples, 16000, subtype="PCM_16")


def test_names_are_read_by_their_convention(tmp_path: Path) -> None:
    folder = tmp_path / "wav"  # as in the download
    folder.mkdir()
    for name in ("16b10Lb", "03a01Fa"):
        write(folder / f"{name}.wav")
    (folder / "._03a01Fa.wav").write_bytes(b"Mac OS X")
    write(folder / "03a99Fa.wav")
    scan = read_corpus(tmp_path)
    first, second = scan.manifest.table.to_pylist()
    assert (scan.format, scan.manifest.corpus) == ("emodb", "emodb")
    assert (first["id"], first["audio"], first["label"]) == ("03a01Fa", "wav/03a01Fa.wav", "hap")
    assert (first["speaker"], first["session"], first["gender"], first["dialogue"]) == ("03", "03", "M", "03a01Fa")
    assert (second["label"], second["gender"]) == ("bor", "F")
    assert second["text"] == "Die wird auf dem Platz sein, wo wir sie immer hinlegen."
    assert first["duration"] == 0.1
    assert [p.path for p in scan.problems] == ["wav/03a99Fa.wav"]


def test_the_real_recordings() -> None:
    folder = emodb()[0].parent
    scan = read_corpus(folder)
    manifest = scan.manifest
    assert scan.problems == []
    assert len(manifest) == 339
    assert Counter(manifest.column("label")) == {"ang": 127, "neu": 79, "hap": 71, "sad": 62}
    assert len(set(manifest.column("speaker"))) == 10
    assert len(set(manifest.column("text"))) == 10
    pairs = set(zip(manifest.column("speaker"), manifest.column("gender"), strict=True))
    assert {s for s, g in pairs if g == "M"} == {"03", "10", "11", "12", "15"}
    for audio, seconds in list(zip(manifest.column("audio"), manifest.column("duration"), strict=True))[::20]:
        assert seconds == len(soundfile.read(folder / audio)[0]) / 16000
