"""Publish a store at a URL. What is there already is not sent again.

Files come before the part.json that names them, and that before the record of what is published. So
whatever is killed leaves a store that is incomplete, never wrong.
"""

import contextlib
import re
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ser.cache.feature import Feature, read_part
from ser.cache.part import Part, PartRecord, file_record
from ser.cache.publish import publish_part
from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.disk.read import REPAIR, read_small
from ser.disk.records import checksummed_json
from ser.errors import CorruptStore, WrongUse

from .card import write_card
from .published import (
    LATEST,
    RECORD,
    Published,
    PublishedPart,
    read_part_record,
    read_published,
    read_published_manifest,
    split_digest,
    with_parents,
)
from .remote import Remote
from .urls import local_path

# Called with the bytes of each file that is done.
OnBytes = Callable[[int], Any]

# Arrays that spell no word; others, such as token ids, spell transcripts.
WITHOUT_TEXT = {"values", "offsets", "word"}


class Push:
    """Publish a store, or these features and corpora of it, at a URL; `run` does it.

    `parts` are those still to send by their folders, `already_there` how many need not be sent,
    and `bytes` what is to be sent. Unless `with_text`, transcripts stay here: manifests keep their
    digests alone, and text features no token ids. Raises `WrongUse` for what the store does not
    have.
    """

    def __init__(
        self,
        store: Store,
        url: str,
        features: str | None = None,
        corpus: str | None = None,
        with_text: bool = False,
        replace: bool = False,
        patience: float | None = None,
    ) -> None:
        _check_target(url)
        self._with_text = with_text
        self._replace = replace
        self.remote = Remote(url, patience)

        names = corpus.split("+") if corpus else store.corpora() or [store.only_corpus()]
        manifests = [store.manifest(name) for name in names]
        self._manifests = {
            manifest.corpus: manifest if with_text else manifest.without_text()
            for manifest in manifests
        }

        self._features = store.features()
        if features:
            self._features = [store.feature(name, corpus) for name in features.split("+")]

        published = self._read_published(self.remote.read(LATEST))
        # Raises, if it does, before anything is sent.
        self._merge_manifests(published)

        mine = self._find_parts(with_parents(manifests))

        # With `replace` all parts are compared byte by byte.
        self.parts = {
            folder: part
            for folder, part in mine.items()
            if replace or folder not in published.parts
        }
        self._unlisted = {}
        for folder, part in self.remote.each(self._find_unlisted, self.parts).items():
            if part:
                self._unlisted[folder] = part
                del self.parts[folder]

        self.already_there = len(mine) - len(self.parts)
        self.bytes = sum(part.bytes for _, part in self.parts.values())

    def _find_parts(self, corpora: set[str]) -> dict[str, tuple[Feature, Part]]:
        """The parts of these corpora, by their folders."""
        parts = {}
        for feature in self._features:
            for part in feature.parts():
                if part.record.corpus in corpora:
                    parts[f"{feature.spec.folder}/parts/{part.folder.name}"] = (feature, part)
        return parts

    def _read_published(self, latest: bytes | None) -> Published:
        """The record of what is published; with `replace`, a damaged one counts as none."""
        if not latest:
            return Published()
        try:
            return read_published(self.remote, latest.decode(errors="replace").strip())
        except CorruptStore:
            if not self._replace:
                raise
            return Published()

    def _find_unlisted(self, folder: str) -> PublishedPart | None:
        """A part that a killed push put there whole, but did not list: its part.json comes last."""
        if self._replace or f"{folder}/part.json" not in self.remote.files:
            return None

        # One that is cut short is sent again.
        with contextlib.suppress(CorruptStore):
            content = self.remote.read(f"{folder}/part.json") or b""
            published, record = read_part_record(content, folder)
            whole = {f"{folder}/{name}" for name in record.files} <= self.remote.files
            feature, _ = self.parts[folder]
            if whole and not self._spells_text(feature, record):
                return published
        return None

    def _spells_text(self, feature: Feature, record: PartRecord) -> bool:
        """Whether a push without text must leave out extras of a part that spell transcripts."""
        if self._with_text or feature.spec.modality != "text":
            return False
        return bool(record.arrays.keys() - WITHOUT_TEXT)

    def run(self, on_progress: OnBytes = lambda _: None) -> str:
        """Push what is not published yet; returns the URL with the root digest of all that is.

        Raises `StoreError` if another push has begun a part with other numbers.
        """
        # Also in parts that are whole by now, into which nobody writes again.
        self.remote.remove_unfinished()
        sent = self.remote.each(partial(self._send, on_progress), self.parts)

        for manifest in self._manifests.values():
            path = f"manifests/{manifest.corpus}/{manifest.digest}.parquet"
            self.remote.create(path, manifest.content, replace=True)

        while True:
            url = self._publish_record({**self._unlisted, **sent})
            if url is not None:
                return url

    def _publish_record(self, parts: dict[str, PublishedPart]) -> str | None:
        """Add what is sent to the record of what is published; returns the URL with its digest.

        None if somebody else published between reading and writing the record.
        """
        latest = self.remote.read(LATEST)
        before = self._read_published(latest)
        manifests = self._merge_manifests(before)

        specs = {feature.spec.folder: feature.spec for feature in self._features}
        published = Published(
            manifests={
                corpus: file_record(manifest.content) for corpus, manifest in manifests.items()
            },
            features={**specs, **before.features},
            parts={**before.parts, **parts},
        )
        digest = file_record(published.content).sha256
        url = f"{self.remote.shown}@{digest}"

        files = {}
        for folder in specs:
            files[f"{folder}/spec.json"] = checksummed_json(published.features[folder].to_json())
        files[RECORD.format(digest)] = published.content
        card = self.remote.read("README.md")
        files["README.md"] = write_card(card, published, list(manifests.values()), url)
        for corpus, record in published.manifests.items():
            files[f"manifests/{corpus}/latest"] = f"{record.sha256}\n".encode()

        seen = {path: self.remote.read(path) for path in files}

        # The name of the record comes last.
        files[LATEST] = f"{digest}\n".encode()
        seen[LATEST] = latest
        for path, content in files.items():
            if not self.remote.put(path, content, seen[path]):
                return None
        return url

    def _send(self, on_progress: OnBytes, folder: str) -> PublishedPart:
        """Put a part there, and its part.json last."""
        feature, part = self.parts[folder]
        with tempfile.TemporaryDirectory() as scratch:
            if self._spells_text(feature, part.record):
                part = _publish_without_text(feature, part, Path(scratch))

            # One after the other: of two pushes the first to put a file that differs goes on alone.
            for name, known in sorted(part.record.files.items()):
                content = read_small(part.folder / name)
                if file_record(content) != known:
                    fault = f"altered (its sha256 is wrong); {REPAIR}"
                    raise CorruptStore(f"{part.folder / name}: {fault}")
                self.remote.create(f"{folder}/{name}", content, self._replace)
                on_progress(known.bytes)

            record = read_small(part.folder / "part.json")

        self.remote.create(f"{folder}/part.json", record, self._replace)
        published, _ = read_part_record(record, folder)
        return published

    def _merge_manifests(self, before: Published) -> dict[str, Manifest]:
        """The published manifests, and ours where they are new or replace those."""
        merged = dict(self._manifests)
        for corpus, record in before.manifests.items():
            mine = merged.get(corpus)
            # An equal one is not read: it may be lost there.
            if mine is not None and mine.digest == record.sha256:
                continue
            published = read_published_manifest(self.remote, corpus, record)
            if mine is None or not published.gives_way(mine, self._replace, self.remote.shown):
                merged[corpus] = published
        return merged


def _check_target(url: str) -> None:
    """Raise `WrongUse` for what is no URL, and for a store that is in use.

    That would lose its transcripts; it has a tmp/, and no record as a published one has.
    """
    one_slash = re.match("(?!file:)[a-z0-9]{2,}:/(?!/)", url)
    _, digest = split_digest(url)
    if not url or one_slash or digest:
        example = "such as s3://bucket/store, or folder to publish at, and no digest"
        raise WrongUse(f"{url!r}: name the URL, {example}")

    target = local_path(url)
    if target is None:
        return
    if (target / "tmp").is_dir() and not (target / LATEST).exists():
        raise WrongUse(f"{target}: is a store that is in use; name a new folder to publish at")


def _publish_without_text(feature: Feature, part: Part, scratch: Path) -> Part:
    """The part without the extras that spell transcripts: the same bytes each time."""
    rows = read_part(feature, part)
    rows.extras = {name: arrays for name, arrays in rows.extras.items() if name in WITHOUT_TEXT}

    copy = Feature(scratch, scratch, feature.spec)
    name = publish_part(copy, rows, part.record.backend, part.record.written_by)
    return Part.open(scratch / "parts" / str(name), feature.fingerprint)
