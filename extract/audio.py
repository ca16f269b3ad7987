"""The waveform: one audio file as 32-bit floats of one channel, with every doubt named, and its
augmented copies.

A header may promise more than the file holds, and decoders then read short or pad without a
warning. So the bytes are read once, hashed, checked against their own header, and only then
decoded. Audio that cannot be trusted raises `UtteranceError`; audio that is odd but right gets a
warning on the clip. A fault that is not in the bytes, such as a lost mount or a lack of memory,
says nothing about the utterance: it raises `CorpusError`, and nothing is quarantined.

A view is an augmented copy, stored as a feature of its own: `logmel:view=pitch-1`. USC (§4) adds
noise, pitch, stretch and shift and gives no strengths; those below are ours. The generator of each
copy is seeded with the samples and the view's name: the same utterance always gives the same copy,
and `pitch-1` and `pitch-2` differ.
"""

import errno
import hashlib
import io
import re
import shlex
import struct
from dataclasses import dataclass, field
from pathlib import Path

import librosa
import numpy as np
import soundfile as sf
import soxr

from ser.disk.read import read_named
from ser.errors import CodedAudio, CorpusError, UtteranceError, WrongUse, unknown

RESAMPLER = "soxr-hq"  # stored in every acoustic config: another resampler gives other numbers
CHANNELS = "mean, or the loudest where the mean loses 20 dB"  # stored too
LONGEST = 3600.0  # seconds; longer files are recordings to be cut into utterances, not utterances
LARGEST = 4 << 30  # bytes: an hour of 96 kHz 64-bit stereo is below
CANCELLED = (
    0.1  # rms of the mean / rms of the loudest channel, below which channels cancel (-20 dB)
)
SILENT = 1e-5  # peak below which a clip counts as silent: a third of one 16-bit step
NOT_AUDIO = {  # by how the file starts
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
SNR = (10.0, 30.0)  # dB, signal over white noise
SEMITONES = 2.0  # largest pitch shift, up or down
RATES = (0.8, 1.25)  # tempo; uniform in its logarithm
SHIFT = 0.1  # of the length, the largest shift to either side; zeros come in
_UNDECODABLE = (sf.LibsndfileError, RuntimeError, ValueError, OverflowError)
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
    """One decoded utterance. `samples` `[n]` float32 at `rate` Hz, not rescaled: full scale is [-1,
    1).
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
            self._resampled[rate] = soxr.resample(
                self.samples, self.rate, rate, quality="HQ"
            ).astype(np.float32)
        return self._resampled[rate]


def decode(path: Path, sha256: str | None = None) -> Clip:
    """Decode one file. A given `sha256` is that of the file when the corpus was read, and must
    match.

    Raises `UtteranceError` with the reason, and `CorpusError` if it cannot be read, or is gone or
    changed since.
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
    file, warnings = open_audio(data, path.name), list[str]()
    try:
        with file:
            rate, promised = file.samplerate, file.frames
            channels = file.read(dtype="float32", always_2d=True)
    except MemoryError as fault:
        raise CorpusError(
            f"{path}: memory ran out while it was decoded; free some, and run again"
        ) from fault
    except _UNDECODABLE as fault:
        raise _undecodable(fault) from fault
    if len(channels) < promised:
        raise UtteranceError(
            f"is cut short: the header says {promised} samples, {len(channels)} can be decoded"
        )
    if not np.isfinite(channels).all():
        raise UtteranceError(
            f"holds NaN or infinite samples ({np.count_nonzero(~np.isfinite(channels))})"
        )
    samples = _one_channel(channels, warnings)
    peak = float(np.abs(samples).max())
    if peak > 1.0:
        warnings.append("samples beyond full scale")
    if peak < SILENT:
        warnings.append("silent")
    elif np.ptp(samples) < SILENT:
        warnings.append("constant (DC) samples")
    if rate < 16000:
        warnings.append(f"sampled at {rate} Hz: empty above {rate // 2} Hz")
    return Clip(samples, rate, warnings)


def open_audio(data: bytes, name: str) -> sf.SoundFile:
    """The decoder of a file's bytes.

    Raises `CodedAudio` for what only ffmpeg reads, with the line that converts a file of that
    `name`; `UtteranceError` for what is not audio, holds less than its header says, nothing, or
    over an hour.
    """
    quoted, new = (
        shlex.quote(name),
        shlex.quote(re.sub(r"(?i)(\.wav)?$|\.\w+$", r"\1.wav", name, count=1)),
    )
    own_name = f" && mv {new} {quoted}" if name.lower().endswith(".wav") else ""
    convert = f"convert it with `ffmpeg -i {quoted} -vn {new}{own_name}`"
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if reason := next(
        (reason for magic, reason in NOT_AUDIO.items() if start.startswith(magic)), None
    ):
        raise UtteranceError(reason)
    _check_wav(data)
    try:
        file = sf.SoundFile(io.BytesIO(data))
    except _UNDECODABLE as fault:
        raise CodedAudio(
            f"{_undecodable(fault)}; if it is video or coded audio, {convert}"
        ) from fault
    if file.frames > LONGEST * file.samplerate or file.frames * file.channels * 4 > LARGEST:
        raise UtteranceError(
            f"has {file.frames} samples by its header, over an hour or 4 GB: cut it into utterances"
        )
    if file.frames <= 0:
        raise UtteranceError("holds no samples")
    sizes = (
        re.search(r"(\d+) \(should be (\d+)\)", file.extra_info) if data[:4] != b"RIFF" else None
    )
    # A byte of padding may be missing; a stream written through a pipe says 0x7F000000 bytes or
    # more.
    if sizes and int(sizes[2]) + 1 < int(sizes[1]) < 0x7F000000:
        raise UtteranceError(
            f"is cut short: its header says {sizes[1]} bytes, the file holds {sizes[2]}"
        )
    samples = (
        re.search(rb"sample_count -i (\d{1,12})\n", data[:1024])
        if data.startswith(b"NIST_1A")
        else None
    )
    if samples and file.frames < int(samples[1]):
        raise UtteranceError(
            f"is cut short: the header says {int(samples[1])} samples, the file holds {file.frames}"
        )
    return file


def read_bytes(path: Path) -> bytes:
    """The bytes of a plain file. Raises `UtteranceError` for anything else, without ever waiting on
    it.

    Raises `CorpusError` if the disk, the mount or the memory fails.
    """
    try:
        data = read_named(path, LARGEST)
    except MemoryError as fault:
        raise CorpusError(
            f"{path}: memory ran out while it was read; free some, and run again"
        ) from fault
    except (OSError, ValueError) as fault:
        reason, code = (
            getattr(fault, "strerror", None) or fault,
            getattr(fault, "errno", errno.ENOENT),
        )
        if code == errno.EFBIG:
            raise UtteranceError(f"{reason}: cut it into utterances") from fault
        if code not in _MISNAMED:
            raise CorpusError(
                f"{path}: cannot be read ({reason}); check the disk or mount, and run again"
            ) from fault
        raise UtteranceError(f"cannot be opened ({reason})") from fault
    if not data:
        raise UtteranceError("is empty")
    return data


def _one_channel(channels: np.ndarray, warnings: list[str]) -> np.ndarray:
    """`[n, c]` to `[n]`: see `CHANNELS`. Opposite phases would cancel in the mean, without a trace."""
    if channels.shape[1] == 1:
        return np.ascontiguousarray(channels[:, 0])
    power = np.sqrt(np.mean(np.square(channels, dtype=np.float64), axis=0))
    mean = channels.mean(axis=1, dtype=np.float64).astype(np.float32)
    if np.sqrt(np.mean(np.square(mean, dtype=np.float64))) < CANCELLED * power.max():
        loudest = int(power.argmax())
        warnings.append(f"channels cancel each other: channel {loudest + 1} taken alone")
        return np.ascontiguousarray(channels[:, loudest])
    warnings.append(f"{channels.shape[1]} channels: their mean taken")
    return mean


def _check_wav(data: bytes) -> None:
    """Raises `UtteranceError` if a WAV file holds less than its header says: libsndfile reads short
    without a warning.

    A file written through a pipe says 0 or 2^32 - 1 bytes, whatever it holds.
    """
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"data":
            if (there := len(data) - at) < size and (size < 0xFFFFFFFF or not there):
                raise UtteranceError(
                    f"is cut short: its data chunk says {size} bytes, the file holds {there}"
                )
            return
        at += size + size % 2  # chunks are padded to even lengths
    raise UtteranceError("is a WAV file without a data chunk: cut short, or its header is wrong")


def _undecodable(fault: Exception) -> UtteranceError:
    """The error without the name that soundfile gives to bytes, a memory address that differs in
    every process.
    """
    lines = str(getattr(fault, "error_string", fault)).splitlines() or [type(fault).__name__]
    return UtteranceError(f"cannot be decoded as audio ({lines[0].strip(' .')})")


VIEWS = ("noise", "pitch", "stretch", "shift")


def check_view(view: str) -> None:
    """Raises `WrongUse` unless a view is written KIND-NUMBER, such as pitch-1."""
    kind, _, number = view.partition("-")
    if kind not in VIEWS:
        raise unknown("view", kind, VIEWS)
    if not re.fullmatch(r"[1-9][0-9]{0,3}", number):
        raise WrongUse(f"view={view}: write {kind}-1, {kind}-2 …: each number is another copy")


def change(samples: np.ndarray, rate: int, view: str) -> np.ndarray:
    """The `view` of `samples` `[n]`, float32 `[n]`; where it is faster or slower, `[n / tempo]`."""
    seed = hashlib.sha256(view.encode() + samples.tobytes()).digest()
    rng = np.random.default_rng(list(seed))
    match view.partition("-")[0]:
        case "noise":  # white, at an SNR from `SNR`
            level = np.sqrt(np.mean(np.square(samples, dtype=np.float64))) * 10 ** (
                -rng.uniform(*SNR) / 20
            )
            changed = samples + level * rng.standard_normal(len(samples))
        case "pitch":
            changed = librosa.effects.pitch_shift(
                samples, sr=rate, n_steps=rng.uniform(-SEMITONES, SEMITONES)
            )
        case "stretch":  # at the same pitch
            tempo = float(np.exp(rng.uniform(*np.log(RATES))))
            changed = librosa.effects.time_stretch(samples, rate=tempo)
        case _:  # a shift in time
            by = round(rng.uniform(-SHIFT, SHIFT) * len(samples))
            changed = np.pad(samples, abs(by))[abs(by) - by :][: len(samples)]
    return np.ascontiguousarray(changed, dtype=np.float32)
