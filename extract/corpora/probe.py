"""One look at an audio file: its hash, its length, and whether it holds what its header promises."""

import hashlib
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

# WAVE format tags whose blocks have one size: PCM, float, A-law, µ-law, extensible.
FIXED_BLOCKS = {1, 3, 6, 7, 0xFFFE}
STREAMED = 0xFFFFFFFF  # the data size that a writer into a pipe leaves behind: unknown
MOST_PER_BYTE = 8192  # samples: FLAC's longest block of silence, 65,535 samples, takes about ten bytes
CHUNK = 1 << 22


@dataclass(frozen=True)
class Probe:
    """`sha256` is None where no file could be read, `duration` (seconds) where nobody can tell; `fault` is a reason."""

    sha256: str | None = None
    duration: float | None = None
    fault: str | None = None


def probe(path: Path) -> Probe:
    """Hash an audio file and measure it. Never raises: what is wrong stands in `fault`.

    The whole file is read every time, since size and modification time do not notice changed bytes. soundfile reads
    a cut-off file short without a word, hence the header is compared with the bytes that are there.
    """
    try:
        # O_NONBLOCK: opening a FIFO would otherwise wait for its writer for ever.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return Probe(fault="the audio file is missing")
    except (OSError, ValueError) as error:
        return Probe(fault=f"the audio file cannot be opened ({getattr(error, 'strerror', None) or error})")
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        return Probe(fault="this is a folder or a device, not an audio file")
    with os.fdopen(handle, "rb", buffering=0) as file:
        if not status.st_size:
            return Probe(hashlib.sha256().hexdigest(), 0.0, "the audio file is empty (0 bytes)")
        try:
            head = block = file.read(CHUNK)
            digest = hashlib.sha256(block)
            while block := file.read(CHUNK):
                digest.update(block)
        except OSError as error:
            return Probe(fault=f"the audio file cannot be read ({error.strerror})")
    return Probe(digest.hexdigest(), *_measure(path, head, status.st_size))


def _measure(path: Path, head: bytes, size: int) -> tuple[float | None, str | None]:
    """Seconds of audio in the file, and what is wrong with it."""
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return _measure_other(path, head, size)
    rate = block = tag = 0
    at = 12
    while at + 8 <= len(head):
        name, promised = struct.unpack_from("<4sI", head, at)
        at += 8
        if name == b"fmt " and at + 16 <= len(head):
            tag, _, rate, _, block = struct.unpack_from("<HHIIH", head, at)
        if name == b"data":
            break
        at += promised + promised % 2
    else:
        if at < size:  # more metadata than `head` holds
            return _measure_other(path, head, size)
        return None, "truncated: the WAV file ends before its audio begins"
    if not rate or not block:
        return None, "the WAV file's header gives no sampling rate"
    there = size - at
    held = there if promised == STREAMED else min(there, promised)
    if tag not in FIXED_BLOCKS:
        seconds, fault = _measure_other(path, head, size)
    else:
        seconds, fault = held // block / rate, None
    if promised > there and promised != STREAMED:
        fault = f"truncated: the header promises {promised} bytes of audio, the file holds {there}"
    elif seconds == 0:
        fault = "the audio file holds no samples"
    return seconds, fault


def _measure_other(path: Path, head: bytes, size: int) -> tuple[float | None, str | None]:
    """The same for everything that is no plain WAV, by soundfile's reading of the header."""
    import soundfile

    if head.startswith(b"version https://git-lfs"):
        return None, "this is a git-LFS pointer, not audio: run `git lfs pull`"
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError) as error:
        return None, f"not readable as audio ({str(error).rpartition(': ')[2].strip().rstrip('.')})"
    if not info.frames or not info.samplerate:
        return 0.0, "the audio file holds no samples"
    if info.frames > size * MOST_PER_BYTE:
        return None, f"the header promises {info.frames} samples, more than the file's {size} bytes can hold"
    return info.frames / info.samplerate, None
