"""What the header of a sound file says of its length, held against the bytes that are there.

A recorder that was killed leaves a length that is too small, a pipe leaves one that could not be
known, and libsndfile believes both. So the length is put right before it opens the bytes: samples
are read to the end of the file.
"""

import re
import struct
from dataclasses import dataclass
from typing import Any

from ser.errors import UtteranceError

from . import flac
from .audio_content import Content, Mend

# A file that is written through a pipe says 0, or this or more, whatever it holds: 0x7FFFFFFF and
# 0x80000000 less a few bytes, or 0xFFFFFFFF.
UNKNOWN_LENGTH = 0x7F000000
# Bytes. What follows the samples and is no longer is a tag or padding; what is longer and no chunk
# are samples that the header does not count.
LONGEST_TRAILER = 512
# Bytes. Chunks behind samples that the header does not count are looked for in so many.
LONGEST_CHUNKS = 1 << 16
# What other programs put behind the last chunk.
TAGS = (b"ID3", b"TAG", b"APETAGEX", b"3DI")
LONGEST_TAG = max(map(len, TAGS))
# Chunks that may follow the samples, known even if the last is cut short.
KNOWN_CHUNKS = {b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"fact", b"cue ", b"smpl", b"PEAK"}


@dataclass(frozen=True)
class Header:
    """What the header of a file says, and what has to be put right in it."""

    mend: Mend | None = None
    """The length that holds, where the file says another."""

    uncounted: int = 0
    """Bytes of samples (of FLAC, samples) that the header did not count; they are read."""

    trailing: int = 0
    """Bytes after the samples that are no samples and no chunk; they are not read."""

    @property
    def warnings(self) -> list[str]:
        """What is odd about the length, for people."""
        warnings = []
        if self.uncounted:
            warnings.append("its header counts fewer samples than the file holds: all are read")
        if self.trailing:
            warnings.append("bytes that are no audio follow its samples: they are not read")
        return warnings


@dataclass(frozen=True)
class Chunks:
    """How a kind of file is cut into chunks."""

    start: int
    """Where the first chunk begins."""

    head: struct.Struct
    """The name and the size of a chunk."""

    of_samples: tuple[bytes, ...]
    """The chunk that holds the samples."""

    even: bool = True
    """Whether chunks are padded to even lengths."""


WAV = Chunks(12, struct.Struct("<4sI"), (b"data",))
BIG_ENDIAN_WAV = Chunks(12, struct.Struct(">4sI"), (b"data",))
IFF = Chunks(12, struct.Struct(">4sI"), (b"SSND", b"BODY"))
CAF = Chunks(8, struct.Struct(">4sq"), (b"data",), even=False)


def read_header(data: Content) -> Header:
    """The header of a sound file.

    Raises `UtteranceError` if it counts more samples than the file holds, or, of a WAV file, has no
    samples at all. What has no known header is left to the decoder.
    """
    start = data[:4]
    if start in (b"RIFF", b"RF64", b"RIFX") and data[8:12] == b"WAVE":
        header = _read_chunks(data, BIG_ENDIAN_WAV if start == b"RIFX" else WAV)
        if header is None:
            raise UtteranceError(
                "is a WAV file without a data chunk: cut short, or its header is wrong"
            )
        return header
    if start == b"FORM":
        return _read_chunks(data, IFF) or Header()
    if start == b"caff":
        return _read_chunks(data, CAF) or Header()
    if start in (b".snd", b"dns."):
        return _read_au(data)
    if start == b"fLaC":
        return _read_flac(data)
    return Header()


def _read_flac(data: Content) -> Header:
    """The header of a FLAC file, whose last frame says how many samples there are."""
    counted = flac.counted_samples(data)
    if counted > len(data) * flac.MAX_SAMPLES_PER_BYTE:
        raise UtteranceError(
            f"has {counted} samples by its header, more than its {len(data)} bytes can hold"
        )

    held = flac.held_samples(data)
    if held is None and counted == 0:
        raise UtteranceError(
            "is FLAC of a length that its header does not know, and its last frame is not whole: "
            "cut short, or followed by a tag; encode it again"
        )
    if held is None or held == counted:
        return Header()
    if held < counted:
        raise UtteranceError(
            f"is cut short: the header says {counted} samples, the file holds {held}"
        )
    mend = flac.mended_count(data, held)
    return Header(mend, uncounted=held - counted if counted else 0)


def _read_chunks(data: Content, chunks: Chunks) -> Header | None:
    """The header of a file of chunks; None if none of them holds samples."""
    # Of RF64: where the size stands that 32 bits cannot hold.
    long_size_at: int | None = None
    position = chunks.start

    while position + chunks.head.size <= len(data):
        name, size = _unpack(data, position, chunks.head)
        position += chunks.head.size

        if name == b"ds64" and len(data) >= position + 16:
            long_size_at = position + 8
        elif name in chunks.of_samples:
            if long_size_at is not None and size == 0xFFFFFFFF:
                [size] = _unpack(data, long_size_at, struct.Struct("<Q"))
                return _with_length(data, chunks, position, size, long_size_at, "<Q")
            size_format = chunks.head.format[0] + chunks.head.format[-1]
            size_at = position - struct.calcsize(size_format)
            return _with_length(data, chunks, position, size, size_at, size_format)

        position += size + (size % 2 if chunks.even else 0)
        if size < 0:
            return None
    return None


def _with_length(
    data: Content, chunks: Chunks, position: int, size: int, size_at: int, size_format: str
) -> Header:
    """The header of a file whose samples begin at `position`, and are `size` bytes by its header.

    That length stands at `size_at`, in `size_format`.
    """
    held = len(data) - position
    is_unknown = size < 0 or (size > held > 0 and size >= UNKNOWN_LENGTH)
    if size > held and not is_unknown:
        # libsndfile's own log says it of the others.
        if chunks.of_samples == WAV.of_samples and chunks is not CAF:
            raise UtteranceError(
                f"is cut short: its data chunk says {size} bytes, the file holds {held}"
            )
        return Header()
    if is_unknown:
        behind = _chunks_at_end(data, position, chunks)
        return Header(_mended_size(size_at, size_format, held - behind))

    follows = position + size
    rest = held - size
    if chunks.even and size % 2 and data[follows : follows + 1] == b"\0":
        follows += 1
        rest -= 1
    if rest <= 0:
        return Header()

    trailing = _bytes_after_chunks(data, follows, chunks)
    has_tag = data[follows : follows + LONGEST_TAG].startswith(TAGS)
    if trailing < rest or has_tag or rest <= LONGEST_TRAILER:
        return Header(trailing=trailing)

    # Those that follow samples which the header does not count are no samples themselves.
    behind = _chunks_at_end(data, follows, chunks)
    mend = _mended_size(size_at, size_format, held - behind)
    # A length of 0 is what a pipe leaves.
    return Header(mend, uncounted=rest - behind if size else 0)


def _chunks_at_end(data: Content, position: int, chunks: Chunks) -> int:
    """How many bytes of known chunks stand at the very end, behind `position`.

    They are looked for in the last bytes alone, and their sizes have to lead to the end.
    """
    tail = data[max(position, len(data) - LONGEST_CHUNKS) :]
    leads_to_end = {len(tail)}
    first = len(tail)
    names = b"|".join(map(re.escape, sorted(KNOWN_CHUNKS)))
    for found in reversed(list(re.finditer(names, tail))):
        begins = found.start() + chunks.head.size
        if begins > len(tail):
            continue
        _, size = _unpack(tail, found.start(), chunks.head)
        padding = size % 2 if chunks.even else 0
        if not leads_to_end.isdisjoint({begins + size, begins + size + padding}):
            leads_to_end.add(found.start())
            first = found.start()
    return len(tail) - first


def _mended_size(size_at: int, size_format: str, size: int) -> Mend:
    return Mend(size_at, struct.pack(size_format, size))


def _unpack(data: Content, position: int, fields: struct.Struct) -> tuple[Any, ...]:
    return fields.unpack(data[position : position + fields.size])


def _bytes_after_chunks(data: Content, position: int, chunks: Chunks) -> int:
    """How many bytes are left after the chunks that begin here; a chunk may be cut short."""
    while position + chunks.head.size <= len(data):
        name, size = _unpack(data, position, chunks.head)
        if not re.fullmatch(rb"[ -~]{4}", name) or size < 0:
            break

        end = position + chunks.head.size + size
        if end > len(data):
            return 0 if name in KNOWN_CHUNKS else len(data) - position
        position = end + (end % 2 if chunks.even else 0)
    return max(0, len(data) - position)


def _read_au(data: Content) -> Header:
    """The header of an AU file, in which nothing may follow the samples."""
    order = ">" if data[:4] == b".snd" else "<"
    if len(data) < 24:
        return Header()

    offset, size = _unpack(data, 4, struct.Struct(f"{order}II"))
    rest = len(data) - offset - size
    if rest <= 0:
        return Header()
    if rest <= LONGEST_TRAILER and size:
        return Header(trailing=rest)
    mend = _mended_size(8, f"{order}I", len(data) - offset)
    return Header(mend, uncounted=rest if size else 0)
