"""Files of each kind as values of dicts and lists, which can be changed and written again."""

import csv
import io
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ser.disk.records import checksummed_json


@dataclass(frozen=True)
class Form:
    """How a file of one kind is read as a value of dicts and lists, and written from one."""

    read: Callable[[bytes], Any]
    write: Callable[[Any], bytes]


def read_json(content: bytes) -> Any:
    return json.loads(content)


def write_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def read_json_lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def write_json_lines(values: list[Any]) -> bytes:
    return "\n".join(json.dumps(value) for value in values).encode()


def read_toml(content: bytes) -> dict[str, Any]:
    return tomllib.loads(content.decode())


def write_toml(table: dict[str, Any]) -> bytes:
    """Each key's value as inline TOML; `null` is none, and so no file that can be read."""
    lines: list[str] = []
    for key, value in table.items():
        inline = json.dumps(value).replace('": ', '" = ')
        inline = inline.replace("NaN", "nan").replace("Infinity", "inf")
        lines.append(f"{json.dumps(key)} = {inline}\n")
    return "".join(lines).encode()


def read_csv(content: bytes) -> list[list[str]]:
    return list(csv.reader(content.decode().splitlines()))


def write_csv(rows: list[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def read_parquet(content: bytes) -> list[list[Any]]:
    """The name and the values of each column."""
    columns = pq.read_table(io.BytesIO(content)).to_pydict()
    return [[name, values] for name, values in columns.items()]


def write_parquet(columns: list[Any]) -> bytes:
    """As the manifest of a corpus."""
    names = [name for name, _ in columns]
    arrays = [pa.array(values) for _, values in columns]
    metadata = {"format_version": "1", "corpus": "table", "synthetic": "false"}

    sink = io.BytesIO()
    pq.write_table(pa.table(arrays, names).replace_schema_metadata(metadata), sink)
    return sink.getvalue()


def read_npy(content: bytes) -> Any:
    return np.load(io.BytesIO(content)).tolist()


def write_npy(value: Any) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array(value))
    return sink.getvalue()


def read_npz(content: bytes) -> dict[str, Any]:
    arrays = np.load(io.BytesIO(content))
    return {name: array.tolist() for name, array in arrays.items()}


def write_npz(values: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **{name: np.array(value) for name, value in values.items()})
    return sink.getvalue()


def read_hdf5(content: bytes) -> dict[str, Any]:
    with h5py.File(io.BytesIO(content)) as file:
        return {name: array[()].tolist() for name, array in file.items()}


def write_hdf5(values: dict[str, Any]) -> bytes:
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        for name, value in values.items():
            file[name] = np.array(value)
    return sink.getvalue()


def read_safetensors(content: bytes) -> list[Any]:
    """The header, and the bytes of the tensors."""
    size = 8 + int.from_bytes(content[:8], "little")
    return [json.loads(content[8:size]), content[size:]]


def write_safetensors(value: Any) -> bytes:
    header = json.dumps(value[0]).encode()
    return len(header).to_bytes(8, "little") + header + value[1]


def read_record(content: bytes) -> dict[str, Any]:
    """A record of a store without its checksum."""
    values = json.loads(content)
    return {key: value for key, value in values.items() if key != "sha256"}


RECORD = Form(read_record, checksummed_json)
BY_SUFFIX = {
    ".json": Form(read_json, write_json),
    ".jsonl": Form(read_json_lines, write_json_lines),
    ".toml": Form(read_toml, write_toml),
    ".csv": Form(read_csv, write_csv),
    ".parquet": Form(read_parquet, write_parquet),
    ".npy": Form(read_npy, write_npy),
    ".npz": Form(read_npz, write_npz),
    ".h5": Form(read_hdf5, write_hdf5),
    ".safetensors": Form(read_safetensors, write_safetensors),
}


def form_of(path: Path) -> Form | None:
    """The form of a file, by its name; None for bytes that stand for themselves."""
    if path.name in ("spec.json", "part.json"):
        return RECORD
    return BY_SUFFIX.get(path.suffix)
