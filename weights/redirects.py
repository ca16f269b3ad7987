"""Entries of a checkpoint's config that ser refuses.

They would load other weights than those that are hashed, run code, or make work that the tensors
do not hold.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ser.errors import WeightsError

# Entries that name code, or files to load in place of the checkpoint's own.
_REDIRECTS = re.compile(
    r"auto_map|transformers_weights|custom_pipelines?|(trust_)?remote_code"
    r"|.*_(weights|weights_name|checkpoint|revision|file|path|url|repo|module)"
)
# The files of a tokenizer are those of fixed names, whatever its config calls them; but for these:
# of a GGUF file all that it holds, of another tokenizer.
_OF_ANY_FILE = {"gguf_file", "audio_tokenizer"}
# This one says where a config came from, and nothing is loaded from there.
_HARMLESS = {"_name_or_path"}

# Entries that name an implementation: a word, or a repository of kernels, which is code.
_IMPLEMENTATION = re.compile(r".*(implementation|kernel)(_internal)?")
_OF_REPOSITORY = re.compile(r"[/:@\\]")

# So many layers are built at once even if their weights are missing, which is told then.
_QUICKLY_BUILT = 1000
# ALBERT repeats one layer.
_SHARED_LAYERS = {"albert"}


def check_redirects(name: str, file: str, config: dict[str, Any]) -> None:
    """Raise `WeightsError` for an entry that redirects loading, or runs code; at any depth.

    `name` is what the user called the checkpoint.
    """
    for key, value in _entries(config):
        if key == "auto_map":
            raise WeightsError(
                f"{name}: {file} asks to run the repository's own code (auto_map), "
                "which ser never does"
            )
        redirects = key in _OF_ANY_FILE
        if file == "config.json" and key not in _HARMLESS:
            redirects = redirects or _REDIRECTS.fullmatch(key) is not None
        names_something = bool(value) and isinstance(value, str | dict | list)
        if redirects and names_something:
            raise WeightsError(
                f"{name}: {file} names other weights or code ({key}: {str(value)[:80]!r}), "
                "which ser never loads; copy the checkpoint that it means, and remove the entry"
            )
        if _IMPLEMENTATION.fullmatch(key) and _OF_REPOSITORY.search(_words(value)):
            raise WeightsError(
                f"{name}: {file} asks for code of another repository ({key}: "
                f"{str(value)[:80]!r}), which ser never runs; remove the entry"
            )


def check_layers(path: Path, config: dict[str, Any], tensors: int) -> None:
    """Raise `WeightsError` if a config counts more layers than its weights have tensors.

    The layers would be built before anyone saw that the file has none.
    """
    if config.get("model_type") in _SHARED_LAYERS:
        return
    for key, value in _entries(config):
        is_count = key.endswith("layers") and isinstance(value, int)
        if is_count and value > max(tensors, _QUICKLY_BUILT):
            raise WeightsError(
                f"{path}: {key} is {value}, and the weights beside it have {tensors} tensors; "
                "copy the folder again"
            )


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """Every entry of a JSON object, and of those in it."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield str(key), value
            yield from _entries(value)
    elif isinstance(config, list):
        for value in config:
            yield from _entries(value)


def _words(value: Any) -> str:
    """The texts of a value, which may name an implementation for each part of a model."""
    if isinstance(value, dict):
        return " ".join(map(_words, value.values()))
    return value if isinstance(value, str) else ""
