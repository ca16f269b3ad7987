"""The format of a store, number 1, byte for byte.

What is held here is what every store on a disk already has. HDF5 files and manifests are left out:
their bytes depend on the versions of h5py and pyarrow.
"""

import hashlib
from pathlib import Path

import pytest

from ser.cache.spec import Spec
from ser.tests.store_samples import sample_store

FINGERPRINTS = {
    "frame": "d4dd75f381cee090",
    "token": "8d9ddf5ed2de8714",
    "utterance": "d2e9f5d88f29e836",
}
DIGESTS = {
    "frame": "0b62766fc55083a6",
    "token": "fa47251ef2a834ba",
    "utterance": "154fdd9fcdd1890a",
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
