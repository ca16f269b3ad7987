"""Where published stores lie: one file at a time, through fsspec, and the record of what is published.

A published store has a store's layout. Beside it `published-<digest>.json`, which never changes, names all by its
sha256, and `published-latest` holds the digest of the newest. What comes from there is somebody else's: names, sizes
and digests are checked before they count.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from ser.errors import DISTRIBUTION, CorruptStore, SerError, StoreError, WrongUse, unknown

from .atomic_io import SMALL, make_folder, write_whole
from .blocks import Count
from .manifest import is_name
from .part import FileRecord
from .spec import canonical_json, check_version

LATEST, RECORD = "published-latest", "published-{}.json"
_HEX16, _HEX64 = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{64}")
_LARGEST = 4 << 30  # bytes of one file: several times what a part may have
_TRIES = 3
_Item = TypeVar("_Item")


class PublishedManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A corpus's manifest, a file named by its digest, and what it says."""

    file: FileRecord
    utterances: Count
    hours: float
    texts: bool  # whether the transcripts are in it
    synthetic: bool
    parent: str | None  # the corpus whose audio rows count here too


class PublishedPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part's part.json, and what that says."""

    record: FileRecord
    corpus: str
    rows: Count  # utterances
    bytes: Count  # of its other files


class PublishedFeature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A feature's name with its variant, its spec.json, and its parts."""

    name: str
    spec: FileRecord
    parts: dict[str, PublishedPart]


class Published(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that is published: manifests by corpus, features by `<feature>/<fingerprint>`.

    The sha256 of its `content` is the root digest.
    """

    manifests: dict[str, PublishedManifest] = {}
    features: dict[str, PublishedFeature] = {}
    format_version: int = 1

    def __post_init__(self) -> None:
        """Raise `ValueError` for what types cannot say: names become paths, on both sides."""
        parts = {name: part for feature in self.features.values() for name, part in feature.parts.items()}
        folders = [folder.partition("/") for folder in self.features]
        corpora = [*self.manifests, *(part.corpus for part in parts.values()), *(name for name, *_ in folders)]
        if bad := [name for name in corpora if not is_name(name)]:
            raise ValueError(f"it names {bad[0]!r}")
        if bad := [name for name in (*parts, *(one for *_, one in folders)) if not _HEX16.fullmatch(name)]:
            raise ValueError(f"it names {bad[0]!r}")
        if not all(_HEX64.fullmatch(manifest.file.sha256) for manifest in self.manifests.values()):
            raise ValueError("a manifest's digest")

    @property
    def content(self) -> bytes:
        """The record as a file."""
        return canonical_json(self)

    def select(self, features: str | None, corpora: str | None, where: object) -> "Published":
        """Only these features, "a+b:variant@fingerprint", and the parts of these corpora and of their parents.

        Raises `WrongUse` for what is not there.
        """
        if strange := {*(corpora.split("+") if corpora else ())} - self.manifests.keys():
            raise unknown(f"corpus of {where}", min(strange), self.manifests)
        manifests = {name: one for name, one in self.manifests.items() if not corpora or name in corpora.split("+")}
        wanted = manifests.keys() | {one.parent for one in manifests.values()}
        chosen = set() if features else set(self.features)
        for asked in feature_names(features):
            plain, _, prefix = asked.partition("@")
            near = {one for one in self.features if one.startswith(f"{plain.partition(':')[0]}/{prefix}")}
            # What no variant is called may be an option of the reader: `hubert:hop=0.1` reads the plain one.
            if not (found := {one for one in near if self.features[one].name == plain} or near):
                raise unknown(f"feature of {where}", asked, {one.name for one in self.features.values()})
            chosen |= found
        kept = {}
        for folder in sorted(chosen):
            parts = {name: part for name, part in self.features[folder].parts.items() if part.corpus in wanted}
            kept[folder] = msgspec.structs.replace(self.features[folder], parts=parts)
        return Published(manifests, kept)


def feature_names(features: str | None) -> list[str]:
    """The names in "a+b" or "a,b"; a comma before `key=` belongs to a variant."""
    return re.split(r"\+|,(?!\w+=)", features) if features else []


def file_record(content: bytes) -> FileRecord:
    """A file's size and sha256."""
    return FileRecord(len(content), hashlib.sha256(content).hexdigest())


def split_digest(url: str) -> tuple[str, str | None]:
    """The URL, and the root digest behind its `@`, if there is one."""
    found = re.fullmatch(rf"(.+)@({_HEX64.pattern})", url)
    return (found[1], found[2]) if found else (url, None)


def redacted(text: str) -> str:
    """A text without the users, passwords and signatures that URLs in it hold."""
    return re.sub(r"(?<=://)[^/@\s]*@|\?\S*", "", text)


@contextlib.contextmanager
def _explained(where: object) -> Iterator[None]:
    """Turn what fsspec raises, and what is below it, into one sentence."""
    try:
        yield
    except SerError:
        raise
    except ImportError as error:
        remedy = f"pip install '{DISTRIBUTION}[cloud]', or the package that is named"
        raise WrongUse(f"{where}: needs a package that is not here ({error}); {remedy}") from None
    except FileNotFoundError:
        raise StoreError(f"{where}: there is no such bucket, repository, folder or file") from None
    except Exception as error:  # the classes of each file system, which cannot be named without it
        first = redacted(" ".join(str(error).split()))[:200] or type(error).__name__
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        if re.search("Permission|Credential|Auth|Gated", kinds):
            remedy = "check the credentials, which come from the environment, and this machine's clock"
            raise StoreError(f"{where}: access is denied ({first}); {remedy}") from None
        if type(error) is ValueError:
            raise WrongUse(f"{where}: cannot be used as a place of stores ({first})") from None
        remedy = "check the network and the address, then run the same command again, which goes on from there"
        raise StoreError(f"{where}: cannot be reached ({first}); {remedy}") from None


class Remote:
    """A folder somewhere, by its URL or path; its files are named by relative paths.

    Raises `WrongUse` for a URL that no file system is for, and `StoreError`, here and later, for what fails there.
    """

    def __init__(self, url: str) -> None:
        self.shown = redacted(url).rstrip("/")
        with _explained(self.shown):
            import fsspec

            if url.startswith("hf://"):
                from huggingface_hub.constants import HF_HUB_OFFLINE

                if HF_HUB_OFFLINE:
                    raise StoreError(
                        f"{self.shown}: HF_HUB_OFFLINE is set, so it is not asked; unset that, or name a copy"
                    )
            self._fs, self._root = fsspec.url_to_fs(url, skip_instance_cache=True)
        kinds = {*self._fs.protocol} if isinstance(self._fs.protocol, tuple) else {self._fs.protocol}
        self._local, self._conditional = "file" in kinds, "s3" in kinds
        self._renames = not kinds.isdisjoint({"sftp", "ssh", "smb", "ftp"})  # where half a file is seen
        self._threads = 8 if self._fs.async_impl else 1

    def where(self, path: str) -> str:
        """A file there, for messages."""
        return f"{self.shown}/{path}"

    def sizes(self) -> dict[str, int]:
        """Every file there with its size; none where there is no such folder."""
        with _explained(self.shown):
            with contextlib.suppress(FileNotFoundError):
                found = self._fs.find(self._root, detail=True)
                return {name[len(self._root.rstrip("/")) + 1 :]: one["size"] for name, one in found.items()}
            return {}

    def each(self, work: Callable[[_Item], Any], items: Iterable[_Item]) -> None:
        """Do this for each, several at once where the file system can."""
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in pool.map(work, items):  # the first fault cancels what has not begun
                pass

    def read(self, path: str) -> bytes | None:
        """A small file, or None if there is none. Raises `CorruptStore` for one that is not small."""
        with _explained(self.where(path)):
            try:
                content: bytes = self._fs.cat_file(f"{self._root}/{path}", end=SMALL)
            except FileNotFoundError:
                return None
        if len(content) >= SMALL:
            raise CorruptStore(f"{self.where(path)}: is larger than any such file; nothing of it was kept")
        return content

    def fetch(self, path: str, known: FileRecord) -> bytes:
        """A file of which size and sha256 are known; no byte more is asked for.

        What comes altered or cut short is asked for again. Raises `CorruptStore` if it stays so.
        """
        if known.bytes > _LARGEST:
            raise CorruptStore(
                f"{self.where(path)}: is said to have {known.bytes} bytes, more than any file of a store"
            )
        for _ in range(_TRIES):
            with _explained(self.where(path)):
                content: bytes = self._fs.cat_file(f"{self._root}/{path}", start=0, end=known.bytes)
            if file_record(content) == known:
                return content
        raise CorruptStore(f"{self.where(path)}: altered or cut short, its sha256 is not the one that was published")

    def write(self, path: str, what: bytes | Path, **condition: str) -> None:
        """Put a file there, or new content in its place, whole or not at all."""
        place = f"{self._root}/{path}"
        with _explained(self.where(path)):
            if self._local:
                make_folder(Path(place).parent)
                write_whole(Path(place), what if isinstance(what, bytes) else what.read_bytes())
                return
            begun = f"{place}.begun" if self._renames else place
            if self._renames:
                self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            if isinstance(what, bytes):
                self._fs.pipe_file(begun, what, **condition)
            else:
                self._fs.put_file(str(what), begun)
            if self._renames:
                self._fs.mv(begun, place)

    def peek(self, path: str) -> tuple[bytes | None, str]:
        """What a small file holds, and the tag that it had just before."""
        with _explained(self.where(path)):
            tag = ""
            with contextlib.suppress(FileNotFoundError):
                tag = self._fs.info(f"{self._root}/{path}", refresh=True)["ETag"] if self._conditional else ""
        return self.read(path), tag

    def swap(self, path: str, content: bytes, seen: bytes | None = None, tag: str = "") -> bool:
        """Put new content in the place of what was `seen` by `peek` (None: no file). False if that is not there now.

        Without conditional puts, as S3 has them, another process may come in between.
        """
        if not self._conditional and self.read(path) != seen:
            return False
        condition = {"mode": "create"} if seen is None else {"IfMatch": tag}
        try:
            self.write(path, content, **(condition if self._conditional else {}))
        except StoreError:
            if (now := self.read(path)) == seen:
                raise
            return now == content  # a put whose answer was lost
        return True

    def published(self, digest: str) -> Published:
        """What was published under a root digest. Raises `CorruptStore` if it is not what the digest names."""
        where = self.where(RECORD.format(digest))
        content = self.read(RECORD.format(digest)) if _HEX64.fullmatch(digest) else None
        if content is None:
            raise StoreError(f"{where}: is missing, so nothing is published there under this digest")
        if hashlib.sha256(content).hexdigest() != digest:
            raise CorruptStore(f"{where}: is not what its digest names; nothing was copied")
        try:
            check_version(msgspec.json.decode(content, type=dict).get("format_version"), where)
            return msgspec.json.decode(content, type=Published)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise CorruptStore(f"{where}: not the record of a published store ({error})") from None
