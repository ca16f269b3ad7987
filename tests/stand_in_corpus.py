"""Corpora of transcripts that the stand-in extractor obeys.

And runs over them, and what a store then holds.
"""

import csv
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import soundfile as sf

import ser.tests.stand_in  # noqa: F401 (registers it)
from ser.cache.part import Part
from ser.cache.store import open_store
from ser.cache.tools.verify import verify
from ser.extract.batches import text_seconds
from ser.extract.run import ExtractionConfig, ExtractionPlan, OnProgress, Summary, extract, plan


def write_corpus(folder: Path, texts: Sequence[str | None], seconds: Sequence[float] = ()) -> Path:
    """So many seconds of noise for each transcript, or else 0.6 to 1 s."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(len(texts)):
        length = seconds[number] if seconds else 1 - 0.04 * (number % 10)
        sf.write(folder / f"{number}.wav", rng.normal(0, 0.1, round(16000 * length)), 16000)
    return write_table(folder, texts)


def write_table(folder: Path, texts: Sequence[str | None]) -> Path:
    """Utterances u000, u001 … of 0.wav, 1.wav …"""
    rows = [[f"u{number:03d}", f"{number}.wav", text] for number, text in enumerate(texts)]
    with (folder / "corpus.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "audio", "text"], *rows])
    return folder / "corpus.csv"


def slow_texts(count: int, seconds: float) -> list[str]:
    """Of one length."""
    return [f"words {number:03d} [sleep {seconds}]" for number in range(count)]


def part_seconds(corpus: Path, per_part: float) -> float:
    """`--part-seconds` for so many of the corpus's longest transcripts to a part."""
    with corpus.open() as file:
        longest = max(text_seconds(row["text"]) for row in csv.DictReader(file))
    return per_part * 1.01 * longest


def planned(
    corpus: Path, store: Path, features: str = "standin", per_part: float = 4, **options: object
) -> ExtractionPlan:
    """What `ser features` would do."""
    options = {"part_seconds": part_seconds(corpus, per_part), **options}
    return plan(ExtractionConfig(corpus, features, store=store, **options))


def run(
    corpus: Path,
    store: Path,
    *more: object,
    on_progress: OnProgress | None = None,
    **options: object,
) -> Summary:
    """What is `planned` for these, done."""
    return extract(planned(corpus, store, *more, **options), on_progress)


def ser_features(corpus: Path, store: Path, per_part: float, *options: object) -> list[str]:
    """The command, in a process that knows the stand-in extractor."""
    words = ["features", corpus, "--features", "standin", "--store", store]
    words += ["--part-seconds", part_seconds(corpus, per_part), *options]
    driver = "import sys, ser.tests.stand_in; from ser.cli import main; main(sys.argv[1:])"
    return [sys.executable, "-c", driver, *map(str, words)]


def contents(path: Path) -> dict[str, tuple[bytes, ...]]:
    """Every row that every feature holds.

    And a proof that none appears twice and all files are whole.
    """
    store = open_store(path)
    features = {}
    for feature in store.features():
        ids: list[str] = []
        for part in feature.parts():
            ids += part.record.ids
        assert len(ids) == len(set(ids)), "a row stands in two parts"

        packed = feature.load(store.manifest())
        arrays = {"values": packed.values, "offsets": packed.offsets, **packed.extras}
        bytes_of_arrays = [name.encode() + arrays[name].tobytes() for name in sorted(arrays)]
        features[feature.spec.name] = (
            feature.fingerprint.encode(),
            " ".join(packed.ids).encode(),
            *bytes_of_arrays,
        )

    assert not [check for check in verify(store) if check.problem]
    assert not list((path / "tmp").glob("*"))
    return features


def all_parts(path: Path) -> list[Part]:
    """The parts of every feature."""
    every_part = []
    for feature in open_store(path).features():
        every_part += feature.parts()
    return every_part


def writers(path: Path) -> list[str]:
    """The name of the worker that wrote each part."""
    return [str(part.record.written_by["name"]) for part in all_parts(path)]


def parts(path: Path) -> dict[str, int]:
    """Each published part with the inode of its record: whoever rewrites one is found out."""
    inodes = {}
    for record in path.glob("*/*/parts/*/part.json"):
        inodes[str(record.parent.relative_to(path))] = record.stat().st_ino
    return inodes


def files(path: Path) -> dict[str, dict[str, object]]:
    """The size and sha256 of every file of every part."""
    return {str(part.folder.relative_to(path)): dict(part.record.files) for part in all_parts(path)}


def wait_for(happened: Callable[[], object]) -> None:
    """Wait until it is so.

    Not for ever, so that a thread that waits does not outlive its test.
    """
    deadline = time.monotonic() + 200
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
