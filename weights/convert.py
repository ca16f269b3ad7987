"""Convert weights to safetensors: by `ser weights convert`, or on the way of a command.

A pickle is opened in a child process (`open_pickle.py`), to which no token of the environment
comes. A Whisper model of CTranslate2 is read here (`ctranslate2.py`): its file holds numbers alone.
"""

import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

from ser.children import isolated, python_module
from ser.disk.faults import explain_disk_errors
from ser.disk.locks import locked
from ser.disk.paths import expand_user
from ser.disk.workspace import workspace_beside
from ser.disk.write import move_into_place, sync_tree
from ser.errors import SerError, StoreError, WeightsError, WrongUse

from .ctranslate2 import is_ctranslate2
from .ctranslate2_whisper import convert_ctranslate2
from .digest import hash_checkpoint
from .folder import FILES_BESIDE_WEIGHTS, PICKLE, check_config
from .hub import OnDownload
from .kept import place_of
from .load import load_encoder
from .open_pickle import TORCHAUDIO
from .source import find_pickle

log = logging.getLogger("ser.weights")

# All that the child process keeps of the environment, so that no token reaches it.
CHILD_ENVIRONMENT = (
    "PATH",
    "LD_LIBRARY_PATH",
    "TMPDIR",
    "LANG",
    "LC_ALL",
    "HOME",
    "TORCH_HOME",
    "SYSTEMROOT",
)


# What a library says of a fault of the system.
SYSTEM_FAULT = re.compile(r"\bos error (\d+)|\[Errno (\d+)\]")


def convert(source: str, folder: Path, on_download: OnDownload | None = None) -> Path:
    """Write `source` to `folder` as safetensors with its config, tokenizer and preprocessor files.

    `source` is a folder, a Hugging Face id, or a torchaudio bundle such as
    `torchaudio:HUBERT_BASE`; a folder may be one of CTranslate2. The new folder appears whole or
    not at all, and has been loaded once. Raises `WrongUse` for a source that is not a checkpoint or
    a folder that is not empty, and `SerError` for a pickle that would run code.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(f"{folder} exists and is not empty; name a new folder")

    pickled = None
    if not source.startswith(TORCHAUDIO):
        pickled = find_pickle(source, "and convert that", on_download)

    parent = folder.absolute().parent
    with explain_disk_errors(f"converting to {folder.name}", parent):
        parent.mkdir(parents=True, exist_ok=True)
        if not _convert_to(folder, source, pickled):
            raise WrongUse(f"{folder}: another process has just made it; name a new folder")
    return folder


def convert_once(model: str, pickled: Path) -> Path:
    """The safetensors of a model whose `pickled` snapshot lies in Hugging Face's cache.

    They are in ser's own cache, where whoever comes first writes them, and the others wait. Raises
    `WeightsError` for a pickle that would run code, and `StoreError` if the disk is full.
    """
    place = place_of(model, pickled.name)
    doing = f"converting {model} (SER_CACHE names another folder)"
    with explain_disk_errors(doing, place.parent):
        waiting = "waits for the process that converts this model"
        with locked(place.with_suffix(".lock"), waiting):
            if not place.exists():
                log.warning("%s: published as a pickle alone, converting it into %s", model, place)
                _convert_into_cache(place, model, pickled)
    return place


def _convert_into_cache(place: Path, model: str, pickled: Path) -> None:
    try:
        # Without locks another process may be first; what it made is the same.
        _convert_to(place, model, pickled)
    except StoreError:
        raise
    except SerError as fault:
        raise WeightsError(f"{model}: {fault}") from fault


def _convert_to(folder: Path, name: str, pickled: Path | None) -> bool:
    """Convert in a workspace beside the folder, and move what is finished there.

    `name` is a bundle of torchaudio or a folder of CTranslate2, or `pickled` holds its pickle.
    False if another process has just made the folder.
    """
    with workspace_beside(folder) as temporary:
        converted = temporary / "made"
        converted.mkdir()

        of_ctranslate2 = _ctranslate2_folder(name)
        if of_ctranslate2 is not None:
            convert_ctranslate2(of_ctranslate2, converted)
        elif pickled is None:
            _open_in_child(name, converted)
        else:
            pickle = _copy_beside_pickle(name, pickled, converted)
            _open_in_child(str(pickle), converted)

        # A checkpoint that lacks a weight fails here.
        load_encoder(hash_checkpoint(converted, name, name))

        sync_tree(converted)
        return move_into_place(converted, folder)


def _ctranslate2_folder(name: str) -> Path | None:
    """The local folder of that name, if it holds a model of CTranslate2."""
    folder = expand_user(name)
    if folder.is_dir() and is_ctranslate2(folder):
        return folder
    return None


def _copy_beside_pickle(name: str, source: Path, converted: Path) -> Path:
    """Copy what lies beside the pickle in a folder; returns the pickle.

    Raises `WrongUse` if there is no pickle.
    """
    check_config(source, name)

    pickle = source / PICKLE
    if not pickle.exists():
        raise WrongUse(f"{name} holds no {PICKLE} to convert; safetensors are used as they are")

    for file in FILES_BESIDE_WEIGHTS:
        if (source / file).exists():
            shutil.copyfile(source / file, converted / file)
    return pickle


def _open_in_child(pickle: str, converted: Path) -> None:
    """Have a child process write the tensors of `pickle` to `converted`.

    Raises `SerError`, or `OSError` where the system failed it, such as by a full disk.
    """
    environment = {key: os.environ[key] for key in CHILD_ENVIRONMENT if key in os.environ}
    child = subprocess.run(
        python_module("ser.weights.open_pickle", str(converted), pickle),
        capture_output=True,
        text=True,
        env=isolated(environment),
        check=False,
    )
    if child.returncode == 0:
        return

    # The child's last line says why, unless it was killed.
    lines = child.stderr.strip().splitlines()
    of_system = SYSTEM_FAULT.search(lines[-1]) if lines else None
    if of_system is not None:
        number = int(of_system[1] or of_system[2])
        raise OSError(number, os.strerror(number), str(converted))

    if child.returncode == 1 and lines:
        fault = lines[-1]
    else:
        fault = f"{pickle}: the converting process ended with code {child.returncode}"
    raise SerError(f"{fault}; nothing was written")
