"""Copies of stores: `Push` to a URL and `Pull` from one. What is copied already is not copied again.

Files come before the part.json that names them, and that before the record of what is published. So whatever is killed
leaves a store that is incomplete, never wrong.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ser.errors import CorruptStore, StoreError, WrongUse, printable

from .atomic_io import explain_disk_errors, move_into_place, read_small, sync_tree, workspace, write_file
from .feature import Feature
from .manifest import Manifest
from .part import Part, PartRecord, PartRows, publish
from .remote import (
    LATEST,
    RECORD,
    Published,
    PublishedFeature,
    PublishedManifest,
    PublishedPart,
    Remote,
    feature_names,
    file_record,
    split_digest,
)
from .spec import Spec, parse_checksummed
from .store import Store, open_store
from .verify import check_part

Told = Callable[[int], Any]  # so many bytes more are done
_CLAIM = ".claim"  # in a part's folder there: the sha256 of the part.json whose files are being put beside it


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
        if split_digest(url)[1]:
            raise WrongUse("a push makes a root digest of its own; leave out what follows the @")
        if not url:
            raise WrongUse("name the URL or folder to publish at")
        there = Path(url.removeprefix("file://"))
        # Its manifests would lose their transcripts. What was published has no tmp/ before it has a record.
        if (there / "tmp").is_dir() and not (there / LATEST).exists():
            raise WrongUse(f"{there}: is a store that is worked in; name a new folder to publish at")
        self._with_text, self._replace = with_text, replace
        names = corpus.split("+") if corpus else store.corpora() or [store.only_corpus()]
        known = [store.manifest(name) for name in names]
        self._manifests = known if with_text else [manifest.without_text() for manifest in known]
        asked = [store.feature(name, corpus) for name in feature_names(features)]
        self._features = asked if features else store.features()
        self.remote = Remote(url)
        self._sizes = self.remote.sizes()
        wanted = {one.corpus for one in known} | {one.parent.corpus for one in known if one.parent}
        found = [(feature, part) for feature in self._features for part in feature.parts()]
        found = [(feature, part) for feature, part in found if part.record.corpus in wanted]
        before = self._published(self.remote.read(LATEST))
        for manifest in self._manifests:  # before anything is sent
            self._counts(manifest, before.manifests.get(manifest.corpus))
        self._listed = {f"{k}/parts/{name}": part for k, f in before.features.items() for name, part in f.parts.items()}
        self.parts = [one for one in found if not self._is_there(*one)]
        self.there = len(found) - len(self.parts)
        self.bytes = sum(
            file.bytes
            for feature, part in self.parts
            for name, file in part.record.files.items()
            if replace or self._sizes.get(f"{_folder(feature, part)}/{name}") != file.bytes
        )

    def _is_there(self, feature: Feature, part: Part) -> bool:
        there = self._listed.get(_folder(feature, part))
        return there is not None and not (self._replace and there.record != file_record(_part_json(part)))

    def _published(self, latest: bytes | None) -> Published:
        return self.remote.published(latest.decode(errors="replace").strip()) if latest else Published()

    def run(self, told: Told = lambda _: None) -> str:
        """Push what is not there. Returns the URL with the root digest of all that is published there now.

        Raises `StoreError` if another push has begun a part with other numbers; all else is published then.
        """
        mine: dict[str, PublishedFeature] = {}
        others = 0
        with tempfile.TemporaryDirectory() as scratch:
            for feature in self._features:
                sent = {p.name: self._send(f, p, told, Path(scratch)) for f, p in self.parts if f is feature}
                others += sum(part is None for part in sent.values())
                spec = self._put_once(f"{_folder(feature)}/spec.json", read_small(feature.path / "spec.json"))
                parts = {name: part for name, part in sent.items() if part}
                mine[_folder(feature)] = PublishedFeature(feature.spec.name, file_record(spec), parts)
        for manifest in self._manifests:
            path = f"manifests/{manifest.corpus}/{manifest.digest}.parquet"
            if self._sizes.get(path) != len(manifest.content):
                self.remote.write(path, manifest.content)
        digest = self._publish(mine)
        if others:
            raise StoreError(
                f"{self.remote.shown}: all but {others} parts are published (@{digest}), which another push has begun "
                "with other numbers; run this again when that is done, or with --replace if nobody does it any more"
            )
        return f"{self.remote.shown}@{digest}"

    def _put_once(self, path: str, content: bytes) -> bytes:
        """Put a file there unless there is one. Returns what is there then."""
        if self.remote.swap(path, content):
            return content
        return self.remote.read(path) or content

    def _send(self, feature: Feature, part: Part, told: Told, scratch: Path) -> PublishedPart | None:
        """Put a part there, and its part.json last. None if another push has begun it with other numbers."""
        folder = _folder(feature, part)
        if f"{folder}/part.json" in self._sizes and not self._replace:
            with contextlib.suppress(CorruptStore):  # cut short: there are places where half a file is seen
                return _published_part(self.remote.read(f"{folder}/part.json") or b"", self.remote.where(folder))
        if not self._with_text and feature.spec.modality == "text" and part.record.arrays.keys() - _WITHOUT_TEXT:
            part = _without_tokens(feature, part, scratch)
        content, listed = _part_json(part), self._listed.get(folder)
        if listed and listed.record == file_record(content):
            return listed
        claim = file_record(content).sha256.encode()
        held = b"" if self._replace else self._put_once(f"{folder}/{_CLAIM}", claim)
        if held != claim and len(held) == len(claim):
            return None
        if held != claim:
            self.remote.write(f"{folder}/{_CLAIM}", claim)
        # What an earlier push has put under this claim is of this part; what lies there without one may be of another.
        begun = self._sizes if held == claim and f"{folder}/{_CLAIM}" in self._sizes else {}

        def send(name: str) -> None:
            known, source = part.record.files[name], part.folder / name
            if begun.get(f"{folder}/{name}") != known.bytes:
                with source.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() != known.sha256:
                        raise CorruptStore(f"{source}: altered (its sha256 is wrong); run `ser cache verify`")
                self.remote.write(f"{folder}/{name}", source)
                told(known.bytes)

        self.remote.each(send, part.record.files)
        self.remote.write(f"{folder}/part.json", content)
        return _published_part(content, folder)

    def _publish(self, mine: Mapping[str, PublishedFeature]) -> str:
        """Write the record of all that is there now, and make it the latest, with what others publish meanwhile."""
        while True:
            latest, tag = self.remote.peek(LATEST)
            before = self._published(latest)
            features = dict(before.features)
            for folder, one in mine.items():
                old = features.get(folder, one)
                features[folder] = msgspec.structs.replace(one, spec=old.spec, parts={**old.parts, **one.parts})
            manifests = before.manifests | {
                manifest.corpus: _published_manifest(manifest)
                for manifest in self._manifests
                if self._counts(manifest, before.manifests.get(manifest.corpus))
            }
            merged = Published(manifests, features)
            digest = file_record(merged.content).sha256
            specs = {folder: self.remote.fetch(f"{folder}/spec.json", one.spec) for folder, one in features.items()}
            parsed = {folder: parse_checksummed(spec, Spec, folder) for folder, spec in specs.items()}
            files = {RECORD.format(digest): merged.content}
            files["README.md"] = _card(self.remote.read("README.md"), merged, parsed, f"{self.remote.shown}@{digest}")
            for corpus in sorted({manifest.corpus for manifest in self._manifests}):
                files[f"manifests/{corpus}/latest"] = f"{manifests[corpus].file.sha256}\n".encode()
            for path, content in files.items():
                if self.remote.read(path) != content:
                    self.remote.write(path, content)
            now = f"{digest}\n".encode()
            if latest == now or self.remote.swap(LATEST, now, latest, tag):
                return digest

    def _counts(self, manifest: Manifest, there: PublishedManifest | None) -> bool:
        if there is None:
            return True
        path = f"manifests/{manifest.corpus}/{there.file.sha256}.parquet"
        held = Manifest.from_content(self.remote.fetch(path, there.file), there.file.sha256, self.remote.where(path))
        return _takes_place(held, manifest, self._replace, self.remote.shown)


_WRITTEN_HERE = b"<!-- written by `ser cache push`"
_WITHOUT_TEXT = {"values", "offsets", "word"}  # arrays that spell no word


def _folder(feature: Feature, part: Part | None = None) -> str:
    folder = f"{feature.path.parent.name}/{feature.path.name}"
    return f"{folder}/parts/{part.name}" if part else folder


def _part_json(part: Part) -> bytes:
    return read_small(part.folder / "part.json")


def _published_part(content: bytes, where: str) -> PublishedPart:
    record = parse_checksummed(content, PartRecord, f"{where}/part.json")
    size = sum(file.bytes for file in record.files.values())
    return PublishedPart(file_record(content), record.corpus, len(record.ids), size)


def _published_manifest(manifest: Manifest) -> PublishedManifest:
    texts = any(text is not None for text in manifest.column("text"))
    hours = round(sum(filter(None, manifest.column("duration"))) / 3600, 2)
    parent = manifest.parent.corpus if manifest.parent else None
    return PublishedManifest(file_record(manifest.content), len(manifest), hours, texts, manifest.synthetic, parent)


def _without_tokens(feature: Feature, part: Part, scratch: Path) -> Part:
    """The part without the extras that spell the transcripts, such as token ids; the same bytes each time."""
    record = part.record
    packed = feature.gather([(part, i) for i in range(len(record.ids))], list(record.ids))
    packed.extras = {name: array for name, array in packed.extras.items() if name in _WITHOUT_TEXT}
    rows = PartRows.from_packed(record.corpus, record.inputs, packed, record.quarantined)
    shutil.rmtree(scratch / "parts", ignore_errors=True)
    name = publish(scratch, scratch / "parts", rows, feature.spec, record.backend, record.written_by)
    return Part(scratch / "parts" / str(name), feature.fingerprint)


def _takes_place(held: Manifest, other: Manifest, replace: bool, where: object) -> bool:
    """Whether a manifest takes the place of what is held. Raises `WrongUse` for one that lacks something of it."""
    if held.same(other) or (held.without_text().same(other) and not replace):
        return False
    if not replace and (lost := held.lost(other)):
        raise WrongUse(
            f"{where}: corpus {held.corpus} has {len(held)} utterances there, and {len(lost)} of them (such as "
            f"{lost[0]!r}), their audio or their transcripts are not in the other manifest, which takes its place "
            "with --replace"
        )
    return True


def _card(there: bytes | None, published: Published, specs: Mapping[str, Spec], url: str) -> bytes:
    """The card, README.md, of what is published, or what is there where somebody has written it anew."""
    if there is not None and _WRITTEN_HERE not in there:
        return there
    import jinja2

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)  # no HTML
    environment.filters["cell"] = lambda text: printable(str(text)).translate({ord(c): f"\\{c}" for c in "|<`[*_"})
    template = environment.from_string(Path(__file__).with_name("card.md").read_text(encoding="utf-8"))
    return template.render(published=published, specs=specs, url=url).encode()


class Pull:
    """Copy what is published at a URL, `…@DIGEST` for nothing else, into a store: see `parts`, `bytes` and `run`.

    Raises `WrongUse` for what is not published there, and `CorruptStore` for what its digest does not name.
    """

    def __init__(
        self, url: str, path: Path, features: str | None = None, corpus: str | None = None, replace: bool = False
    ) -> None:
        url, pinned = split_digest(url)
        self.remote, self._path, self._replace = Remote(url), path, replace
        latest = pinned or (self.remote.read(LATEST) or b"").decode(errors="replace").strip()
        if not latest:
            raise WrongUse(f"{self.remote.shown}: nothing is published there; `ser cache push URL` does it")
        self.digest = latest
        self.chosen = self.remote.published(latest).select(features, corpus, self.remote.shown)
        asked = [
            (folder, name, part) for folder, one in self.chosen.features.items() for name, part in one.parts.items()
        ]
        here = [(one, path / one[0] / "parts" / one[1] / "part.json") for one in asked]
        self.parts = [one for one, place in here if not place.exists()]
        self.there, self.bytes = len(asked) - len(self.parts), sum(part.bytes for *_, part in self.parts)
        others = [place for one, place in here if place.exists() and file_record(read_small(place)) != one[2].record]
        if pinned and others:
            fault = f"{len(others)} parts, such as {others[0].parent}, are not those of {self.remote.shown}@{pinned}"
            raise WrongUse(f"{path}: {fault}; name a new folder with --store")

    def run(self, told: Told = lambda _: None) -> str:
        """Pull what is not here: parts one by one, each checked down to its last byte, then the manifests.

        Returns the URL with the root digest.
        The manifest of a corpus that is new here comes first, so that the store says what it lacks.
        """
        store = open_store(self._path, create=True)
        free = shutil.disk_usage(self._path).free
        if self.bytes > free:
            raise StoreError(f"{self._path}: {self.bytes / 1e6:.1f} MB are to come, and {free / 1e6:.1f} MB are free")
        manifests = [self._manifest(corpus, one) for corpus, one in self.chosen.manifests.items()]
        known = {one.corpus: store.manifest(one.corpus) for one in manifests if one.corpus in store.corpora()}
        for manifest in manifests:
            if manifest.corpus not in known:
                store.put_manifest(manifest, command="cache pull")
        later = [
            one
            for one in manifests
            if one.corpus in known and _takes_place(known[one.corpus], one, self._replace, self._path)
        ]
        features = {folder: store.add(self._spec(folder, one)) for folder, one in self.chosen.features.items()}
        for folder, name, part in self.parts:
            self._fetch(store, features[folder], f"{folder}/parts/{name}", part, told)
        for manifest in later:
            store.put_manifest(manifest, self._replace, "cache pull")
        return f"{self.remote.shown}@{self.digest}"

    def _manifest(self, corpus: str, one: PublishedManifest) -> Manifest:
        path = f"manifests/{corpus}/{one.file.sha256}.parquet"
        content = self.remote.fetch(path, one.file)
        manifest = Manifest.from_content(content, one.file.sha256, self.remote.where(path))
        if manifest.corpus != corpus:
            raise CorruptStore(f"{self.remote.where(path)}: is the manifest of corpus {manifest.corpus!r}")
        return manifest

    def _spec(self, folder: str, one: PublishedFeature) -> Spec:
        where = self.remote.where(f"{folder}/spec.json")
        spec = parse_checksummed(self.remote.fetch(f"{folder}/spec.json", one.spec), Spec, where)
        if f"{spec.feature}/{spec.fingerprint}" != folder:
            raise CorruptStore(f"{where}: stands in the folder of another feature or fingerprint")
        return spec

    def _fetch(self, store: Store, feature: Feature, path: str, known: PublishedPart, told: Told) -> None:
        content = self.remote.fetch(f"{path}/part.json", known.record)
        record = parse_checksummed(content, PartRecord, self.remote.where(f"{path}/part.json"))
        if _published_part(content, self.remote.where(path)) != known:
            raise CorruptStore(f"{self.remote.where(path)}: is another part than was published")
        with explain_disk_errors("pulling a part", store.path, known.bytes), workspace(store.path) as temporary:
            folder = temporary / path.rpartition("/")[2]

            def put(name: str, content: bytes) -> None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_file(folder / name, [content])

            def fetch(name: str) -> None:
                put(name, self.remote.fetch(f"{path}/{name}", record.files[name]))
                told(record.files[name].bytes)

            self.remote.each(fetch, record.files)
            put("part.json", content)
            sync_tree(folder)
            check_part(folder, feature.fingerprint, feature.spec)
            move_into_place(folder, feature.path / "parts" / folder.name)


def cache_folder(url: str) -> Path:
    """Where the store at a URL is copied to by `--store URL`: in $SER_STORES, or below the user's cache folder."""
    own = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(os.environ.get("SER_STORES") or Path(own) / "ser" / "stores")
    return base / file_record(url.encode()).sha256[:16]
