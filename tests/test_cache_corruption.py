"""Whatever happens to a file of a store, somebody says so: at open, at reading, or at verify."""

import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ser.cache.store import Manifest, open_store
from ser.cache.verify import verify
from ser.errors import CorruptStore, SerError
from ser.tests.store_samples import Arrays, check_whole, sample_store

BACKENDS = ["zarr", "hdf5"]
DATA = re.compile(r"data\.h5|data\.zarr")  # files that are read only when their rows are


@pytest.fixture(params=BACKENDS)
def sample(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Manifest, Arrays]:
    store, _, manifest, arrays = sample_store(tmp_path / "s", request.param, count=6, dim=5, level="token")
    return store.path, manifest, arrays


def files_of(path: Path) -> list[Path]:
    found = (file for file in path.glob("**/*") if file.is_file())
    return sorted(file for file in found if file.name != "log.jsonl")  # a history: what is read does not rest on it


def complaints(path: Path, manifest: Manifest, arrays: Arrays) -> Iterator[str]:
    """What is said when the store is opened and read, and when it is verified. Wrong values fail the test."""
    try:
        store = open_store(path)
        feature = store.feature("tokens", "toy")
        store.manifest()
        check_whole(feature, manifest, arrays)
        assert feature["u003"].tobytes() == arrays["u003"].tobytes()
    except SerError as error:
        yield str(error)
    if (path / "manifests").exists():
        yield from (checked.problem for checked in verify(open_store(path)) if checked.problem)


def check_noticed(path: Path, file: Path, manifest: Manifest, arrays: Arrays, at_open: bool) -> None:
    said = list(complaints(path, manifest, arrays))
    # A named error: the file itself, or the part that it belongs to.
    names = [str(file), *(str(parent) for parent in file.parents if parent.parent.name == "parts")]
    assert said, f"nobody noticed {file}"
    assert all("\n" not in text for text in said)
    assert any(name in text for name in names for text in said), (file, said)
    if at_open:
        with pytest.raises(CorruptStore):
            store = open_store(path)
            store.manifest()
            for feature in store.features():
                feature.parts()


FLIPS = [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 120))]


@pytest.mark.parametrize("harm", ["delete", "empty", "truncate", "grow", "link", "pipe", *FLIPS])
def test_each_file_in_turn(sample: tuple[Path, Manifest, Arrays], harm: str | int, tmp_path: Path) -> None:
    """A number is that of the seed by which one bit of each file is flipped."""
    path, manifest, arrays = sample
    dice = random.Random(harm)
    files = files_of(path)
    assert len(files) >= 6
    for file in files:
        content = file.read_bytes()
        if harm == "delete":
            file.unlink()
        elif harm == "link":
            shutil.copy(file, tmp_path / "elsewhere")
            file.unlink()
            file.symlink_to(tmp_path / "elsewhere")
        elif harm == "pipe":
            file.unlink()
            os.mkfifo(file)
        elif isinstance(harm, int):
            altered = bytearray(content)
            altered[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
            file.write_bytes(altered)
        else:
            file.write_bytes({"empty": b"", "truncate": content[: len(content) // 2], "grow": content + b"\0"}[harm])
        check_noticed(path, file, manifest, arrays, at_open=isinstance(harm, str) or not DATA.search(str(file)))
        file.unlink(missing_ok=True)
        file.write_bytes(content)
    assert not list(complaints(path, manifest, arrays))


def test_each_folder_in_turn(sample: tuple[Path, Manifest, Arrays]) -> None:
    path, manifest, arrays = sample
    folders = sorted(folder for folder in path.glob("**/*") if folder.is_dir() and folder.name != "tmp")
    # Without its whole folder a part or feature is not there, which is absence and not corruption: rows are missing.
    for folder in folders:
        aside = path.parent / "aside"
        folder.rename(aside)
        assert list(complaints(path, manifest, arrays)), f"nobody noticed {folder}"
        aside.rename(folder)
    assert not list(complaints(path, manifest, arrays))


def test_a_reader_in_flight_gets_an_error(sample: tuple[Path, Manifest, Arrays]) -> None:
    """Files that go or change after a feature has been opened."""
    path, manifest, arrays = sample
    for file in (one for one in files_of(path) if one.name == "data.h5" or "values/c/" in str(one)):
        for content in (None, b"", bytes(file.stat().st_size)):
            feature = open_store(path)["tokens"]
            feature.parts()
            kept = file.read_bytes()
            if content is None:
                file.unlink()
            else:
                file.write_bytes(content)
            with pytest.raises(CorruptStore, match=str(file)):
                feature.load(manifest)
            file.write_bytes(kept)
    check_whole(open_store(path)["tokens"], manifest, arrays)
