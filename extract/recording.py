"""A recording, open: hashed once, and parts of it decoded without the rest in memory.

A part is cut at the file's own rate, from sample round(start × rate) up to sample round(end × rate)
(halves to even), before anything else: what follows is done to those samples as to a file of their
own. Samples that are coded one by one, and FLAC, are read where the part begins. Of other codings
what comes before is decoded too, in blocks, since a decoder that begins in the middle gives other
samples; parts that are asked for in their order are decoded in one pass. They are those of the
whole file bit for bit, but for MP3: its decoder rounds at the start of a block (within 1e-7).
"""

import hashlib
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf

from ser.disk.read import open_named
from ser.errors import CorpusError, UtteranceError

from .audio import (
    UNDECODABLE,
    Clip,
    check_length,
    check_sizes,
    clip_of,
    explain_reading,
    no_decoder,
    refuse_what_is_no_audio,
    undecodable,
)
from .audio_content import FileContent, MendedFile
from .audio_header import Header, read_header

# Codings of libsndfile in which any sample can be read without those before it.
SEEKABLE = ("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW", "ALAC_")
# Seconds by which a part may end after its file, since times are rounded: it ends with the file.
ROUNDED_BY = 0.01
# Samples of each channel that are decoded at a time where a coding begins at its start.
BLOCK = 1 << 18
# Bytes that are hashed at a time.
HASHED = 1 << 20
# Recordings that stay open at once.
OPEN = 16


@dataclass(frozen=True)
class Span:
    """A part of a recording, in seconds."""

    start: float = 0.0
    end: float | None = None
    """None: the end of the recording."""

    def samples(self, rate: int, frames: int) -> tuple[int, int]:
        """Its first sample, and the one after its last, in a file of that rate and length.

        Raises `UtteranceError` if it does not lie in the file.
        """
        length = frames / rate
        end_in_words = "its end" if self.end is None else f"{self.end:.3f} s"
        named = f"its span, from {self.start:.3f} s to {end_in_words},"

        if self.start < 0:
            raise UtteranceError(f"{named} begins before the file")
        if self.end is not None and self.end < self.start:
            raise UtteranceError(f"{named} is reversed: it ends before it begins")
        if self.start >= length:
            raise UtteranceError(f"{named} begins after the file, which has {length:.3f} s")
        if self.end is not None and self.end > length + ROUNDED_BY:
            raise UtteranceError(f"{named} ends after the file, which has {length:.3f} s")

        first = round(self.start * rate)
        end = frames if self.end is None else min(frames, round(self.end * rate))
        if first >= end:
            raise UtteranceError(f"{named} has no length: it holds no sample")
        return first, end


@dataclass(frozen=True)
class Segment:
    """A part of an audio file."""

    path: Path
    span: Span


class Recording:
    """An audio file of which parts are decoded. It may be used by several threads.

    It is hashed when it is made, which raises `UtteranceError` if there is no file or an empty one,
    and `CorpusError` if the disk or the mount fails.
    """

    header: Header
    rate: int
    frames: int
    channels: int

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._decoder: sf.SoundFile | None = None
        # Of a coding that is decoded from its start: the block that comes next, and those kept.
        self._next_block = 0
        self._blocks: dict[int, np.ndarray] = {}

        with explain_reading(path):
            self._file: BinaryIO = os.fdopen(open_named(path), "rb")
        try:
            with explain_reading(path):
                self._content = FileContent(self._file)
                self._as_hashed = _state(os.fstat(self._file.fileno()))
                self.sha256 = self._hash()
            if not len(self._content):
                raise UtteranceError("is empty")
        except BaseException:
            self._file.close()
            raise

    def open(self) -> None:
        """Read its header. Raises `UtteranceError` for what is no audio, or cut short."""
        with explain_reading(self.path):
            refuse_what_is_no_audio(self._content)
            self.header = read_header(self._content)

        decoder = self._open_decoder()
        self.rate = decoder.samplerate
        self.frames = decoder.frames
        self.channels = decoder.channels
        with explain_reading(self.path):
            check_sizes(self._content, decoder)

    def _open_decoder(self) -> sf.SoundFile:
        """A decoder at the first sample. Raises `CodedAudio` for what only ffmpeg reads."""
        self._forget_decoder()
        self._source = MendedFile(self._content, self.header.mend)
        try:
            try:
                self._decoder = sf.SoundFile(self._source)
            except sf.LibsndfileError:
                # On some machines libsndfile 1.2.2 refuses an MP3 that is not read by its name.
                start = self._content[:3]
                is_mpeg = start[:1] == b"\xff" and start[1:2] >= b"\xe0"
                if start != b"ID3" and not is_mpeg:
                    raise
                self._decoder = sf.SoundFile(self.path)
        except UNDECODABLE as fault:
            self._raise_fault_of_disk()
            raise no_decoder(fault, self.path.name) from fault

        self._raise_fault_of_disk()
        self._next_block = 0
        self._blocks = {}
        return self._decoder

    def _hash(self) -> str:
        digest = hashlib.sha256()
        self._file.seek(0)
        while piece := self._file.read(HASHED):
            digest.update(piece)
        return digest.hexdigest()

    def _raise_fault_of_disk(self) -> None:
        """Raise what went wrong where the decoder read, as a fault of the disk."""
        fault = self._source.fault
        if fault is not None:
            self._source.fault = None
            with explain_reading(self.path):
                raise fault

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.frames / self.rate

    def is_unchanged(self) -> bool:
        """Whether the file has not been written since it was hashed, and is still under its name.

        The content itself is hashed when the recording is opened, and not again.
        """
        try:
            return self._as_hashed == _state(self.path.stat())
        except OSError:
            return False

    def check_whole(self) -> None:
        """Raise `UtteranceError` if it is too long for one utterance."""
        check_length(self.frames, self.rate, self.channels)

    def clip(self, span: Span) -> Clip:
        """A part of it, decoded.

        Raises `UtteranceError` for what cannot be used, `CorpusError` if the disk or the memory
        fails.
        """
        first, end = span.samples(self.rate, self.frames)
        check_length(end - first, self.rate, self.channels)

        try:
            return clip_of(self.read(first, end), self.rate)
        except MemoryError as fault:
            raise CorpusError(
                f"{self.path}: memory ran out while it was decoded; free some, and run again"
            ) from fault

    def read(self, first: int, end: int) -> np.ndarray:
        """The samples from `first` to before `end`, `[end - first, channels]` float32.

        Raises `UtteranceError` if they cannot be decoded, `CorpusError` if the disk fails.
        """
        with self._lock:
            return self._read(first, end)

    def opening(self, count: int) -> np.ndarray:
        """At most so many samples from its start, `[count, channels]` float32.

        No more than these are decoded, whatever the coding. Raises as `read` does.
        """
        with self._lock:
            decoder = self._open_decoder()
            try:
                channels = decoder.read(min(count, self.frames), dtype="float32", always_2d=True)
            except UNDECODABLE as fault:
                raise undecodable(fault) from fault
            finally:
                # Its place is not one that `_read` knows.
                self._forget_decoder()
            self._raise_fault_of_disk()
            return channels

    def _read(self, first: int, end: int) -> np.ndarray:
        """The samples `[end - first, channels]` float32."""
        decoder = self._decoder or self._open_decoder()
        try:
            if decoder.format == "FLAC" or decoder.subtype.startswith(SEEKABLE):
                decoder.seek(first)
                channels = decoder.read(end - first, dtype="float32", always_2d=True)
            else:
                channels = self._read_from_start(decoder, first, end)
        except UNDECODABLE as fault:
            self._raise_fault_of_disk()
            # Where the decoder stands now is not known.
            self._forget_decoder()
            raise undecodable(fault) from fault

        self._raise_fault_of_disk()
        if len(channels) < end - first:
            raise UtteranceError(
                f"is cut short: the header says {self.frames} samples, {first + len(channels)} can "
                "be decoded"
            )
        return channels

    def _read_from_start(self, decoder: sf.SoundFile, first: int, end: int) -> np.ndarray:
        """As `_read`, of a coding that is decoded from its start, block by block.

        The blocks are always the same ones: some decoders round otherwise where a block begins.
        Those from `first` on are kept, for parts that overlap.
        """
        first_block = first // BLOCK
        if any(number not in self._blocks for number in range(first_block, self._next_block)):
            # Some cannot seek, not even to their start.
            decoder = self._open_decoder()
        self._blocks = {
            number: block for number, block in self._blocks.items() if number >= first_block
        }

        while self._next_block * BLOCK < end:
            count = min(BLOCK, self.frames - self._next_block * BLOCK)
            block = decoder.read(count, dtype="float32", always_2d=True)
            if self._next_block >= first_block:
                self._blocks[self._next_block] = block
            self._next_block += 1
            if len(block) < count:
                break

        blocks = [self._blocks[number] for number in sorted(self._blocks)]
        from_block = first - first_block * BLOCK
        return np.concatenate(blocks)[from_block : from_block + end - first]

    def _forget_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
        self._decoder = None

    def close(self) -> None:
        """Let go of the file."""
        self._forget_decoder()
        self._file.close()

    def __enter__(self) -> "Recording":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Recordings:
    """Recordings that stay open, so that each is hashed once and decoded once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By path and sha256, the one used last at the end.
        self._open: OrderedDict[tuple[Path, str | None], Recording] = OrderedDict()

    def get(self, path: Path, sha256: str | None = None) -> Recording:
        """A recording, open. `sha256` is that of the file when the corpus was read, if it was.

        Raises `UtteranceError` for what is no audio, and `CorpusError` if the file cannot be read,
        or is gone or changed since.
        """
        key = (path, sha256)
        with self._lock:
            recording = self._open.pop(key, None)
            if recording is None or not recording.is_unchanged():
                recording = _open_new(path) if sha256 is None else _open_expected(path, sha256)
            self._open[key] = recording
            # One that another thread still reads is closed when nobody holds it any more.
            if len(self._open) > OPEN:
                self._open.popitem(last=False)
            return recording

    def close(self) -> None:
        """Let go of all recordings."""
        with self._lock:
            self._open.clear()


def _state(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is written, or another takes its place."""
    return status.st_size, status.st_mtime_ns, status.st_ino


def _open_expected(path: Path, sha256: str) -> Recording:
    """A recording, open, whose bytes were these when the corpus was read.

    Raises `CorpusError` if it has changed, or is not there any more.
    """
    try:
        recording = Recording(path)
    except UtteranceError as fault:
        raise CorpusError(
            f"{path}: {fault}, and was whole when the corpus was read; check that the corpus is "
            "mounted here, and run again"
        ) from fault

    if recording.sha256 != sha256:
        recording.close()
        raise CorpusError(f"{path}: changed after the corpus was read: run again")
    return _opened(recording)


def _open_new(path: Path) -> Recording:
    return _opened(Recording(path))


def _opened(recording: Recording) -> Recording:
    try:
        recording.open()
    except BaseException:
        recording.close()
        raise
    return recording
