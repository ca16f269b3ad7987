"""The digest of a checkpoint: it tells models apart, and not how their files are laid out.

So a checkpoint that is converted, cut into shards or saved again keeps its digest, and the features
computed with it their fingerprint.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ser.disk.memory import name_what_does_not_fit
from ser.disk.read import read_named
from ser.disk.records import canonical_json
from ser.errors import WeightsError

from .checkpoint import (
    SHARED_PREPROCESSOR,
    Checkpoint,
    plain_preprocessor,
    read_json,
    shared_preprocessor,
)
from .folder import CONFIG_FILES, TOKENIZER_FILES, weight_files
from .redirects import check_layers

# Entries of JSON files that say where a file came from and what wrote it, not what the model is.
INCIDENTAL = (
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "name_or_path",
    "_commit_hash",
)


@dataclass(frozen=True)
class Digests:
    """What tells a checkpoint from others: sha256 in hex."""

    whole: str
    """Of every tensor's name, dtype, shape and bytes, and of the `CONFIG_FILES`."""
    without_tokenizer: str
    """The same but for the `TOKENIZER_FILES`: all that an encoder of speech hangs on."""
    files: dict[str, str]
    """Of each file by itself, the tensors as "weights": to name what differs."""


def hash_checkpoint(folder: Path, name: str, model: str, converted_from: str = "") -> Checkpoint:
    """The checkpoint in a folder, checked and hashed.

    `name` is what the user called it, for messages; `model` and `converted_from` are as in
    `Checkpoint`. Raises `WeightsError`.
    """
    digests = digest_checkpoint(folder, weight_files(folder, name))
    return Checkpoint(
        folder,
        model,
        digests.whole,
        digests.without_tokenizer,
        digests.files,
        converted_from,
    )


def digest_checkpoint(folder: Path, weight_files: list[Path]) -> Digests:
    """The digests of a checkpoint.

    Raises `WeightsError` for a file that cannot be read, and for more layers than tensors.
    """
    tensors: dict[str, list[Any]] = {}
    for file in weight_files:
        with name_what_does_not_fit(file, WeightsError):
            tensors.update(_hashed_tensors(file))
    config = folder / "config.json"
    check_layers(config, read_json(config), len(tensors))

    files = _hashed_files(folder)
    of_speech = {name: files[name] for name in files if name not in TOKENIZER_FILES}
    by_file = {"weights": _sha256({"tensors": tensors})}
    for name, content in files.items():
        by_file[name] = _sha256({"files": _as_text(content)})

    return Digests(
        whole=_sha256({"tensors": tensors, "files": _as_text(files)}),
        without_tokenizer=_sha256({"tensors": tensors, "files": _as_text(of_speech)}),
        files=by_file,
    )


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(canonical_json(content)).hexdigest()


def _as_text(content: Any) -> str:
    """The content of files as JSON, which may hold NaN, as canonical JSON does not allow."""
    return json.dumps(content, sort_keys=True)


def _hashed_files(folder: Path) -> dict[str, Any]:
    """Each JSON file's content, without what is incidental, and each other file's sha256."""
    names = list(CONFIG_FILES)
    if not _shared_adds_nothing(folder):
        names.append(SHARED_PREPROCESSOR)

    hashed: dict[str, Any] = {}
    for name in names:
        file = folder / name
        if not file.exists():
            continue
        if file.suffix == ".json":
            content = read_json(file)
            hashed[name] = {key: content[key] for key in content if key not in INCIDENTAL}
        else:
            with name_what_does_not_fit(file, WeightsError):
                hashed[name] = hashlib.sha256(read_named(file)).hexdigest()
    return hashed


def _shared_adds_nothing(folder: Path) -> bool:
    """Whether preprocessor_config.json already says all that processor_config.json says of it."""
    plain = plain_preprocessor(folder)
    shared = shared_preprocessor(folder) or {}
    return plain is not None and plain == {**plain, **shared}


def _hashed_tensors(file: Path) -> dict[str, list[Any]]:
    """`[dtype, shape, sha256 of the bytes]` of every tensor in a file, by name."""
    import torch
    from safetensors import SafetensorError, safe_open

    # Hashing releases the GIL.
    threads = min(4, os.cpu_count() or 1)
    try:
        with safe_open(file, "pt") as tensors, ThreadPoolExecutor(threads) as pool:

            def hash_tensor(name: str) -> list[Any]:
                header = tensors.get_slice(name)
                content = tensors.get_tensor(name).reshape(-1).view(torch.uint8).numpy()
                sha256 = hashlib.sha256(content).hexdigest()
                return [header.get_dtype(), header.get_shape(), sha256]

            names = tensors.keys()
            return dict(zip(names, pool.map(hash_tensor, names), strict=True))
    except (SafetensorError, ValueError, KeyError, OSError) as error:
        raise WeightsError(
            f"{file} is not a readable safetensors file ({error}); copy it again"
        ) from error
