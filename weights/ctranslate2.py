"""Reads a model file of CTranslate2, the format in which faster-whisper takes its weights.

The format is that of `ctranslate2.specs.ModelSpec.save`: numbers are little-endian, a text has its
length before it and a zero behind it.

    version   uint32
    spec      text, such as "WhisperSpec"
    revision  uint32
    count     uint32, then so many arrays: name (text), rank (uint8), rank sizes (uint32),
              type (uint8), bytes (uint32), values
    count     uint32, then so many aliases: alias (text), name (text)
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser.disk.read import open_named
from ser.errors import WeightsError

# The name of the file in its folder.
MODEL_FILE = "model.bin"

# Versions of the format that have the fields above.
VERSIONS = range(4, 7)

# `ctranslate2::DataType`; 5 is bfloat16, which numpy does not know.
DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}


@dataclass(frozen=True)
class CTranslate2Model:
    """What a model file holds."""

    spec: str
    """The kind of model, such as "WhisperSpec"."""
    arrays: dict[str, np.ndarray]
    """By name; an alias is the same array. Their values stay on disk until they are used."""


class _Reader:
    """Takes one field after the other from a file's bytes."""

    def __init__(self, content: np.ndarray) -> None:
        self.content = content
        self.place = 0

    def number(self, form: str) -> int:
        """The next number of that form of `struct`."""
        size = struct.calcsize(form)
        (value,) = struct.unpack(f"<{form}", self.bytes(size).tobytes())
        return int(value)

    def text(self) -> str:
        """The next text."""
        length = self.number("H")
        return self.bytes(length).tobytes().rstrip(b"\0").decode()

    def array(self) -> np.ndarray:
        """The next array, behind its name."""
        rank = self.number("B")
        shape = [self.number("I") for _ in range(rank)]
        kind = self.number("B")
        size = self.number("I")
        if kind not in DTYPES:
            raise ValueError(f"it has values of type {kind}, such as bfloat16")
        return self.bytes(size).view(DTYPES[kind]).reshape(shape)

    def bytes(self, size: int) -> np.ndarray:
        """The next bytes."""
        end = self.place + size
        if end > len(self.content):
            raise ValueError(f"it ends after {len(self.content):,} bytes, within a field")
        taken = self.content[self.place : end]
        self.place = end
        return taken


def is_ctranslate2(folder: Path) -> bool:
    """Whether the folder holds a model of CTranslate2, and no safetensors.

    Its config.json has no `model_type`; beside it lies a vocabulary or a tokenizer.
    """
    names = {entry.name for entry in os.scandir(folder)}
    with_safetensors = any(name.endswith(".safetensors") for name in names)
    return MODEL_FILE in names and not with_safetensors


def read_ctranslate2(path: Path) -> CTranslate2Model:
    """The model in a file. Raises `WeightsError` for a file that is not one, or is cut short."""
    try:
        with os.fdopen(open_named(path), "rb") as file:
            content = np.memmap(file, dtype=np.uint8, mode="r")
        return _read(_Reader(content))
    except (OSError, ValueError, KeyError, struct.error) as fault:
        raise WeightsError(
            f"{path} cannot be read as a model of CTranslate2 ({fault}); copy it again"
        ) from fault


def _read(reader: _Reader) -> CTranslate2Model:
    version = reader.number("I")
    if version not in VERSIONS:
        raise ValueError(
            f"its format is version {version}, and ser reads {VERSIONS[0]} to {VERSIONS[-1]}"
        )
    spec = reader.text()
    reader.number("I")  # the revision

    arrays: dict[str, np.ndarray] = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        arrays[name] = reader.array()

    for _ in range(reader.number("I")):
        alias = reader.text()
        arrays[alias] = arrays[reader.text()]

    left = len(reader.content) - reader.place
    if left:
        raise ValueError(f"{left:,} bytes are left over")
    return CTranslate2Model(spec, arrays)
