"""Small stores for tests, the same each time, and the values that they must give back.

    python -m ser.tests.store_samples STORE BACKEND [PART_ROWS] [ASK]

is a writer to be killed: it publishes the parts of a small feature, one after the other, until all
are there, and prints the name of each; with ASK, it waits for a line then. Exits 3 with one
sentence if the store says that it failed.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ser.cache.feature import Feature
from ser.cache.publish import publish_part
from ser.cache.rows import Packed, PartRows
from ser.cache.spec import Spec
from ser.cache.store import Store, open_store
from ser.corpus.manifest import Manifest
from ser.disk.records import checksummed_json
from ser.errors import SerError

Arrays = dict[str, npt.NDArray[Any]]

# Utterances that the writer writes.
COUNT = 24


def manifest_of(count: int, corpus: str = "toy", prefix: str = "u") -> Manifest:
    """A manifest whose audio digests are made up and whose texts are not."""
    rows = []
    for number in range(count):
        id_ = f"{prefix}{number:03d}"
        rows.append(
            {
                "id": id_,
                "audio": f"{id_}.wav",
                "audio_sha256": hashlib.sha256(f"{corpus} {prefix}{number}".encode()).hexdigest(),
                "text": f"this is number {number}",
                "speaker": f"s{number % 3}",
                "label": ["neu", "ang", "sad", "hap"][number % 4],
            }
        )
    return Manifest.from_rows(corpus, rows)


def new_store(path: Path, manifest: Manifest) -> Store:
    """A store of a corpus that has no feature yet."""
    store = open_store(path, create=True)
    store.put_manifest(manifest)
    return store


def spec_of(level: str = "frame", dim: int = 8, dtype: str = "float16", **other: Any) -> Spec:
    """A spec of an audio feature, or of a text feature at token level."""
    fields = {
        "feature": f"{level}s",
        "extractor": "toy",
        "version": 1,
        "modality": "text" if level == "token" else "audio",
        **other,
    }
    return Spec(level=level, dim=dim, dtype=dtype, **fields)


def values_of(manifest: Manifest, spec: Spec, longest: int = 40) -> Arrays:
    """What each utterance's feature is, wherever it stands.

    Normal values in the stored dtype, `[n, dim]`.
    """
    arrays = {}
    for id_ in manifest.ids:
        random = np.random.default_rng([*id_.encode(), spec.dim])
        rows = 1 if spec.level == "utterance" else int(random.integers(1, longest + 1))
        arrays[id_] = random.normal(size=(rows, spec.dim)).astype(spec.dtype)
    return arrays


def part_rows(
    manifest: Manifest, spec: Spec, rows: Sequence[int], arrays: Arrays | None = None
) -> PartRows:
    """Some of a manifest's rows, ready to publish.

    Token features get their words, and tokens that spell them.
    """
    arrays = arrays or values_of(manifest, spec)
    digests = manifest.inputs(spec.modality)

    part = PartRows(manifest.corpus)
    part.ids = [manifest.ids[row] for row in rows]
    part.inputs = [digests[row] for row in rows]
    part.arrays = [arrays[id_] for id_ in part.ids]

    if spec.level == "token":
        places = [np.arange(len(array), dtype=np.int32) - 1 for array in part.arrays]
        part.extras = {"token": places, "word": places}
    return part


def publish_missing(
    feature: Feature,
    manifest: Manifest,
    backend: str,
    arrays: Arrays | None = None,
    per_part: int = 4,
) -> Iterator[str]:
    """Publish what is missing, in parts of a few utterances.

    Yields the names of those that were not there.
    """
    missing = set(feature.missing(manifest))

    for start in range(0, len(manifest), per_part):
        stop = min(start + per_part, len(manifest))
        rows = [row for row in range(start, stop) if row in missing]
        if not rows:
            continue
        part = part_rows(manifest, feature.spec, rows, arrays)
        name = publish_part(feature, part, backend, {"test": "fill"})
        if name:
            yield name


def fill(
    feature: Feature, manifest: Manifest, backend: str, arrays: Arrays | None = None
) -> list[str]:
    """Publish what is missing. Returns the names of the parts that were not there."""
    return list(publish_missing(feature, manifest, backend, arrays))


def sample_store(
    path: Path, backend: str, count: int = 10, level: str = "frame", **other: Any
) -> tuple[Store, Feature, Manifest, Arrays]:
    """A store with one complete feature."""
    manifest = manifest_of(count)
    store = new_store(path, manifest)
    feature = store.add(spec_of(level, **other))
    fill(feature, manifest, backend)
    return store, feature, manifest, values_of(manifest, feature.spec)


def check_whole(
    feature: Feature,
    manifest: Manifest,
    arrays: Arrays | None = None,
    rows: Sequence[int] | None = None,
) -> Packed:
    """Every utterance, or these rows of the manifest, read back bit for bit."""
    packed = feature.load(manifest, rows)
    arrays = arrays or values_of(manifest, feature.spec)

    expected_rows = range(len(manifest)) if rows is None else rows
    assert packed.ids == [manifest.ids[row] for row in expected_rows]

    for number, id_ in enumerate(packed.ids):
        assert packed[number].tobytes() == arrays[id_].tobytes(), id_
    return packed


def rewrite_record(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a part.json or spec.json and give it a true checksum again, as an attacker would."""
    record = json.loads(path.read_text())
    del record["sha256"]
    change(record)
    path.write_bytes(checksummed_json(record))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Put other content into a part and record its size and digest.

    So only its meaning can give it away.
    """
    (folder / name).write_bytes(content)
    record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite_record(folder / "part.json", lambda part: part["files"].update({name: record}))


def write(path: str, backend: str, per_part: str = "2", ask: str = "") -> None:
    """As the writer: publish what is missing."""
    manifest = manifest_of(COUNT)
    feature = new_store(Path(path), manifest).add(spec_of("token", dim=16))

    for name in publish_missing(feature, manifest, backend, per_part=int(per_part)):
        print(name, flush=True)
        if ask:
            sys.stdin.readline()


if __name__ == "__main__":
    try:
        write(*sys.argv[1:])
    except SerError as error:
        print(error, file=sys.stderr)
        raise SystemExit(3) from error
