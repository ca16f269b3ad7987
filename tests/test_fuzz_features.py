"""Random features by writers of every kind: each utterance gets its own numbers, or none does.

Seconds of it in `make test`, always the same; others in `make test-slow` (`SER_FUZZ_SECONDS`, from
`SER_FUZZ_SEED` on).
"""

import csv
import itertools
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ser.cache.store import open_store
from ser.cache.tools.importing import import_feature
from ser.errors import StoreError

from .store_samples import manifest_of
from .test_fuzz_tables import attack

# Exact in float16; some count up, as an index does.
NUMBERS = [0.0, 1.0, 2.0, 3.0, 0.5, -1.25, 7.0]


@dataclass(frozen=True)
class DrawnFeatures:
    """The numbers of some utterances, in the order of a file."""

    ids: list[str]
    values: np.ndarray
    """`[n, dim]`."""


@st.composite
def drawn_features(draw: Any, ids: Sequence[str], whole: bool) -> DrawnFeatures:
    """Features of some of these utterances, or of the `whole` list, in any order."""
    size = len(ids) if whole else draw(st.integers(2, len(ids)))
    chosen = draw(st.permutations(ids))[:size]
    dim = draw(st.integers(1, 3))
    count = len(chosen) * dim
    numbers = draw(st.lists(st.sampled_from(NUMBERS), min_size=count, max_size=count))
    return DrawnFeatures(list(chosen), np.array(numbers, np.float32).reshape(len(chosen), dim))


def frame_of(features: DrawnFeatures) -> pd.DataFrame:
    columns = [f"f{number}" for number in range(features.values.shape[1])]
    return pd.DataFrame(features.values, columns=columns)


def with_ids(path: Path, features: DrawnFeatures, heading: str, **how: Any) -> None:
    frame = frame_of(features)
    frame.insert(0, heading, features.ids)
    frame.to_csv(path, **{"index": False, **how})


def with_paths(path: Path, features: DrawnFeatures) -> None:
    frame = frame_of(features)
    frame["File"] = [f"C:\\wav\\{id_}.wav" for id_ in features.ids]
    frame.to_csv(path, index=False)


def as_opensmile_writes(path: Path, features: DrawnFeatures) -> None:
    frame = frame_of(features)
    frame.insert(0, "name", [f"'{id_}'" for id_ in features.ids])
    frame.insert(1, "frameTime", 0.0)
    frame.to_csv(path, sep=";", index=False)


def as_opensmile_for_python(path: Path, features: DrawnFeatures) -> None:
    frame = frame_of(features)
    frame.index = pd.Index([f"{id_}.wav" for id_ in features.ids], name="file")
    frame.insert(0, "start", pd.Timedelta(0))
    frame.insert(1, "end", pd.Timedelta(1.5, "s"))
    frame.to_csv(path)


def as_index_read_again(path: Path, features: DrawnFeatures) -> None:
    """An index that was read as a column, and saved."""
    frame_of(features).to_csv(path)
    pd.read_csv(path).to_csv(path, index=False)


def as_names_of_rows_in_r(path: Path, features: DrawnFeatures) -> None:
    """Names of rows that `read.csv` of R takes for a column X."""
    frame = frame_of(features)
    frame.insert(0, "X", range(1, len(frame) + 1))
    frame.to_csv(path, index=False)


def without_header(path: Path, features: DrawnFeatures) -> None:
    frame_of(features).to_csv(path, index=False, header=False)


def in_index(path: Path, features: DrawnFeatures, name: str | None = None) -> None:
    frame = frame_of(features)
    frame.index = pd.Index(features.ids, name=name)
    frame.to_csv(path)


def numbered_columns(path: Path, features: DrawnFeatures) -> None:
    pd.DataFrame(features.values).to_csv(path, index=False)


def as_npz(path: Path, features: DrawnFeatures) -> None:
    np.savez(path, values=features.values, ids=np.array(features.ids))


def as_npz_of_bytes(path: Path, features: DrawnFeatures) -> None:
    np.savez(path, values=features.values, ids=np.array(features.ids, "S"))


def as_npz_of_utterances(path: Path, features: DrawnFeatures) -> None:
    np.savez(path, **dict(zip(features.ids, features.values, strict=True)))


def as_hdf5(path: Path, features: DrawnFeatures) -> None:
    with h5py.File(path, "w") as file:
        file["values"] = features.values
        file["ids"] = features.ids


def as_hdf5_of_utterances(path: Path, features: DrawnFeatures) -> None:
    with h5py.File(path, "w") as file:
        for id_, values in zip(features.ids, features.values, strict=True):
            file[id_] = values


def as_safetensors(path: Path, features: DrawnFeatures) -> None:
    tensors = {}
    for id_, values in zip(features.ids, features.values, strict=True):
        tensors[id_] = values
    save_file(tensors, path)


def as_zarr(path: Path, features: DrawnFeatures) -> None:
    config: Any = {"write_empty_chunks": True}
    group = zarr.create_group(path, attributes={"ids": features.ids})
    group.create_array("values", data=features.values, config=config)


# Each with its ending; those that name the utterances are read, whatever their order.
Writer = tuple[str, Callable[[Path, DrawnFeatures], None]]
NAMED: dict[str, Writer] = {
    "a column id": (".csv", lambda path, features: with_ids(path, features, "id")),
    "a column Key": (".csv", lambda path, features: with_ids(path, features, "Key")),
    "semicolons and commas": (
        ".csv",
        lambda path, features: with_ids(path, features, "ID", sep=";", decimal=","),
    ),
    "tabs": (".tsv", lambda path, features: with_ids(path, features, "id", sep="\t")),
    "UTF-16": (".csv", lambda path, features: with_ids(path, features, "id", encoding="utf-16")),
    "paths": (".csv", with_paths),
    "openSMILE": (".csv", as_opensmile_writes),
    "openSMILE for Python": (".csv", as_opensmile_for_python),
    "all quoted": (
        ".csv",
        lambda path, features: with_ids(path, features, "id", quoting=csv.QUOTE_ALL),
    ),
    "a named index": (".csv", lambda path, features: in_index(path, features, "id")),
    "npz": (".npz", as_npz),
    "npz of bytes": (".npz", as_npz_of_bytes),
    "npz by utterance": (".npz", as_npz_of_utterances),
    "HDF5": (".h5", as_hdf5),
    "HDF5 by utterance": (".h5", as_hdf5_of_utterances),
    "safetensors": (".safetensors", as_safetensors),
    "Zarr": (".zarr", as_zarr),
}
# What nobody may take for features, or join by order, unasked.
REFUSED: dict[str, Writer] = {
    "an index without a name": (".csv", in_index),
    "an index of numbers": (".csv", lambda path, features: frame_of(features).to_csv(path)),
    "an index and ids": (
        ".csv",
        lambda path, features: with_ids(path, features, "id", index=True),
    ),
    "numbered columns": (".csv", numbered_columns),
    "an index and no header": (
        ".csv",
        lambda path, features: frame_of(features).to_csv(path, header=False),
    ),
    "an index read again": (".csv", as_index_read_again),
    "names of rows in R": (".csv", as_names_of_rows_in_r),
}
IN_ORDER: dict[str, Writer] = {
    "no ids": (".csv", lambda path, features: frame_of(features).to_csv(path, index=False)),
    "no ids, of Excel": (
        ".csv",
        lambda path, features: frame_of(features).to_csv(path, index=False, sep=";", decimal=","),
    ),
    "no header": (".csv", without_header),
    "npy": (".npy", lambda path, features: np.save(path, features.values)),
}


WRITERS = {**NAMED, **REFUSED, **IN_ORDER}


def may_be_an_index(features: DrawnFeatures) -> bool:
    """Whether one of several columns, or the first row, looks like numbers that somebody counted.

    A single number without a fraction does, too, where it may be the number of a column.
    """
    rows = features.values.tolist()
    columns = features.values.T.tolist()
    return counts(rows[0]) or (len(columns) > 1 and any(counts(column) for column in columns))


def counts(numbers: list[float]) -> bool:
    """Whether whole numbers rise or fall by equal steps."""
    steps = {after - before for before, after in itertools.pairwise(numbers)}
    return all(number.is_integer() for number in numbers) and len(steps) < 2 and steps != {0.0}


def import_drawn(folder: Path, kind: str, data: Any) -> None:
    manifest = manifest_of(data.draw(st.integers(3, 4)))
    ending, write = WRITERS[kind]
    # A line of headings that is read as a row fills up what is missing.
    ids = manifest.ids[:-1] if kind == "numbered columns" else manifest.ids
    features = data.draw(drawn_features(ids, whole=kind == "numbered columns"))
    # Two numbers say nothing of what comes next.
    hypothesis.assume(kind != "names of rows in R" or len(features.ids) > 2)
    path = folder / f"drawn{ending}"
    write(path, features)
    store = open_store(folder / "store", create=True)
    try:
        imported = import_feature(store, "mine", path, "audio", manifest)
        assert kind not in REFUSED, "an index, or a line of numbers, became features"
        by_id = dict(zip(features.ids, features.values.tolist(), strict=True))
        if kind in IN_ORDER:
            assert imported.joined_by == "manifest order"
            by_id = dict(zip(manifest.ids, features.values.tolist(), strict=True))
        came_out = {id_: store["mine"][id_].tolist() for id_ in by_id}
        assert came_out == by_id
        assert (imported.rows, imported.dim) == features.values.shape
        assert imported.missing == len(manifest) - len(by_id)
    except StoreError as error:
        assert path.name in str(error)
        too_few = kind in IN_ORDER and len(features.ids) < len(manifest)
        is_odd = may_be_an_index(features) and ending in (".csv", ".tsv")
        # The decimal commas of a single column could be what parts two.
        is_one_column = kind == "no ids, of Excel" and features.values.shape[1] == 1
        assert kind in REFUSED or too_few or is_odd or is_one_column, (
            f"refused without a reason: {error}"
        )
    finally:
        shutil.rmtree(folder / "store")
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def attack_writer(folder: Path, kind: str, examples: int, seed: int | None = None) -> None:
    attack(lambda data: import_drawn(folder, kind, data), examples, seed)


def test_features_of_every_writer(tmp_path: Path) -> None:
    for kind in WRITERS:
        attack_writer(tmp_path, kind, 3)


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_features_for_minutes(tmp_path: Path) -> None:
    ends = time.monotonic() + float(os.environ.get("SER_FUZZ_SECONDS", "300"))
    first = int(os.environ.get("SER_FUZZ_SEED", "0"))
    for seed in itertools.count(first):
        if time.monotonic() > ends:
            break
        print(seed)
        for kind in WRITERS:
            attack_writer(tmp_path, kind, 20, seed)
