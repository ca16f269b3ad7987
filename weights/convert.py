"""Convert weights to safetensors: `ser weights convert`.

A pickle is opened in a child process (`open_pickle.py`), to which no token of the environment
comes. A Whisper model of CTranslate2 is read here (`ctranslate2.py`): its file holds numbers alone.
"""

import os
import shutil
import subprocess
from pathlib import Path

from ser.children import isolated, python_module
from ser.disk.faults import explain_disk_errors
from ser.disk.paths import expand_user
from ser.disk.workspace import workspace_beside
from ser.disk.write import move_into_place, sync_tree
from ser.errors import SerError, WrongUse

from .ctranslate2 import is_ctranslate2
from .ctranslate2_whisper import convert_ctranslate2
from .find import find_checkpoint, find_folder
from .folder import FILES_BESIDE_WEIGHTS, check_config
from .load import load_encoder
from .open_pickle import TORCHAUDIO

PICKLE = "pytorch_model.bin"

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


def convert(source: str, folder: Path) -> Path:
    """Write `source` to `folder` as safetensors with its config, tokenizer and preprocessor files.

    `source` is a folder, a Hugging Face id, or a torchaudio bundle such as
    `torchaudio:HUBERT_BASE`; a folder may be one of CTranslate2. The new folder appears whole or
    not at all, and has been loaded once. Raises `WrongUse` for a source that is not a checkpoint or
    a folder that is not empty, and `SerError` for a pickle that would run code.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WrongUse(f"{folder} exists and is not empty; name a new folder")

    parent = folder.absolute().parent
    with explain_disk_errors(f"converting to {folder.name}", parent):
        parent.mkdir(parents=True, exist_ok=True)
        _convert_to(folder, source)
    return folder


def _convert_to(folder: Path, source: str) -> None:
    """Convert in a workspace beside the folder, and move what is finished there."""
    with workspace_beside(folder) as temporary:
        converted = temporary / "made"
        converted.mkdir()

        of_ctranslate2 = _ctranslate2_folder(source)
        if of_ctranslate2 is not None:
            convert_ctranslate2(of_ctranslate2, converted)
        elif source.startswith(TORCHAUDIO):
            _open_in_child(source, converted)
        else:
            pickle = _copy_beside_pickle(source, converted)
            _open_in_child(str(pickle), converted)

        # A checkpoint that lacks a weight fails here.
        load_encoder(find_checkpoint(converted))

        sync_tree(converted)
        if not move_into_place(converted, folder):
            raise WrongUse(f"{folder}: another process has just made it; name a new folder")


def _ctranslate2_folder(name: str) -> Path | None:
    """The local folder of that name, if it holds a model of CTranslate2."""
    folder = expand_user(name)
    if folder.is_dir() and is_ctranslate2(folder):
        return folder
    return None


def _copy_beside_pickle(name: str, converted: Path) -> Path:
    """Copy what lies beside the pickle of a folder or Hugging Face id; returns the pickle.

    Raises `WrongUse` if there is no pickle.
    """
    source = find_folder(name, [PICKLE], "and convert that")
    check_config(source, name)

    pickle = source / PICKLE
    if not pickle.exists():
        raise WrongUse(f"{name} holds no {PICKLE} to convert; safetensors are used as they are")

    for file in FILES_BESIDE_WEIGHTS:
        if (source / file).exists():
            shutil.copyfile(source / file, converted / file)
    return pickle


def _open_in_child(pickle: str, converted: Path) -> None:
    """Have a child process write the tensors of `pickle` to `converted`. Raises `SerError`."""
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
    if child.returncode == 1 and lines:
        fault = lines[-1]
    else:
        fault = f"{pickle}: the converting process ended with code {child.returncode}"
    raise SerError(f"{fault}; nothing was written")
