"""The format of a store, number 1, byte for byte.

What is held here is what stores on a disk have. HDF5 files and manifests are left out:
their bytes depend on the versions of h5py and pyarrow.
"""

import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr

from ser.cache.feature import read_part
from ser.cache.publish import publish_part
from ser.cache.spec import Spec
from ser.cache.store import open_store
from ser.cache.tools.verify import check_part
from ser.tests.store_samples import sample_store

FINGERPRINTS = {
    "frame": "d4dd75f381cee090",
    "token": "8d9ddf5ed2de8714",
    "utterance": "d2e9f5d88f29e836",
}
DIGESTS = {
    "frame": "d0cef1a27840256d",
    "token": "8198cafabc3f5696",
    "utterance": "a652f7350904afab",
}


def digest_of_files(folder: Path) -> str:
    """Of the paths and the bytes of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(path.relative_to(folder).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@pytest.mark.parametrize("level", ["frame", "token", "utterance"])
def test_a_feature_keeps_its_bytes(tmp_path: Path, level: str) -> None:
    _, feature, _, _ = sample_store(tmp_path / "store", "zarr", level=level)

    assert feature.fingerprint == FINGERPRINTS[level]
    assert digest_of_files(feature.path) == DIGESTS[level]


def test_a_fingerprint_covers_all_but_provenance() -> None:
    spec = Spec(
        feature="hubert",
        modality="audio",
        level="frame",
        dim=768,
        dtype="float16",
        extractor="speech",
        version=1,
        variant="layer=9",
        hop=0.02,
        config={"layer": 9},
        checkpoint={"digest": "0" * 64, "random": False},
        provenance={"model": "facebook/hubert-base-ls960"},
    )
    assert spec.fingerprint == "9ceff4bfa6ba43a5"


def test_a_store_of_a_file_for_each_chunk_is_read(tmp_path: Path) -> None:
    """Zarr's parts had no shards at first; this one was written then."""
    with zipfile.ZipFile(Path(__file__).parent / "fixtures" / "store_of_chunks.zip") as archive:
        archive.extractall(tmp_path)
    store = open_store(tmp_path)
    manifest = store.manifest()
    feature = store["tokens"]

    packed = feature.load(manifest, [2, 0, 1])
    expected = []
    for rows in (40, 2500, 1):
        expected.append(np.arange(2 * rows, dtype="f2").reshape(rows, 2) % 100)
        assert feature[manifest.ids[[2500, 1, 40].index(rows)]].tobytes() == expected[-1].tobytes()
    assert packed.values.tobytes() == np.concatenate(expected).tobytes()

    [part] = feature.parts()
    assert len(list((part.folder / "data.zarr/values/c").iterdir())) == 3
    check_part(part.folder, feature.fingerprint)

    # Written again it has shards, and is the same.
    rows = read_part(feature, part)
    again = open_store(tmp_path / "again", create=True).add(feature.spec)
    publish_part(again, rows)
    [shards] = again.parts()
    assert shards.folder.name == part.folder.name
    assert len(list((shards.folder / "data.zarr/values/c").iterdir())) == 1
    check_part(shards.folder, again.fingerprint)
    for name, array in zarr.open_group(part.folder / "data.zarr", mode="r").arrays():
        of_shards = zarr.open_group(shards.folder / "data.zarr", mode="r")[name]
        assert np.array_equal(array[:], of_shards[:])
