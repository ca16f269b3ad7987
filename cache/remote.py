"""Where published stores lie: one file at a time, through fsspec, and the record of what is published.

What comes from there is somebody else's: names, sizes and digests are checked before they count.
"""

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from ser.errors import DISTRIBUTION, CorruptStore, SerError, StoreError, WrongUse, unknown

from .atomic_io import SMALL, make_folder, open_named, write_whole
from .blocks import Count
from .manifest import NAME
from .part import FileRecord, file_record
from .spec import Spec, canonical_json, parse_name, to_record

LATEST, RECORD = "published-latest", "published-{}.json"
_HEX16, _HEX64 = "[0-9a-f]{16}", "[0-9a-f]{64}"
_LARGEST = 4 << 30  # bytes of one file: several times what a part may have
_TRIES, _THREADS = 3, 4
_MEND = "if it stays so, it is damaged there, and who pushed it mends it by `ser cache push --replace` to the same URL"
_Result = TypeVar("_Result")

# Names become paths, on both sides.
Corpus = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME.pattern}\Z")]
PartFolder = Annotated[str, msgspec.Meta(pattern=rf"\A{NAME.pattern}/{_HEX16}/parts/{_HEX16}\Z")]


class PublishedPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part's part.json, and what that says."""

    record: FileRecord
    corpus: str
    rows: Count  # utterances
    bytes: Count  # of its other files


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is published: manifests by corpus, specs by `<feature>/<fingerprint>`, parts by their folders.

    The sha256 of its `content` is the root digest.
    """

    manifests: dict[Corpus, FileRecord] = {}
    features: dict[str, Spec] = {}
    parts: dict[PartFolder, PublishedPart] = {}
    format_version: int = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` for a feature that is not the one of its folder's name."""
        for folder, spec in self.features.items():
            if not NAME.fullmatch(spec.feature) or spec.folder != folder:
                raise ValueError(f"{folder!r} is the folder of another feature or fingerprint")

    @property
    def content(self) -> bytes:
        """The record as a file."""
        return canonical_json(msgspec.to_builtins(self))

    def parts_of(self, *folders: str) -> dict[str, PublishedPart]:
        """The parts of features, by their folders."""
        return {path: part for path, part in self.parts.items() if path.partition("/parts/")[0] in folders}

    def named(self, features: str | None, where: object) -> list[str]:
        """The folders of these features, "a+b:variant@fingerprint"; of all, where none are asked for.

        Those are the folders that a name of `ser train` reads: with `layers=` all of the feature. Else they hold what
        is stored under the whole name, such as `hubert:layer=9,pool=mean`, or where nothing is, what is read as it
        says: `hubert:layer=9`. Raises `WrongUse` for what is not there.
        """
        chosen = set() if features else set(self.features)
        for asked in features.split("+") if features else ():
            feature, options, read, prefix = parse_name(asked)
            several = any(option.startswith("layers=") for option in options)  # a fingerprint is that of one of them
            begin = f"{feature}/" if several else f"{feature}/{prefix}"
            near = {folder: spec.variant for folder, spec in self.features.items() if folder.startswith(begin)}
            whole = [*options, *(f"{way}={value}" for way, value in read.items())]
            variants = (",".join(sorted(way)) for way in (whole, options))
            stored = next((variant for variant in variants if variant in near.values()), None)
            found = {folder for folder, variant in near.items() if several or variant == stored}
            if not found:
                raise unknown(f"feature of {where}", asked, {spec.name for spec in self.features.values()})
            chosen |= found
        return sorted(chosen)


def split_digest(url: str) -> tuple[str, str | None]:
    """The URL, and the root digest behind its `@`: all of it, as a beginning would be easy to forge."""
    found = re.fullmatch(f"(.+)@({_HEX64})", url)
    return (found[1], found[2]) if found else (url, None)


def redacted(text: str) -> str:
    """A text without the users, passwords and signatures that URLs in it hold."""
    return re.sub(r"(?<=://)[^/\s]*@|\?\S*", "", text)


@contextlib.contextmanager
def explained(where: str, here: Path | None = None) -> Iterator[None]:
    """Turn what fsspec raises, or below it, into one sentence; so for damage there, seen in a copy `here`, if given."""
    try:
        yield
    except CorruptStore as error:
        told = str(error).replace(str(here or where), where).partition("; run ")[0]
        raise CorruptStore(f"{told.removesuffix(f'; {_MEND}')}; {_MEND}") from None
    except SerError:
        raise
    except ImportError as error:
        remedy = f"pip install '{DISTRIBUTION}[cloud]', or the package that is named"
        raise WrongUse(f"{where}: needs a package that is not here ({error}); {remedy}") from None
    except FileNotFoundError:
        raise StoreError(f"{where}: there is no such bucket, repository, folder or file") from None
    except Exception as error:  # the classes of each file system, which cannot be named without it
        first = redacted(" ".join(str(error).split()))[:300] or type(error).__name__
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        if re.search("Permission|Credential|Auth|Gated", kinds):
            remedy = "check the credentials, which come from the environment, and this machine's clock"
            raise StoreError(f"{where}: access is denied ({first}); {remedy}") from None
        if type(error) is ValueError:
            raise WrongUse(f"{where}: cannot be used as a place of stores ({first})") from None
        remedy = "check the address, the network and who may write there; the same command goes on from there"
        raise StoreError(f"{where}: cannot be reached ({first}); {remedy}") from None


class Remote:
    """A folder somewhere, by its URL or path; its files are named by relative paths.

    Raises `WrongUse` for a URL that no file system is for, and `StoreError`, here and later, for what fails there.
    """

    def __init__(self, url: str) -> None:
        self.shown = (redacted(url) if "://" in url else url).rstrip("/")
        with explained(self.shown):
            import fsspec

            self._fs, self._root = fsspec.url_to_fs(url, skip_instance_cache=True)
        kinds = {*self._fs.protocol} if isinstance(self._fs.protocol, tuple) else {self._fs.protocol}
        self._local, self._conditional = "file" in kinds, "s3" in kinds
        self._threads = _THREADS if self._fs.async_impl or self._local else 1

    def where(self, path: str) -> str:
        """A file there, for messages."""
        return f"{self.shown}/{path}"

    @cached_property
    def files(self) -> set[str]:
        """All files there, as of the first look; none where there is no such folder."""
        with explained(self.shown), contextlib.suppress(FileNotFoundError):
            return {name[len(self._root.rstrip("/")) + 1 :] for name in self._fs.find(self._root)}
        return set()

    def each(self, work: Callable[[str], _Result], names: Collection[str]) -> dict[str, _Result]:
        """Do this for each, several at once where the file system can; the first fault cancels what has not begun."""
        with ThreadPoolExecutor(self._threads) as pool:
            return dict(zip(names, pool.map(work, names), strict=True))

    def read(self, path: str, most: int = SMALL) -> bytes | None:
        """A file, a plain one where it is this machine's, or None if there is none.

        Raises `CorruptStore` for one that has more than that many bytes, of which no more than one is asked for.
        """
        place = f"{self._root}/{path}"
        content: bytes | None = None
        with explained(self.where(path)), contextlib.suppress(FileNotFoundError):
            if self._local:
                with os.fdopen(open_named(place), "rb") as file:
                    content = file.read(most + 1)
            else:
                content = bytes(self._fs.cat_file(place, start=0, end=most + 1))
        if content and len(content) > most:
            raise CorruptStore(f"{self.where(path)}: is larger than any such file; nothing of it was kept")
        return content

    def fetch(self, path: str, known: FileRecord) -> bytes:
        """A file of which size and sha256 are known.

        What comes altered or cut short is asked for again. Raises `CorruptStore` if it stays so, or is missing.
        """
        for _ in range(_TRIES):
            with contextlib.suppress(CorruptStore):  # one that is larger
                content = self.read(path, min(known.bytes, _LARGEST))
                if content is not None and file_record(content) == known:
                    return content
        fault = "missing, altered or cut short, its sha256 is not what was published"
        raise CorruptStore(f"{self.where(path)}: {fault}; {_MEND}")

    def put(self, path: str, content: bytes, over: Callable[[bytes | None], bool], look: bool = True) -> bool:
        """Put a file there if it may stand `over` what is there (None: nothing). Whether it is there then.

        One with the same content is not sent again. Without conditional puts, as S3 has them, another process may come
        in between. Without a `look`, nothing is expected there.
        """
        place, tag = f"{self._root}/{path}", ""  # as S3 names what is there, for a conditional put: before that is read
        if look and self._conditional:
            with explained(self.where(path)), contextlib.suppress(FileNotFoundError):
                tag = str(self._fs.info(place, refresh=True)["ETag"])
        most = len(content) + SMALL
        there = self.read(path, most) if look else None
        if there == content or not over(there):
            return there == content
        try:
            with explained(self.where(path)):
                if self._local:
                    make_folder(Path(place).parent)
                    write_whole(Path(place), content)
                elif self._conditional:
                    self._fs.pipe_file(place, content, **({"mode": "create"} if there is None else {"IfMatch": tag}))
                else:
                    self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
                    self._fs.pipe_file(place, content)
        except StoreError:
            if (now := self.read(path, most)) == there:
                raise
            return now == content  # a put whose answer was lost
        return True

    def create(self, path: str, content: bytes, replace: bool = False) -> None:
        """Put a file where there is none, or one cut short.

        Raises `StoreError` if another is there, unless it may `replace` that.
        """
        known = path in self.files or not self._conditional
        if not self.put(path, content, lambda there: there is None or replace or content.startswith(there), known):
            remedy = "run this again when that is done, or with --replace if nobody does it any more"
            raise StoreError(f"{self.where(path)}: another push has begun this part with other numbers; {remedy}")

    def published(self, digest: str) -> Published:
        """What was published under a root digest. Raises `CorruptStore` if it is not what the digest names."""
        where = self.where(RECORD.format(digest))
        content = self.read(RECORD.format(digest)) if re.fullmatch(_HEX64, digest) else None
        with explained(where):
            if content is None or file_record(content).sha256 != digest:
                raise CorruptStore(f"{where}: is missing, or not what its digest names")
            return to_record(content, Published, where)
