"""Copies of stores: `Push` to a URL and `Pull` from one. What is copied already is not copied again.

Files come before the part.json that names them, and that before the record of what is published. So whatever is killed
leaves a store that is incomplete, never wrong.
"""

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import eq
from pathlib import Path
from typing import Any

from ser.errors import CorruptStore, StoreError, WrongUse, printable, unknown

from .atomic_io import explain_disk_errors, move_into_place, read_small, workspace, write_folder
from .maintain import check_part
from .manifest import Manifest
from .part import FileRecord, Part, PartRecord, PartRows, file_record, publish
from .remote import LATEST, RECORD, Published, PublishedPart, Remote, explained, split_digest
from .spec import checksummed_json, read_checksummed
from .store import Store, open_store

Told = Callable[[int], Any]  # so many bytes more are done


class Push:
    """Publish a store, or these features and corpora of it, at a URL: see `parts`, `bytes` and `run`.

    Unless `with_text`, transcripts stay here: manifests keep their digests alone, and text features no token ids.
    Raises `WrongUse` for what the store does not have.
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
            raise WrongUse(f"{url!r}: name the URL, such as s3://bucket/store, or folder to publish at, and no digest")
        there = Path(url.removeprefix("file://"))
        # Its manifests would lose their transcripts. What was published has no tmp/ before it has a record.
        if (there / "tmp").is_dir() and not (there / LATEST).exists():
            raise WrongUse(f"{there}: is a store that is worked in; name a new folder to publish at")
        self._with_text, self._replace = with_text, replace
        corpora = corpus.split("+") if corpus else store.corpora() or [store.only_corpus()]
        known = [store.manifest(name) for name in corpora]
        self._manifests = {one.corpus: one if with_text else one.without_text() for one in known}
        names = features.split("+") if features else []
        self._features = [store.feature(name, corpus) for name in names] or store.features()
        self.remote, wanted = Remote(url), _whose_rows(known)
        both = [(one, part) for one in self._features for part in one.parts() if part.record.corpus in wanted]
        named = {f"{one.spec.folder}/parts/{part.folder.name}": (one, part) for one, part in both}
        before = self._published(self.remote.read(LATEST))
        self._merged(before)  # whether that may be, before anything is sent
        listed = {} if replace else before.parts  # with `replace` all is compared byte by byte
        self.parts = {folder: one for folder, one in named.items() if folder not in listed}
        left = self.remote.each(self._left, self.parts)
        self._left_there = {folder: part for folder, part in left.items() if part}
        self.parts = {folder: one for folder, one in self.parts.items() if folder not in self._left_there}
        self.there = len(named) - len(self.parts)
        self.bytes = sum(part.bytes for _, part in self.parts.values())

    def _published(self, latest: bytes | None) -> Published:
        """The record of what is there; with `replace` as if there were nothing, where that is damaged."""
        try:
            return self.remote.published(latest.decode(errors="replace").strip()) if latest else Published()
        except CorruptStore:
            if not self._replace:
                raise
            return Published()

    def _left(self, folder: str) -> PublishedPart | None:
        """A part that a push which was killed has left there whole, since its part.json came last."""
        if self._replace or f"{folder}/part.json" not in self.remote.files:
            return None
        with contextlib.suppress(CorruptStore):  # one that is cut short is put there again
            said, record = _published_part(self.remote.read(f"{folder}/part.json") or b"", folder)
            tells = self.parts[folder][0].spec.modality == "text" and record.arrays.keys() - _WITHOUT_TEXT
            if {f"{folder}/{name}" for name in record.files} <= self.remote.files and (self._with_text or not tells):
                return said
        return None

    def run(self, told: Told = lambda _: None) -> str:
        """Push what is not published yet. Returns the URL with the root digest of all that is published there.

        Raises `StoreError` if another push has begun a part with other numbers.
        """
        sent = self._left_there | self.remote.each(partial(self._send, told), self.parts)
        mine = {one.spec.folder: one.spec for one in self._features}
        for one in self._manifests.values():
            self.remote.create(f"manifests/{one.corpus}/{one.digest}.parquet", one.content, replace=True)
        while True:  # what others publish meanwhile is in the record too
            latest = self.remote.read(LATEST)
            before = self._published(latest)
            manifests = self._merged(before)
            records = {corpus: file_record(manifest.content) for corpus, manifest in manifests.items()}
            merged = Published(records, mine | before.features, before.parts | sent)
            digest = file_record(merged.content).sha256
            url = f"{self.remote.shown}@{digest}"
            files = {f"{folder}/spec.json": checksummed_json(merged.features[folder].to_json()) for folder in mine}
            files[RECORD.format(digest)] = merged.content
            files["README.md"] = _card(self.remote.read("README.md"), merged, [*manifests.values()], url)
            files |= {f"manifests/{name}/latest": f"{one.sha256}\n".encode() for name, one in records.items()}
            seen = {path: self.remote.read(path) for path in files} | {LATEST: latest}
            files[LATEST] = f"{digest}\n".encode()
            if all(self.remote.put(path, content, partial(eq, seen[path])) for path, content in files.items()):
                return url

    def _send(self, told: Told, folder: str) -> PublishedPart:
        """Put a part there, and its part.json last."""
        feature, part = self.parts[folder]
        with tempfile.TemporaryDirectory() as scratch:
            if not self._with_text and feature.spec.modality == "text" and part.record.arrays.keys() - _WITHOUT_TEXT:
                # Without the extras that spell the transcripts, such as token ids; the same bytes each time.
                record, parts = part.record, Path(scratch) / "parts"
                packed = feature.gather([(part, i) for i in range(len(record.ids))], list(record.ids))
                packed.extras = {name: array for name, array in packed.extras.items() if name in _WITHOUT_TEXT}
                rows = PartRows.from_packed(record.corpus, record.inputs, packed, record.quarantined)
                name = publish(parts.parent, parts, rows, feature.spec, record.backend, record.written_by)
                part = Part.open(parts / str(name), feature.fingerprint)
            # One after the other: of two pushes the first to put a file that differs goes on alone.
            for name, file in sorted(part.record.files.items()):
                content = read_small(part.folder / name)
                if file_record(content) != file:
                    raise CorruptStore(f"{part.folder / name}: altered (its sha256 is wrong); run `ser cache verify`")
                self.remote.create(f"{folder}/{name}", content, self._replace)
                told(file.bytes)
            content = read_small(part.folder / "part.json")
        self.remote.create(f"{folder}/part.json", content, self._replace)
        return _published_part(content, folder)[0]

    def _merged(self, before: Published) -> dict[str, Manifest]:
        """What is there, with those of ours that take the place of it."""
        merged = dict(self._manifests)
        for corpus, known in before.manifests.items():
            mine = merged.get(corpus)
            if mine is None or mine.digest != known.sha256:  # else it is not asked for: it may be lost there
                held = _manifest_there(self.remote, corpus, known)
                if mine is None or not held.gives_way(mine, self._replace, self.remote.shown):
                    merged[corpus] = held
        return merged


_WRITTEN_HERE = b"<!-- written by `ser cache push`"
_WITHOUT_TEXT = {"values", "offsets", "word"}  # arrays that spell no word


def _published_part(content: bytes, where: str) -> tuple[PublishedPart, PartRecord]:
    record = read_checksummed(f"{where}/part.json", PartRecord, content)
    size = sum(file.bytes for file in record.files.values())
    return PublishedPart(file_record(content), record.corpus, len(record.ids), size), record


def _manifest_there(remote: Remote, corpus: str, known: FileRecord) -> Manifest:
    path = f"manifests/{corpus}/{known.sha256}.parquet"
    with explained(where := remote.where(path)):
        return Manifest.from_content(remote.fetch(path, known), known.sha256, where, corpus)


def _whose_rows(manifests: Iterable[Manifest]) -> set[str]:
    """These corpora and their parents, whose audio rows count for them too."""
    return {name for one in manifests for name in (one.corpus, one.parent and one.parent.corpus) if name}


def _card(there: bytes | None, published: Published, manifests: Sequence[Manifest], url: str) -> bytes:
    """The card, README.md, of what is published, or what is there where somebody has written it anew."""
    if there is not None and _WRITTEN_HERE not in there:
        return there
    import jinja2

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # no HTML
    environment.filters["cell"] = lambda text: printable(str(text)).translate({ord(c): f"\\{c}" for c in "|<`[*_"})
    environment.filters["quote"] = shlex.quote
    template = environment.from_string(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    told = [one.corpus for one in manifests if one.table["text"].null_count < len(one)]
    return template.render(published=published, manifests=manifests, told=told, url=url).encode(errors="replace")


class Pull:
    """Copy what is published at a URL, `…@DIGEST` for nothing else, into a store: see `parts`, `bytes` and `run`.

    Raises `WrongUse` where nothing is published, and `CorruptStore` for what its digest does not name.
    """

    def __init__(
        self, url: str, path: Path, features: str | None = None, corpus: str | None = None, replace: bool = False
    ) -> None:
        self._path, self._replace = path, replace
        place, asked = split_digest(url)
        self.remote = Remote(place)
        if (latest := b"" if asked else self.remote.read(LATEST)) is None:
            more = "a root digest behind an @ has 64 digits"
            raise WrongUse(f"{self.remote.shown}: nothing is published there; `ser cache push URL` does it, and {more}")
        self.digest = asked or latest.decode(errors="replace").strip()
        there = self.remote.published(self.digest)
        names = set(corpus.split("+")) if corpus else there.manifests.keys()
        if strange := names - there.manifests.keys():
            raise unknown(f"corpus of {self.remote.shown}", min(strange), there.manifests)
        self._manifests = [_manifest_there(self.remote, name, there.manifests[name]) for name in sorted(names)]
        self._specs = {folder: there.features[folder] for folder in there.named(features, self.remote.shown)}
        every, wanted = there.parts_of(*self._specs), _whose_rows(self._manifests)
        parts = {path: part for path, part in every.items() if part.corpus in wanted}
        self.parts = {one: part for one, part in parts.items() if not (path / one).exists()}
        self.there = len(parts) - len(self.parts)
        self.bytes = sum(part.bytes for part in self.parts.values())
        for one in sorted(parts.keys() - self.parts):
            Part.open(path / one, one.split("/")[1])  # which lacks no file
            if asked and file_record(read_small(path / one / "part.json")) != parts[one].record:
                fault = f"{one} is another part here than that of {self.remote.shown}@{self.digest}"
                raise WrongUse(f"{path}: {fault}; name a new folder with --store")

    def run(self, told: Told = lambda _: None) -> str:
        """Pull what is not here: parts, each checked down to its last byte, then the manifests.

        Returns the URL with the root digest.
        The manifest of a corpus that is new here comes first, so that the store says what it lacks.
        """
        store = open_store(self._path, create=True)
        free = shutil.disk_usage(self._path).free
        if self.bytes > free:
            raise StoreError(f"{self._path}: {self.bytes / 1e6:.1f} MB are to come, and {free / 1e6:.1f} MB are free")
        for manifest in self._manifests:
            if manifest.corpus not in store.corpora():
                store.put_manifest(manifest, command="cache pull")
            # Whether it may take the place of another, before anything comes; it does so after all has come.
            store.manifest(manifest.corpus).gives_way(manifest, self._replace, self._path)
        for spec in self._specs.values():
            store.add(spec)
        self.remote.each(partial(self._fetch, store, told), self.parts)
        for manifest in self._manifests:
            store.put_manifest(manifest, self._replace, "cache pull")
        return f"{self.remote.shown}@{self.digest}"

    def _fetch(self, store: Store, told: Told, path: str) -> None:
        """Copy a part into a workspace, check it against its feature, and give it its name."""
        known, spec = self.parts[path], self._specs[path.partition("/parts/")[0]]
        with explained(where := self.remote.where(path)):
            content = self.remote.fetch(f"{path}/part.json", known.record)
            said, record = _published_part(content, where)
            if said != known:
                raise CorruptStore(f"{where}: is another part than was published")
        with explain_disk_errors("pulling a part", store.path, known.bytes), workspace(store.path) as temporary:

            def fetched(name: str, file: FileRecord) -> Iterator[bytes]:
                yield self.remote.fetch(f"{path}/{name}", file)
                told(file.bytes)

            folder = temporary / path.rpartition("/")[2]
            files = {name: fetched(name, file) for name, file in record.files.items()}
            write_folder(folder, {**files, "part.json": [content]})
            with explained(where, folder):
                check_part(folder, spec.fingerprint, spec)
            move_into_place(folder, store.path / path)


def cache_folder(url: str) -> Path:
    """Where the store at a URL is copied to by `--store URL`: in $SER_STORES, or below the user's cache folder."""
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(os.environ.get("SER_STORES") or Path(own) / "ser" / "stores")
    return base / file_record(url.encode()).sha256[:16]
