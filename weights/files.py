"""The files of a checkpoint: which ones decide what it computes, and one digest over all of them."""

import hashlib
import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ser.cache.errors import WrongUse
from ser.cache.spec import canonical_json

# Everything beside the tensors that decides what the encoder computes.
CONFIG_FILES = (
    *("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
)
# Where the file came from and what wrote it: the same model keeps its fingerprint when it is saved again.
INCIDENTAL = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "name_or_path", "_commit_hash"}
MARK = "ser_random_weights"  # in config.json: these weights were never trained


class NoWeights(WrongUse):
    """A checkpoint that is not here, or that may not be opened."""


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise NoWeights(f"{path} cannot be read as JSON ({fault})") from fault
    if not isinstance(content, dict):
        raise NoWeights(f"{path} is no JSON object")
    return content


def digest(path: Path, files: list[Path]) -> str:
    """Sha256 over every tensor's name, dtype, shape and bytes, and over `CONFIG_FILES`: not over the file layout."""
    tensors = {name: entry for file in files for name, entry in _hashed_tensors(file)}
    beside: dict[str, Any] = {}
    for file in CONFIG_FILES:
        if not (path / file).exists():
            continue
        if file.endswith(".json"):
            content = read_json(path / file)
            beside[file] = {key: value for key, value in content.items() if key not in INCIDENTAL}
        else:
            beside[file] = hashlib.sha256((path / file).read_bytes()).hexdigest()
    # allow_nan is off in canonical JSON, and tokenizers hold no floats that matter: dumps are compared as text.
    return hashlib.sha256(canonical_json({"tensors": tensors, "files": _spelled(beside)})).hexdigest()


def _spelled(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _hashed_tensors(file: Path) -> Iterator[tuple[str, list[Any]]]:
    """`name, [dtype, shape, sha256 of the bytes]` of every tensor, straight from the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "np"):  # its header checks: overlaps, holes, sizes that lie
            pass
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            [size] = struct.unpack("<Q", content[:8])
            header = json.loads(content[8 : 8 + size])
            view = memoryview(content)
            try:
                for name in sorted(header.keys() - {"__metadata__"}):
                    start, stop = header[name]["data_offsets"]
                    piece = view[8 + size + start : 8 + size + stop]
                    yield name, [header[name]["dtype"], header[name]["shape"], hashlib.sha256(piece).hexdigest()]
                    piece.release()
            finally:
                view.release()
    except (SafetensorError, ValueError, KeyError, struct.error) as fault:
        raise NoWeights(f"{file} is no readable safetensors file ({fault}); copy it again") from fault
