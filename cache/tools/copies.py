"""Copies of stores: `Push` to a URL and `Pull` from one. What is copied already is not copied
again.

Files come before the part.json that names them, and that before the record of what is published. So
whatever is killed leaves a store that is incomplete, never wrong.
"""

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ser.cache.feature import Feature, read_part
from ser.cache.part import FileRecord, Part, PartRecord, file_record
from ser.cache.publish import publish_part
from ser.cache.store import Store, open_store
from ser.corpus.manifest import Manifest
from ser.disk.faults import explain_disk_errors
from ser.disk.read import read_small
from ser.disk.records import checksummed_json, parse_checksummed
from ser.disk.workspace import workspace
from ser.disk.write import move_into_place, write_folder
from ser.errors import CorruptStore, StoreError, WrongUse, printable, unknown

from .maintain import check_part
from .remote import LATEST, RECORD, Published, PublishedPart, Remote, explained, split_digest

OnProgress = Callable[[int], Any]  # called with the bytes of each file that is done


class Push:
    """Publish a store, or these features and corpora of it, at a URL: see `parts`, `bytes` and
    `run`.

    Unless `with_text`, transcripts stay here: manifests keep their digests alone, and text features
    no token ids. Raises `WrongUse` for what the store does not have.
    """

    def __init__(
        self,
        store: Store,
        url: str,
        features: str | None = None,
        corpus: str | None = None,
        with_text: bool = False,
        replace: bool = False,
    ) -> None:
        if not url or re.match("(?!file:)[a-z0-9]{2,}:/(?!/)", url) or split_digest(url)[1]:
            raise WrongUse(
                f"{url!r}: name the URL, such as s3://bucket/store, or folder to publish at, and no digest"
            )
        target = Path(url.removeprefix("file://"))
        # A store in use would lose its transcripts; it has a tmp/, and no record as a published one
        # has.
        if (target / "tmp").is_dir() and not (target / LATEST).exists():
            raise WrongUse(f"{target}: is a store that is in use; name a new folder to publish at")
        self._with_text, self._replace, self.remote = with_text, replace, Remote(url)
        names = corpus.split("+") if corpus else store.corpora() or [store.only_corpus()]
        manifests = [store.manifest(name) for name in names]
        self._manifests = {
            one.corpus: one if with_text else one.without_text() for one in manifests
        }
        self._features = (
            [store.feature(name, corpus) for name in features.split("+")]
            if features
            else store.features()
        )
        before = self._published(self.remote.read(LATEST))
        self._merged(before)  # raises, if it does, before anything is sent
        corpora, parts = _corpora_of_rows(manifests), dict[str, tuple[Feature, Part]]()
        for feature in self._features:
            mine = [part for part in feature.parts() if part.record.corpus in corpora]
            parts |= {
                f"{feature.spec.folder}/parts/{part.folder.name}": (feature, part) for part in mine
            }
        # With `replace` all parts are compared byte by byte.
        self.parts = {
            folder: part for folder, part in parts.items() if replace or folder not in before.parts
        }
        self._unlisted = self.remote.each(self._find_unlisted, self.parts)
        self.parts = {
            folder: part for folder, part in self.parts.items() if not self._unlisted[folder]
        }
        self.there = len(parts) - len(self.parts)
        self.bytes = sum(part.bytes for _, part in self.parts.values())

    def _published(self, latest: bytes | None) -> Published:
        """The record of what is published; with `replace`, a damaged one counts as none."""
        try:
            return (
                self.remote.published(latest.decode(errors="replace").strip())
                if latest
                else Published()
            )
        except CorruptStore:
            if not self._replace:
                raise
            return Published()

    def _find_unlisted(self, folder: str) -> PublishedPart | None:
        """A part that a killed push put there whole, but did not list: its part.json comes last."""
        if self._replace or f"{folder}/part.json" not in self.remote.files:
            return None
        with contextlib.suppress(CorruptStore):  # one that is cut short is sent again
            published, record = _published_part(
                self.remote.read(f"{folder}/part.json") or b"", folder
            )
            whole = {f"{folder}/{name}" for name in record.files} <= self.remote.files
            if whole and not self._spells_text(self.parts[folder][0], record):
                return published
        return None

    def _spells_text(self, feature: Feature, record: PartRecord) -> bool:
        """Whether a part has extras that spell transcripts, such as token ids, in a push without
        text.
        """
        return (
            not self._with_text
            and feature.spec.modality == "text"
            and bool(record.arrays.keys() - _WITHOUT_TEXT)
        )

    def run(self, on_progress: OnProgress = lambda _: None) -> str:
        """Push what is not published yet. Returns the URL with the root digest of all that is
        published there.

        Raises `StoreError` if another push has begun a part with other numbers.
        """
        there = {folder: part for folder, part in self._unlisted.items() if part}
        there |= self.remote.each(partial(self._send, on_progress), self.parts)
        mine = {one.spec.folder: one.spec for one in self._features}
        for one in self._manifests.values():
            self.remote.create(
                f"manifests/{one.corpus}/{one.digest}.parquet", one.content, replace=True
            )
        while True:  # until nobody else publishes between reading and writing the record
            latest = self.remote.read(LATEST)
            before = self._published(latest)
            manifests = self._merged(before)
            records = {
                corpus: file_record(manifest.content) for corpus, manifest in manifests.items()
            }
            merged = Published(records, mine | before.features, before.parts | there)
            digest = file_record(merged.content).sha256
            url = f"{self.remote.shown}@{digest}"
            files = {
                f"{folder}/spec.json": checksummed_json(merged.features[folder].to_json())
                for folder in mine
            }
            files[RECORD.format(digest)] = merged.content
            files["README.md"] = _card(
                self.remote.read("README.md"), merged, [*manifests.values()], url
            )
            files |= {
                f"manifests/{name}/latest": f"{one.sha256}\n".encode()
                for name, one in records.items()
            }
            seen = {path: self.remote.read(path) for path in files} | {LATEST: latest}
            files[LATEST] = f"{digest}\n".encode()
            if all(self.remote.put(path, content, seen[path]) for path, content in files.items()):
                return url

    def _send(self, on_progress: OnProgress, folder: str) -> PublishedPart:
        """Put a part there, and its part.json last."""
        feature, part = self.parts[folder]
        with tempfile.TemporaryDirectory() as scratch:
            if self._spells_text(
                feature, record := part.record
            ):  # published without: the same bytes each time
                rows = read_part(feature, part)
                rows.extras = {
                    name: arrays for name, arrays in rows.extras.items() if name in _WITHOUT_TEXT
                }
                copy = Feature(Path(scratch), Path(scratch), feature.spec)
                name = publish_part(copy, rows, record.backend, record.written_by)
                part = Part.open(copy.path / "parts" / str(name), feature.fingerprint)
            # One after the other: of two pushes the first to put a file that differs goes on alone.
            for name, file in sorted(part.record.files.items()):
                content = read_small(part.folder / name)
                if file_record(content) != file:
                    raise CorruptStore(
                        f"{part.folder / name}: altered (its sha256 is wrong); run `ser cache verify`"
                    )
                self.remote.create(f"{folder}/{name}", content, self._replace)
                on_progress(file.bytes)
            content = read_small(part.folder / "part.json")
        self.remote.create(f"{folder}/part.json", content, self._replace)
        return _published_part(content, folder)[0]

    def _merged(self, before: Published) -> dict[str, Manifest]:
        """The published manifests, and ours where they are new or replace those."""
        merged = dict(self._manifests)
        for corpus, record in before.manifests.items():
            mine = merged.get(corpus)
            if (
                mine is None or mine.digest != record.sha256
            ):  # an equal one is not read: it may be lost there
                published = _published_manifest(self.remote, corpus, record)
                if mine is None or not published.gives_way(mine, self._replace, self.remote.shown):
                    merged[corpus] = published
        return merged


_WRITTEN_HERE = b"<!-- written by `ser cache push`"
_WITHOUT_TEXT = {"values", "offsets", "word"}  # arrays that spell no word


def _published_part(content: bytes, where: str) -> tuple[PublishedPart, PartRecord]:
    record = parse_checksummed(content, PartRecord, f"{where}/part.json")
    size = sum(file.bytes for file in record.files.values())
    return PublishedPart(file_record(content), record.corpus, len(record.ids), size), record


def _published_manifest(remote: Remote, corpus: str, record: FileRecord) -> Manifest:
    path = f"manifests/{corpus}/{record.sha256}.parquet"
    with explained(where := f"{remote.shown}/{path}"):
        return Manifest.from_content(remote.fetch(path, record), record.sha256, where, corpus)


def _corpora_of_rows(manifests: Iterable[Manifest]) -> set[str]:
    """These corpora and their parents, whose audio rows count for them too."""
    return {
        name for one in manifests for name in (one.corpus, one.parent and one.parent.corpus) if name
    }


def _feature_of(part_folder: str) -> str:
    return part_folder.partition("/parts/")[0]


def _card(
    there: bytes | None, published: Published, manifests: Sequence[Manifest], url: str
) -> bytes:
    """The card, README.md, of what is published; the one that is there, if a person has rewritten
    it.
    """
    if there is not None and _WRITTEN_HERE not in there:
        return there
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )  # no HTML
    environment.filters["cell"] = lambda text: printable(str(text)).translate(
        {ord(c): f"\\{c}" for c in "|<`[*_"}
    )
    environment.filters["quote"] = shlex.quote
    template = environment.from_string(
        Path(__file__).with_name("card.md").read_text(encoding="utf-8")
    )
    parts = defaultdict[str, list[PublishedPart]](list)
    for folder, part in published.parts.items():
        parts[_feature_of(folder)].append(part)
    with_text = [one.corpus for one in manifests if one.table["text"].null_count < len(one)]
    facts = {
        "features": published.features,
        "parts": parts,
        "manifests": manifests,
        "with_text": with_text,
    }
    return template.render(url=url, **facts).encode(errors="replace")


class Pull:
    """Copy what is published at a URL into a store, or at `URL@DIGEST` just that: see `parts`,
    `bytes` and `run`.

    Raises `WrongUse` if nothing is published there, and `CorruptStore` for what its digest does not
    name.
    """

    def __init__(
        self,
        url: str,
        path: Path,
        features: str | None = None,
        corpus: str | None = None,
        replace: bool = False,
    ) -> None:
        self._path, self._replace = path, replace
        place, digest = split_digest(url)
        self.remote = Remote(place)
        where = self.remote.shown
        if (latest := b"" if digest else self.remote.read(LATEST)) is None:
            more = "a root digest after an @ has 64 digits"
            raise WrongUse(
                f"{where}: nothing is published there; `ser cache push URL` does it, and {more}"
            )
        self.digest = digest or latest.decode(errors="replace").strip()
        there = self.remote.published(self.digest)
        names = set(corpus.split("+")) if corpus else there.manifests.keys()
        if unknown_names := names - there.manifests.keys():
            raise unknown(f"corpus of {where}", min(unknown_names), there.manifests)
        self._manifests = [
            _published_manifest(self.remote, name, there.manifests[name]) for name in sorted(names)
        ]
        folders = sorted(there.named(features, where) if features else there.features)
        self._specs = {folder: there.features[folder] for folder in folders}
        corpora = _corpora_of_rows(self._manifests)
        parts = {folder: part for folder, part in there.parts.items() if part.corpus in corpora}
        parts = {
            folder: part for folder, part in parts.items() if _feature_of(folder) in self._specs
        }
        self.parts = {
            folder: part for folder, part in parts.items() if not (path / folder).exists()
        }
        self.there = len(parts) - len(self.parts)
        self.bytes = sum(part.bytes for part in self.parts.values())
        for folder in sorted(parts.keys() - self.parts):
            Part.open(path / folder, folder.split("/")[1])  # raises if a file is missing
            if (
                digest
                and file_record(read_small(path / folder / "part.json")) != parts[folder].record
            ):
                fault = f"{folder} is another part here than that of {where}@{digest}"
                raise WrongUse(f"{path}: {fault}; name a new folder with --store")

    def run(self, on_progress: OnProgress = lambda _: None) -> str:
        """Pull what is missing: parts, each checked down to its last byte, then the manifests.

        Returns the URL with the root digest. The manifest of a corpus that is new here comes first,
        so that the store knows what it lacks.
        """
        store = open_store(self._path, create=True)
        free = shutil.disk_usage(self._path).free
        if self.bytes > free:
            sizes = f"{self.bytes / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
            raise StoreError(
                f"{self._path}: no room to pull this: {sizes}; free some space, or name another --store"
            )
        for manifest in self._manifests:
            if manifest.corpus not in store.corpora():
                store.put_manifest(manifest, command="cache pull")
            # Raises before anything is copied if it may not replace the one here, which is done
            # when all is copied.
            store.manifest(manifest.corpus).gives_way(manifest, self._replace, self._path)
        for spec in self._specs.values():
            store.add(spec)
        self.remote.each(partial(self._fetch, store, on_progress), self.parts)
        for manifest in self._manifests:
            store.put_manifest(manifest, self._replace, "cache pull")
        return f"{self.remote.shown}@{self.digest}"

    def _fetch(self, store: Store, on_progress: OnProgress, path: str) -> None:
        """Copy a part into a workspace, check it against its feature, and give it its name."""
        expected, spec = self.parts[path], self._specs[_feature_of(path)]
        with explained(where := f"{self.remote.shown}/{path}"):
            content = self.remote.fetch(f"{path}/part.json", expected.record)
            published, record = _published_part(content, where)
            if published != expected:
                raise CorruptStore(f"{where}: is another part than was published")
        with (
            explain_disk_errors("pulling a part", store.path, expected.bytes),
            workspace(store.path) as temporary,
        ):

            def fetched(name: str, file: FileRecord) -> Iterator[bytes]:
                yield self.remote.fetch(f"{path}/{name}", file)
                on_progress(file.bytes)

            folder = temporary / path.rpartition("/")[2]
            files = {name: fetched(name, file) for name, file in record.files.items()}
            write_folder(folder, {**files, "part.json": [content]})
            with explained(where, folder):
                check_part(folder, spec.fingerprint, spec)
            move_into_place(folder, store.path / path)


def cache_folder(url: str) -> Path:
    """Where the store at a URL is copied to by `--store URL`: in $SER_STORES, or below the user's
    cache folder.
    """
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(os.environ.get("SER_STORES") or Path(own) / "ser" / "stores")
    return base / file_record(url.encode()).sha256[:16]
