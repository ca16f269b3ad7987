"""Where published stores lie: one file at a time, through fsspec.

What comes from there is not trusted: sizes and digests are checked before content is used.
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from ser.cache.part import FileRecord, file_record
from ser.disk.faults import DISK_FULL, explain_disk_errors
from ser.disk.read import SMALL, open_named
from ser.disk.unfinished import is_unfinished, remove_unfinished
from ser.disk.write import make_folder, write_whole
from ser.errors import DISTRIBUTION, CorruptStore, SerError, StoreError, WrongUse

from .stream import can_stream, read_at_most
from .urls import local_path

# Bytes of one file: several times what a part may have.
MAX_FILE_BYTES = 4 << 30

# How often a file that arrives damaged is read.
TRIES = 3
THREADS = 4

MEND = (
    "if it stays so, it is damaged there, and who pushed it mends it by `ser cache push URL "
    "--replace`"
)
GO_ON = (
    "check the address, the network and who may write there; the same command goes on from there"
)

# Seconds in which an answer must come, and bytes a second of what is sent.
PATIENCE = 60.0
SLOWEST = 1e5

Result = TypeVar("Result")


def redacted(text: str) -> str:
    """A text without the users, passwords and signatures of the URLs in it."""
    return re.sub(r"(?<=://)[^/\s]*@|\?\S*", "", text)


@contextlib.contextmanager
def explained(url: str, here: Path | None = None) -> Iterator[None]:
    """Turn what fsspec and its file systems raise into one sentence.

    Damage that is seen in a copy `here` is told of the place it was copied from.
    """
    try:
        yield
    except CorruptStore as error:
        fault = str(error).replace(str(here or url), url).partition("; run ")[0]
        raise CorruptStore(f"{fault.removesuffix(f'; {MEND}')}; {MEND}") from None
    except SerError:
        raise
    except ImportError as error:
        remedy = f"run `pip install '{DISTRIBUTION}[cloud]'`, or install the package that is named"
        raise WrongUse(f"{url}: needs a package that is not here ({error}); {remedy}") from None
    except FileNotFoundError:
        raise StoreError(f"{url}: there is no such bucket, repository, folder or file") from None
    except Exception as error:
        raise _explain_unknown(url, error) from None


def _explain_unknown(url: str, error: Exception) -> SerError:
    """One sentence for an error of a file system; each has classes of its own."""
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        try:
            with explain_disk_errors(f"writing to {url}", Path(error.filename or "/")):
                raise error
        except StoreError as full:
            return full

    reason = redacted(" ".join(str(error).split()))[:300] or type(error).__name__
    names = " ".join(kind.__name__ for kind in type(error).__mro__)

    if re.search("Permission|Credential|Auth|Gated", names):
        remedy = "check the credentials, which come from the environment, and this machine's clock"
        return StoreError(f"{url}: access is denied ({reason}); {remedy}")

    if "TimeoutError" in names:
        return StoreError(
            f"{url}: is silent or too slow, nothing came in time (--timeout); {GO_ON}"
        )

    if type(error) is ValueError:
        return WrongUse(f"{url}: cannot be used as a place of stores ({reason})")

    return StoreError(f"{url}: cannot be reached ({reason}); {GO_ON}")


class Remote:
    """A folder somewhere, by its URL or path; its files are named by relative paths.

    Raises `WrongUse` for a URL of no known file system, and `StoreError`, also later, for what
    fails there.
    """

    def __init__(self, url: str, patience: float | None = None) -> None:
        self._patience = PATIENCE if patience is None else patience
        # For messages.
        self.shown = (redacted(url) if "://" in url else url).rstrip("/")

        path = local_path(url)
        with explained(self.shown):
            import fsspec

            if path is None:
                self._fs, self._root = fsspec.url_to_fs(url, skip_instance_cache=True)
            else:
                self._fs = fsspec.filesystem("file")
                self._root = path.absolute().as_posix()

        protocol = self._fs.protocol
        names = set(protocol) if isinstance(protocol, tuple) else {protocol}
        self._is_local = "file" in names
        # S3 has conditional puts.
        self._is_conditional = "s3" in names
        self._threads = THREADS if self._fs.async_impl or self._is_local else 1

    @cached_property
    def files(self) -> set[str]:
        """All files there when this was first read; none if there is no such folder."""
        with explained(self.shown), contextlib.suppress(FileNotFoundError):
            start = len(self._root.rstrip("/")) + 1
            return {name[start:] for name in self._fs.find(self._root, **self._within())}
        return set()

    def remove_unfinished(self) -> None:
        """Remove the unfinished files of killed writers there; of this machine's disks alone.

        Files elsewhere appear whole or not at all.
        """
        if self._is_local:
            names = {Path(self._root, name) for name in self.files}
            for folder in {path.parent for path in names if is_unfinished(path.name)}:
                remove_unfinished(folder)

    def each(self, work: Callable[[str], Result], names: Collection[str]) -> dict[str, Result]:
        """The result for each name, several at once if the file system can.

        The first fault cancels those not begun.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            return dict(zip(names, pool.map(work, names), strict=True))

    def read(self, path: str, max_bytes: int = SMALL) -> bytes | None:
        """A file (on this machine, a plain one), or None if it is missing.

        Raises `CorruptStore` for a larger one, of which at most one byte too many is read.
        """
        place = f"{self._root}/{path}"
        content: bytes | None = None
        with explained(f"{self.shown}/{path}"), contextlib.suppress(FileNotFoundError):
            if self._is_local:
                with os.fdopen(open_named(place), "rb") as file:
                    content = file.read(max_bytes + 1)
            else:
                content = self._read_far(place, max_bytes + 1)

        if content and len(content) > max_bytes:
            fault = "is larger than any such file; nothing of it was kept"
            raise CorruptStore(f"{self.shown}/{path}: {fault}")
        return content

    def _read_far(self, place: str, max_bytes: int) -> bytes:
        """The first bytes of a file elsewhere; a connection that breaks is tried again."""
        if not can_stream(self._fs):
            return bytes(self._fs.cat_file(place, start=0, end=max_bytes))

        for attempt in range(1, TRIES + 1):
            try:
                return read_at_most(self._fs, place, max_bytes, self._patience)
            except (FileNotFoundError, PermissionError, TimeoutError):
                raise
            except Exception:
                if attempt == TRIES:
                    raise
        raise AssertionError("a loop of at least one try")

    def _within(self, size: int = 0) -> dict[str, float]:
        """How long a request may take that sends `size` bytes, as fsspec takes it."""
        if not self._fs.async_impl:
            return {}
        return {"timeout": self._patience + size / SLOWEST}

    def fetch(self, path: str, known: FileRecord) -> bytes:
        """A file whose size and sha256 are known.

        It is read again if it arrives altered or cut short. Raises `CorruptStore` if it stays so,
        or is missing.
        """
        for _ in range(TRIES):
            # Raised if it is larger.
            with contextlib.suppress(CorruptStore):
                content = self.read(path, min(known.bytes, MAX_FILE_BYTES))
                if content is not None and file_record(content) == known:
                    return content

        fault = "missing, altered or cut short, its sha256 is not what was published"
        raise CorruptStore(f"{self.shown}/{path}: {fault}; {MEND}")

    def put(self, path: str, content: bytes, expected: bytes | None) -> bool:
        """Put a file in the place of the `expected` one (None: of none).

        Returns whether it is there now. Equal content is not sent again. Without conditional puts,
        which S3 has, another process may come in between.
        """
        max_bytes = len(content) + SMALL

        # The name that S3 gives to a content, asked for before that is read.
        tag = ""
        if expected is not None and self._is_conditional:
            tag = self._entity_tag(path)

        before = expected
        if expected is not None or not self._is_conditional:
            before = self.read(path, max_bytes)
        if before == content:
            return True
        if before != expected:
            return False

        try:
            with explained(f"{self.shown}/{path}"):
                self._write(path, content, tag)
        except StoreError:
            after = self.read(path, max_bytes)
            if after == before:
                raise
            # The answer to a put may be lost.
            return after == content
        return True

    def _entity_tag(self, path: str) -> str:
        with explained(f"{self.shown}/{path}"), contextlib.suppress(FileNotFoundError):
            return str(
                self._fs.info(f"{self._root}/{path}", refresh=True, **self._within())["ETag"]
            )
        return ""

    def _write(self, path: str, content: bytes, tag: str) -> None:
        place = f"{self._root}/{path}"
        if self._is_local:
            make_folder(Path(place).parent)
            write_whole(Path(place), content)
        elif self._is_conditional:
            condition = {"IfMatch": tag} if tag else {"mode": "create"}
            self._fs.pipe_file(place, content, **condition, **self._within(len(content)))
        else:
            self._fs.makedirs(place.rpartition("/")[0], exist_ok=True, **self._within())
            self._fs.pipe_file(place, content, **self._within(len(content)))

    def create(self, path: str, content: bytes, replace: bool = False) -> None:
        """Put a file where there is none, or one that is cut short.

        Raises `StoreError` for another one, unless it may `replace` that.
        """
        may_be_there = path in self.files or not self._is_conditional
        existing = self.read(path, len(content) + SMALL) if may_be_there else None
        if existing == content:
            return

        is_free = existing is None or replace or content.startswith(existing)
        if not is_free or not self.put(path, content, existing):
            fault = "another push has begun this part with other numbers"
            remedy = "run this again when that one has ended, or with --replace if it never will"
            raise StoreError(f"{self.shown}/{path}: {fault}; {remedy}")
