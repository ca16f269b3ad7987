"""The waveform: one audio file as 32-bit floats of one channel, with every doubt named.

A header may promise more than the file holds, or less, and decoders then read short or pad without
a warning. So the bytes are read once, hashed, checked against their own header, and only then
decoded. Audio that cannot be trusted raises `UtteranceError`; audio that is odd but right gets a
warning on the clip. A fault that is not in the bytes, such as a lost mount or a lack of memory,
says nothing about the utterance: it raises `CorpusError`, and nothing is quarantined.
"""

import contextlib
import errno
import hashlib
import io
import re
import shlex
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr

from ser.disk.read import read_named
from ser.errors import CodedAudio, CorpusError, SerError, UtteranceError

from .audio_content import Content
from .audio_header import UNKNOWN_LENGTH, Header, read_header

# Stored in every acoustic config: another resampler or mix of channels gives other numbers.
RESAMPLER = "soxr-hq"
CHANNELS = "mean, or the loudest where the mean loses 20 dB"

# Seconds; what is longer is a recording, whose parts are the utterances.
LONGEST = 3600.0
# Bytes: an hour of 96 kHz 64-bit stereo is below.
LARGEST = 4 << 30
# rms of the mean / rms of the loudest channel, below which channels cancel (-20 dB).
CANCELLED = 0.1
# Peak below which a clip counts as silent: a third of one 16-bit step.
SILENT = 1e-5
# Hz, of every speech encoder; speech that is sampled at less lacks bands that they know.
ENCODER_RATE = 16000

# By how the file starts.
NOT_AUDIO = {
    b"<!doctype html": "is an HTML page, not audio",
    b"<html": "is an HTML page, not audio",
    b"version https://git-lfs": "is a git-LFS pointer: run `git lfs pull` in the corpus",
}

# File name endings: what libsndfile reads, and what only ffmpeg reads.
SOUND = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph"}
CODED = {
    ".mp4",
    ".m4a",
    ".mov",
    ".mkv",
    ".webm",
    ".avi",
    ".flv",
    ".wma",
    ".wmv",
    ".amr",
    ".aac",
    ".3gp",
    ".mpg",
}

# What libsndfile and soundfile raise for what they cannot decode.
UNDECODABLE = (sf.LibsndfileError, RuntimeError, ValueError, OverflowError)
# Errors of the path itself: nothing there, a link to itself, a folder, a socket. Any other is the
# disk's fault.
_MISNAMED = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENXIO,
    errno.ENODEV,
}


@dataclass
class Clip:
    """One decoded utterance: `samples` `[n]` float32 at `rate` Hz.

    The samples are not rescaled: full scale is [-1, 1).
    """

    samples: np.ndarray
    rate: int
    warnings: list[str] = field(default_factory=list)
    _resampled: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate

    def at(self, rate: int) -> np.ndarray:
        """The samples at `rate` Hz `[n]` float32, resampled once by soxr's HQ recipe."""
        if rate == self.rate:
            return self.samples
        if rate not in self._resampled:
            resampled = soxr.resample(self.samples, self.rate, rate, quality="HQ")
            self._resampled[rate] = resampled.astype(np.float32)
        return self._resampled[rate]


def decode(path: Path, sha256: str | None = None) -> Clip:
    """Decode one file. `sha256` is that of the file when the corpus was read, and must match.

    Raises `UtteranceError` with the reason, and `CorpusError` if the file cannot be read, or is
    gone or changed since.
    """
    try:
        data = read_bytes(path)
    except UtteranceError as fault:
        if sha256 is None:
            raise
        reason = f"{fault}, and was whole when the corpus was read"
        raise CorpusError(
            f"{path}: {reason}; check that the corpus is mounted here, and run again"
        ) from fault
    if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
        raise CorpusError(f"{path}: changed after the corpus was read: run again")

    try:
        clip = _decode_bytes(data, path.name)
    except MemoryError as fault:
        raise CorpusError(
            f"{path}: memory ran out while it was decoded; free some, and run again"
        ) from fault

    # Those of its header the scan has told already, where there was one.
    if sha256 is None:
        clip.warnings += read_header(data).warnings
    return clip


def _decode_bytes(data: bytes, name: str) -> Clip:
    """Decode the content of a file. Raises `UtteranceError`, and `MemoryError`."""
    file, _ = open_audio(data, name)
    try:
        with file:
            rate = file.samplerate
            promised = file.frames
            # The number is given, since some codecs cannot seek, and are read from their start.
            channels = file.read(promised, dtype="float32", always_2d=True)
    except UNDECODABLE as fault:
        raise undecodable(fault) from fault

    if len(channels) < promised:
        raise UtteranceError(
            f"is cut short: the header says {promised} samples, {len(channels)} can be decoded"
        )
    return clip_of(channels, rate)


def clip_of(channels: np.ndarray, rate: int) -> Clip:
    """The utterance of these samples `[n, channels]`.

    Raises `UtteranceError` if one is not finite.
    """
    if not np.isfinite(channels).all():
        count = np.count_nonzero(~np.isfinite(channels))
        raise UtteranceError(f"holds NaN or infinite samples ({count})")

    warnings: list[str] = []
    samples = _one_channel(channels, warnings)
    _note_oddities(samples, rate, warnings)
    return Clip(samples, rate, warnings)


def _note_oddities(samples: np.ndarray, rate: int, warnings: list[str]) -> None:
    """Add to `warnings` what is odd about a waveform, but may be right."""
    peak = float(np.abs(samples).max())
    if peak > 1.0:
        warnings.append("samples beyond full scale")
    if peak < SILENT:
        warnings.append("silent")
    elif np.ptp(samples) < SILENT:
        warnings.append("constant (DC) samples")
    if rate < ENCODER_RATE:
        warnings.append(f"sampled at {rate} Hz: empty above {rate // 2} Hz")


def open_audio(data: bytes, name: str) -> tuple[sf.SoundFile, Header]:
    """The decoder of a file's bytes, and what its header says of its length.

    Raises `CodedAudio` for what only ffmpeg reads, with the line that converts a file of that
    `name`; `UtteranceError` for what is not audio, holds less than its header says, nothing, or
    over an hour.
    """
    refuse_what_is_no_audio(data)
    header = read_header(data)
    mended = data if header.mend is None else header.mend.apply(data, 0)
    try:
        file = _open_in_memory(mended)
    except UNDECODABLE as fault:
        raise no_decoder(fault, name) from fault

    check_length(file.frames, file.samplerate, file.channels)
    check_sizes(mended, file)
    return file, header


def refuse_what_is_no_audio(data: Content) -> None:
    """Raise `UtteranceError` for what only bears the name of an audio file."""
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for magic, reason in NOT_AUDIO.items():
        if start.startswith(magic):
            raise UtteranceError(reason)


def no_decoder(fault: Exception, name: str) -> CodedAudio:
    """The error of a file that libsndfile does not open, with the line that converts it."""
    return CodedAudio(f"{undecodable(fault)}; if it is video or coded audio, {_convert_hint(name)}")


def check_length(frames: int, rate: int, channels: int) -> None:
    """Raise `UtteranceError` for what is too long for one utterance."""
    if frames > LONGEST * rate or frames * channels * 4 > LARGEST:
        raise UtteranceError(
            f"has {frames} samples by its header, over an hour or 4 GB: cut it into utterances, or "
            "name its parts by start and end in a table"
        )


def _open_in_memory(data: bytes) -> sf.SoundFile:
    """The decoder of these bytes.

    On some machines libsndfile 1.2.2 refuses every MP3 in memory ("bad data offset") that it reads
    from a file.
    """
    try:
        return sf.SoundFile(io.BytesIO(data))
    except sf.LibsndfileError:
        has_tag = data.startswith(b"ID3")
        is_mpeg = len(data) > 1 and data[0] == 0xFF and data[1] >= 0xE0
        if not has_tag and not is_mpeg:
            raise

    # An open file is read on where its name is gone, but for Windows.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "audio.mp3"
        path.write_bytes(data)
        return sf.SoundFile(path)


def _convert_hint(name: str) -> str:
    """The line of a shell that makes a WAV file of what only ffmpeg reads."""
    quoted = shlex.quote(name)
    # "a.wav" becomes "a.wav.wav", and is then given its own name again.
    converted = shlex.quote(re.sub(r"(?i)(\.wav)?$|\.\w+$", r"\1.wav", name, count=1))
    rename = f" && mv {converted} {quoted}" if name.lower().endswith(".wav") else ""
    return f"convert it with `ffmpeg -i {quoted} -vn {converted}{rename}`"


def check_sizes(data: Content, file: sf.SoundFile) -> None:
    """Raise `UtteranceError` for a file without samples.

    And if an AIFF, AU or SPHERE file holds less than its header says.
    """
    if file.frames <= 0:
        raise UtteranceError("holds no samples")

    if data[:4] != b"RIFF":
        # libsndfile's log says so where the header and the file differ.
        sizes = re.search(r"(\d+) \(should be (\d+)\)", file.extra_info)
        # A byte of padding may be missing.
        if sizes and int(sizes[2]) + 1 < int(sizes[1]) < UNKNOWN_LENGTH:
            raise UtteranceError(
                f"is cut short: its header says {sizes[1]} bytes, the file holds {sizes[2]}"
            )

    if data[:7] == b"NIST_1A":
        samples = re.search(rb"sample_count -i (\d{1,12})\n", data[:1024])
        if samples and file.frames < int(samples[1]):
            raise UtteranceError(
                f"is cut short: the header says {int(samples[1])} samples, "
                f"the file holds {file.frames}"
            )


def read_bytes(path: Path) -> bytes:
    """The bytes of a plain file.

    Raises `UtteranceError` for anything else, without ever waiting on it, and `CorpusError` if the
    disk, the mount or the memory fails.
    """
    with explain_reading(path):
        data = read_named(path, LARGEST)

    if not data:
        raise UtteranceError("is empty")
    return data


@contextlib.contextmanager
def explain_reading(path: Path) -> Iterator[None]:
    """Turn what is raised where a file is opened or read into one sentence.

    Raises `UtteranceError` if no plain file is there, and `CorpusError` if the disk, the mount or
    the memory fails.
    """
    try:
        yield
    except SerError:
        raise
    except MemoryError as fault:
        raise CorpusError(
            f"{path}: memory ran out while it was read; free some, and run again"
        ) from fault
    except (OSError, ValueError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        code = getattr(fault, "errno", errno.ENOENT)
        if code == errno.EFBIG:
            raise UtteranceError(f"{reason}: cut it into utterances") from fault
        if code not in _MISNAMED:
            raise CorpusError(
                f"{path}: cannot be read ({reason}); check the disk or mount, and run again"
            ) from fault
        raise UtteranceError(f"cannot be opened ({reason})") from fault


def _one_channel(channels: np.ndarray, warnings: list[str]) -> np.ndarray:
    """`[n, channels]` to `[n]`, as `CHANNELS` says.

    Opposite phases would cancel in the mean, without a trace.
    """
    if channels.shape[1] == 1:
        return np.ascontiguousarray(channels[:, 0])

    rms = np.sqrt(np.mean(np.square(channels, dtype=np.float64), axis=0))
    mean = channels.mean(axis=1, dtype=np.float64).astype(np.float32)
    rms_of_mean = np.sqrt(np.mean(np.square(mean, dtype=np.float64)))

    if rms_of_mean < CANCELLED * rms.max():
        loudest = int(rms.argmax())
        warnings.append(f"channels cancel each other: channel {loudest + 1} taken alone")
        return np.ascontiguousarray(channels[:, loudest])
    warnings.append(f"{channels.shape[1]} channels: their mean taken")
    return mean


def undecodable(fault: Exception) -> UtteranceError:
    """The error of libsndfile, without the name that soundfile gives to bytes.

    That is a memory address, which differs in every process.
    """
    lines = str(getattr(fault, "error_string", fault)).splitlines() or [type(fault).__name__]
    return UtteranceError(f"cannot be decoded as audio ({lines[0].strip(' .')})")
