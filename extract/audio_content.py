"""The bytes of an audio file, in memory or on disk, and a part of them put right."""

import io
import os
from dataclasses import dataclass
from typing import BinaryIO, Protocol


class Content(Protocol):
    """Bytes that are read in slices: `bytes` itself, or a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


@dataclass(frozen=True)
class Mend:
    """Bytes that stand in a header in place of those in the file."""

    start: int
    content: bytes

    def apply(self, piece: bytes, start: int) -> bytes:
        """The bytes of a file from `start` on, with those of the mend among them."""
        first = max(self.start, start)
        end = min(self.start + len(self.content), start + len(piece))
        if first >= end:
            return piece
        mended = self.content[first - self.start : end - self.start]
        return piece[: first - start] + mended + piece[end - start :]


class FileContent:
    """The bytes of an open file, read when they are sliced."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(self.size)
        self.file.seek(start)
        return self.file.read(max(0, stop - start))


class MendedFile:
    """An open file as libsndfile reads it: by `read`, `seek` and `tell`.

    What is raised within libsndfile's call is lost there, so an error of the disk is kept in
    `fault`.
    """

    def __init__(self, content: FileContent, mend: Mend | None) -> None:
        self.content = content
        self.mend = mend
        self.position = 0
        self.fault: OSError | None = None

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a place in the file."""
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: len(self.content)}
        self.position = origins[whence] + offset
        return self.position

    def tell(self) -> int:
        """The place in the file."""
        return self.position

    def read(self, count: int) -> bytes:
        """The next bytes, fewer at the end of the file."""
        try:
            piece = self.content[self.position : self.position + count]
        except OSError as error:
            self.fault = error
            return b""
        if self.mend is not None:
            piece = self.mend.apply(piece, self.position)
        self.position += len(piece)
        return piece
