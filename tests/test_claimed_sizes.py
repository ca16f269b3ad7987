"""Numbers in foreign files that size work: compared with what is there, before any work."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile as sf
import zarr
from safetensors.numpy import save_file

from ser.cache.tools.foreign import read_arrays
from ser.cache.tools.importing import read_ids
from ser.corpus.table_file import read_table_file
from ser.disk.read import read_named, read_small
from ser.errors import CorpusError, SerError, WeightsError, WrongUse
from ser.extract.audio import decode
from ser.extract.corpora.audformat import read_audformat
from ser.extract.corpora.probe import probe
from ser.train.sweep.recipe import read_recipe
from ser.weights.checkpoint import read_json
from ser.weights.digest import digest_checkpoint
from ser.weights.load import loading

ROWS = 11_000_000


def write_one_text(path: Path, text: str, rows: int, with_schema: bool = True) -> None:
    numbers = pa.array(np.zeros(rows, "i4"))
    column = pa.DictionaryArray.from_arrays(numbers, [text])
    pq.write_table(pa.table({"audio": column}), path, store_schema=with_schema)


def test_more_rows_than_bytes_hold(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_one_text(path, "a", ROWS)
    with pytest.raises(CorpusError, match=rf"claims {ROWS} rows, which {path.stat().st_size} byte"):
        read_table_file(path)


def test_more_rows_than_the_bytes_of_many_columns_hold(tmp_path: Path) -> None:
    """Each column takes bytes for its claim: together they take more than one."""
    numbers = pa.array(np.zeros(2_000_000, "i4"))
    column = pa.DictionaryArray.from_arrays(numbers, ["a"])
    path = tmp_path / "t.parquet"
    # How well they are packed changes with pyarrow: so many that their values are not too many.
    count = 10
    size = 0
    while size < 20_000:
        pq.write_table(pa.table({f"c{number}": column for number in range(count)}), path)
        size = path.stat().st_size
        count *= 2

    with pytest.raises(CorpusError, match="claims 2000000 rows"):
        read_table_file(path)


@pytest.mark.parametrize("with_schema", [True, False], ids=["of pandas", "of others"])
def test_one_text_of_many_rows(tmp_path: Path, with_schema: bool) -> None:
    """Two megabytes that are 200 GB as texts."""
    path = tmp_path / "t.parquet"
    write_one_text(path, "x" * 2_000_000, 100_000, with_schema)
    with pytest.raises(CorpusError, match="claims 200 GB of texts, more than this machine's"):
        read_table_file(path)


def test_a_table_of_many_kinds_is_what_it_was(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": ["a", "b", None],
            "bytes": pa.array([b"x", None, b"z"]),
            "turn": [1, 2, 3],
            "votes": [[["a"], ["b", "c"]], None, []],
            "a.b": pa.array(["1", "1", "2"], pa.large_string()),
            "label": pa.array(["x", "y", "x"]).dictionary_encode(),
            "nothing": pa.nulls(3),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")

    rows = read_table_file(tmp_path / "t.parquet").rows
    assert [row.values for row in rows] == [
        {
            "id": "a",
            "bytes": b"x",
            "turn": 1,
            "votes": [["a"], ["b", "c"]],
            "a.b": "1",
            "label": "x",
        },
        {"id": "b", "turn": 2, "a.b": "1", "label": "y"},
        {"bytes": b"z", "turn": 3, "votes": [], "a.b": "2", "label": "x"},
    ]


def doubling(line: str) -> str:
    """A document in which each of twenty lines names the one before six times."""
    lines = ["a0: &a0 {k: 1}\n"]
    for number in range(1, 21):
        before = ", ".join([f"*a{number - 1}"] * 6)
        lines.append(line.format(number=number, before=before))
    return "".join(lines)


ALIASES = {
    "lists of lists": doubling("a{number}: &a{number} [{before}]\n"),
    "merged mappings": doubling("a{number}: &a{number}\n  <<: [{before}]\n"),
    "a list in itself": "name: &a [*a]\n",
}


@pytest.mark.parametrize("kind", ALIASES)
def test_aliases_that_multiply(tmp_path: Path, kind: str) -> None:
    (tmp_path / "db.yaml").write_text(ALIASES[kind])
    began = time.monotonic()
    with pytest.raises(WrongUse, match=r"db\.yaml .*its aliases make it more than 1000000 values"):
        read_audformat(tmp_path)
    assert time.monotonic() - began < 1


def test_aliases_that_do_not(tmp_path: Path) -> None:
    labels = "{emotion: {labels: &l [a, b]}, mood: {labels: *l}}"
    (tmp_path / "db.yaml").write_text(f"name: toy\nschemes: {labels}\n")
    assert read_audformat(tmp_path).corpus == "toy"


CELL = '[[cell]]\nname = "c{}"\nfeatures = "logmel"\nfusion = "audio"\n'


@pytest.mark.slow
def test_a_recipe_of_many_cells(tmp_path: Path) -> None:
    path = tmp_path / "many.toml"
    path.write_text("".join(CELL.format(number) for number in range(60_000)))
    began = time.process_time()
    assert len(read_recipe(path).cells) == 60_000
    # Compared name by name it took minutes.
    assert time.process_time() - began < 30


def test_cells_that_cannot_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "cells.toml"
    path.write_text(CELL.format(1) + CELL.format(2) + CELL.format(1))
    with pytest.raises(WrongUse, match="two cells are called 'c1'"):
        read_recipe(path)

    searched = CELL + "set = {{ lr = [1e-3, 1e-4] }}\n"
    path.write_text(CELL.format(1) + CELL.format(2) + searched.format(3) + searched.format(4))
    with pytest.raises(WrongUse, match="these do not: 'c1' 1, 'c3' 2"):
        read_recipe(path)


SEARCH = """
[search]
draws = {draws}
at_most = {at_most}
[[cell]]
name = "c"
features = "logmel"
fusion = "audio"
set = {{ lr = {{ from = 1e-5, to = 1e-3 }}, batch_size = [8, 16] }}
"""
DRAWS = {
    "not meant": (10**9, 10_000, "has 1,000,000,000 runs, and no search may have more than"),
    "meant": (10**9, 10**9, "Expected `int` <= 1000000"),
    "too many to be meant": (20_000, 10_000, "write `at_most = 20000` under"),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_draws_without_an_end(tmp_path: Path, kind: str) -> None:
    draws, at_most, sentence = DRAWS[kind]
    path = tmp_path / "search.toml"
    path.write_text(SEARCH.format(draws=draws, at_most=at_most))
    with pytest.raises(WrongUse, match=sentence):
        read_recipe(path)


def test_draws_that_there_are_not(tmp_path: Path) -> None:
    path = tmp_path / "search.toml"
    few = SEARCH.replace("{{ from = 1e-5, to = 1e-3 }}", "[1e-3, 1e-4]")
    path.write_text(few.format(draws=1_000_000, at_most=1_000_000))
    with pytest.raises(WrongUse, match="draws 1000000 candidates, and there are not so many"):
        read_recipe(path)

    path.write_text(few.format(draws=4, at_most=4))
    [cell] = read_recipe(path).cells
    assert len(set(cell.candidates)) == 4


def test_memory_that_ends_is_said_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.csv"
    path.write_text("audio\na.wav\n")
    monkeypatch.setattr("ser.corpus.table_file.read_delimited", Mock(side_effect=MemoryError))
    with pytest.raises(CorpusError, match=r"t\.csv does not fit into the memory left"):
        read_table_file(path)


def raise_memory_error(*_: Any, **__: Any) -> None:
    raise MemoryError


def open_features(path: Path) -> None:
    arrays = read_arrays(path)
    arrays["values"][0:1]


def write_audio(path: Path) -> None:
    sf.write(path, np.full(800, 0.1), 16000)


def write_zarr(path: Path) -> None:
    zarr.create_group(path).create_array("values", data=np.ones((2, 3)))


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["values"] = np.ones((2, 3))


# How a file is written and read, and what runs out of memory on the way.
Case = tuple[str, Callable[[Path], object], Callable[[Path], object], str]
READ: dict[str, Case] = {
    "audio": ("a.wav", write_audio, decode, "soundfile.SoundFile.read"),
    "audio's header": ("a.wav", write_audio, probe, "ser.extract.recording.Recording.open"),
    "npy": ("x.npy", lambda path: np.save(path, np.ones((2, 3))), open_features, "numpy.load"),
    "npz": (
        "x.npz",
        lambda path: np.savez(path, values=np.ones((2, 3))),
        read_arrays,
        "numpy.load",
    ),
    "HDF5": ("x.h5", write_hdf5, read_arrays, "h5py.File"),
    "Zarr": ("x.zarr", write_zarr, read_arrays, "zarr.open_array"),
    "safetensors": (
        "x.safetensors",
        lambda path: save_file({"values": np.ones((2, 3))}, path),
        open_features,
        "ser.cache.tools.foreign.TensorSlice.__getitem__",
    ),
    "features in CSV": (
        "x.csv",
        lambda path: path.write_text("a,b\n1,2\n"),
        read_arrays,
        "ser.cache.tools.feature_table.read_delimited",
    ),
    "ids": (
        "ids.txt",
        lambda path: path.write_text("a\n"),
        read_ids,
        "ser.cache.tools.importing.read_named",
    ),
    "Parquet": (
        "t.parquet",
        lambda path: write_one_text(path, "a", 2),
        read_table_file,
        "ser.corpus.table_file.read_parquet",
    ),
    "JSON lines": (
        "t.jsonl",
        lambda path: path.write_text('{"id": "a"}\n'),
        read_table_file,
        "ser.corpus.table_file.json.loads",
    ),
    "YAML": (
        "db.yaml",
        lambda path: path.write_text("name: toy\n"),
        lambda path: read_audformat(path.parent),
        "ser.extract.corpora.audformat._load_yaml",
    ),
    "TOML": (
        "r.toml",
        lambda path: path.write_text(CELL.format(1)),
        read_recipe,
        "ser.disk.read.tomllib.loads",
    ),
    "a config": (
        "config.json",
        lambda path: path.write_text("{}"),
        read_json,
        "ser.weights.checkpoint.json.loads",
    ),
    "a checkpoint": (
        "model.safetensors",
        lambda path: save_file({"a": np.ones(2)}, path),
        lambda path: digest_checkpoint(path.parent, [path]),
        "safetensors.safe_open",
    ),
    "a file of a store": (
        "spec.json",
        lambda path: path.write_text("{}"),
        read_small,
        "ser.disk.read.os.fdopen",
    ),
}


@pytest.mark.parametrize("kind", READ)
def test_memory_that_ends_is_said_with_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    name, write, read, allocates = READ[kind]
    write(tmp_path / name)
    if kind == "a file of a store":
        file = MagicMock()
        file.__enter__.return_value.read.side_effect = MemoryError
        monkeypatch.setattr(allocates, lambda *_: file)
    else:
        monkeypatch.setattr(allocates, raise_memory_error)

    with pytest.raises(SerError) as told:
        read(tmp_path / name)
    sentence = str(told.value)
    assert str(tmp_path / name) in sentence
    assert "memory" in sentence
    assert "save it again" not in sentence
    assert "copy it again" not in sentence


@pytest.mark.parametrize(
    "fault", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=str
)
def test_a_model_that_does_not_fit_is_no_broken_one(fault: Exception) -> None:
    sentence = "m cannot be loaded: the memory left is not enough"
    with pytest.raises(WeightsError, match=sentence), loading("m cannot be loaded"):
        raise fault


def test_a_file_larger_than_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.touch()
    # A hole, which takes no place on disk.
    os.truncate(path, 60 << 30)
    with pytest.raises(OSError, match="has 64 GB, more than this machine's memory"):
        read_named(path, 1 << 50)
    with pytest.raises(CorpusError, match=r"t\.csv cannot be read as csv: .*more than this machin"):
        read_table_file(path)
