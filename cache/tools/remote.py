"""Where published stores lie: one file at a time, through fsspec, and the record of what is
published.

What comes from there is not trusted: names, sizes and digests are checked before they are used.
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

from ser.cache.blocks import ByteCount
from ser.cache.feature_name import parse_feature_name
from ser.cache.part import FileRecord, file_record
from ser.cache.spec import Spec
from ser.corpus.names import NAME
from ser.disk.read import SMALL, open_named
from ser.disk.records import canonical_json, to_record
from ser.disk.write import make_folder, write_whole
from ser.errors import DISTRIBUTION, CorruptStore, SerError, StoreError, WrongUse, unknown

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
    """A part's part.json, and what it records."""

    record: FileRecord
    corpus: str
    rows: ByteCount  # utterances
    bytes: ByteCount  # of its other files


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is published: manifests by corpus, specs by `<feature>/<fingerprint>`, parts by
    their folders.

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

    def named(self, features: str, where: object) -> set[str]:
        """The folders of these features, "a+b:variant@fingerprint".

        They are the folders that `ser train` reads for a name: with `layers=` all of the feature;
        otherwise those that are stored under the whole name, such as `hubert:layer=9,pool=mean`,
        or, if there are none, those without what is done on reading: `hubert:layer=9`. Raises
        `WrongUse` for a feature that is not there.
        """
        folders = set[str]()
        for name in features.split("+"):
            feature, options, on_reading, prefix = parse_feature_name(name)
            all_layers = any(
                option.startswith("layers=") for option in options
            )  # a fingerprint names one of them
            start = f"{feature}/" if all_layers else f"{feature}/{prefix}"
            variants = {
                folder: spec.variant
                for folder, spec in self.features.items()
                if folder.startswith(start)
            }
            stored = ",".join(
                sorted([*options, *(f"{way}={value}" for way, value in on_reading.items())])
            )
            if stored not in variants.values():
                stored = ",".join(sorted(options))
            matching = {
                folder for folder, variant in variants.items() if all_layers or variant == stored
            }
            if not matching:
                raise unknown(
                    f"feature of {where}", name, {spec.name for spec in self.features.values()}
                )
            folders |= matching
        return folders


def split_digest(url: str) -> tuple[str, str | None]:
    """The URL, and the root digest after its `@`: all 64 digits, since fewer would be easy to
    forge.
    """
    match = re.fullmatch(f"(.+)@({_HEX64})", url)
    return (match[1], match[2]) if match else (url, None)


def redacted(text: str) -> str:
    """A text without the users, passwords and signatures of the URLs in it."""
    return re.sub(r"(?<=://)[^/\s]*@|\?\S*", "", text)


@contextlib.contextmanager
def explained(where: str, here: Path | None = None) -> Iterator[None]:
    """Turn what fsspec and its file systems raise into one sentence, and damage that is seen in a
    copy `here` too.
    """
    try:
        yield
    except CorruptStore as error:
        fault = str(error).replace(str(here or where), where).partition("; run ")[0]
        raise CorruptStore(f"{fault.removesuffix(f'; {_MEND}')}; {_MEND}") from None
    except SerError:
        raise
    except ImportError as error:
        remedy = f"pip install '{DISTRIBUTION}[cloud]', or the package that is named"
        raise WrongUse(f"{where}: needs a package that is not here ({error}); {remedy}") from None
    except FileNotFoundError:
        raise StoreError(f"{where}: there is no such bucket, repository, folder or file") from None
    except Exception as error:  # each file system has classes of its own
        first = redacted(" ".join(str(error).split()))[:300] or type(error).__name__
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        if re.search("Permission|Credential|Auth|Gated", kinds):
            remedy = (
                "check the credentials, which come from the environment, and this machine's clock"
            )
            raise StoreError(f"{where}: access is denied ({first}); {remedy}") from None
        if type(error) is ValueError:
            raise WrongUse(f"{where}: cannot be used as a place of stores ({first})") from None
        remedy = "check the address, the network and who may write there; the same command goes on from there"
        raise StoreError(f"{where}: cannot be reached ({first}); {remedy}") from None


class Remote:
    """A folder somewhere, by its URL or path; its files are named by relative paths.

    Raises `WrongUse` for a URL of no known file system, and `StoreError`, also later, for what
    fails there.
    """

    def __init__(self, url: str) -> None:
        self.shown = (redacted(url) if "://" in url else url).rstrip("/")
        with explained(self.shown):
            import fsspec

            self._fs, self._root = fsspec.url_to_fs(url, skip_instance_cache=True)
        kinds = (
            {*self._fs.protocol} if isinstance(self._fs.protocol, tuple) else {self._fs.protocol}
        )
        self._local, self._conditional = "file" in kinds, "s3" in kinds
        self._threads = _THREADS if self._fs.async_impl or self._local else 1

    @cached_property
    def files(self) -> set[str]:
        """All files there when this was first read; none if there is no such folder."""
        with explained(self.shown), contextlib.suppress(FileNotFoundError):
            return {name[len(self._root.rstrip("/")) + 1 :] for name in self._fs.find(self._root)}
        return set()

    def each(self, work: Callable[[str], _Result], names: Collection[str]) -> dict[str, _Result]:
        """The result for each name, several at once if the file system can; the first fault cancels
        those not begun.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            return dict(zip(names, pool.map(work, names), strict=True))

    def read(self, path: str, most: int = SMALL) -> bytes | None:
        """A file (on this machine, a plain one), or None if it is missing.

        Raises `CorruptStore` for one of more than `most` bytes, of which at most one more is read.
        """
        place = f"{self._root}/{path}"
        content: bytes | None = None
        with explained(f"{self.shown}/{path}"), contextlib.suppress(FileNotFoundError):
            if self._local:
                with os.fdopen(open_named(place), "rb") as file:
                    content = file.read(most + 1)
            else:
                content = bytes(self._fs.cat_file(place, start=0, end=most + 1))
        if content and len(content) > most:
            raise CorruptStore(
                f"{self.shown}/{path}: is larger than any such file; nothing of it was kept"
            )
        return content

    def fetch(self, path: str, known: FileRecord) -> bytes:
        """A file whose size and sha256 are known.

        It is read again if it arrives altered or cut short. Raises `CorruptStore` if it stays so,
        or is missing.
        """
        for _ in range(_TRIES):
            with contextlib.suppress(CorruptStore):  # it is larger
                content = self.read(path, min(known.bytes, _LARGEST))
                if content is not None and file_record(content) == known:
                    return content
        fault = "missing, altered or cut short, its sha256 is not what was published"
        raise CorruptStore(f"{self.shown}/{path}: {fault}; {_MEND}")

    def put(self, path: str, content: bytes, expected: bytes | None) -> bool:
        """Put a file in the place of the `expected` one (None: of none). Returns whether it is
        there now.

        Equal content is not sent again. Without conditional puts, which S3 has, another process may
        come in between.
        """
        place, most, there, tag = f"{self._root}/{path}", len(content) + SMALL, expected, ""
        if (
            expected is not None and self._conditional
        ):  # S3's name of the content, before that is read
            with explained(f"{self.shown}/{path}"), contextlib.suppress(FileNotFoundError):
                tag = str(self._fs.info(place, refresh=True)["ETag"])
        if expected is not None or not self._conditional:
            there = self.read(path, most)
        if there == content or there != expected:
            return there == content
        try:
            with explained(f"{self.shown}/{path}"):
                if self._local:
                    make_folder(Path(place).parent)
                    write_whole(Path(place), content)
                elif self._conditional:
                    self._fs.pipe_file(
                        place, content, **({"IfMatch": tag} if tag else {"mode": "create"})
                    )
                else:
                    self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
                    self._fs.pipe_file(place, content)
        except StoreError:
            if (now := self.read(path, most)) == there:
                raise
            return now == content  # a put whose answer was lost
        return True

    def create(self, path: str, content: bytes, replace: bool = False) -> None:
        """Put a file where there is none or one cut short. Raises `StoreError` for another it may
        not `replace`.
        """
        known = path in self.files or not self._conditional
        there = self.read(path, len(content) + SMALL) if known else None
        free = there is None or replace or content.startswith(there)
        if there != content and not (free and self.put(path, content, there)):
            remedy = "run this again when that one has ended, or with --replace if it never will"
            raise StoreError(
                f"{self.shown}/{path}: another push has begun this part with other numbers; {remedy}"
            )

    def published(self, digest: str) -> Published:
        """What was published under a root digest. Raises `CorruptStore` if it is not what the
        digest names.
        """
        path = RECORD.format(digest)
        content = self.read(path) if re.fullmatch(_HEX64, digest) else None
        with explained(where := f"{self.shown}/{path}"):
            if content is None or file_record(content).sha256 != digest:
                raise CorruptStore(f"{where}: is missing, or not what its digest names")
            return to_record(content, Published, where)
