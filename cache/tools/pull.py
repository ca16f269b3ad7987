"""Copy what is published at a URL into a store. What is copied already is not copied again."""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ser.cache.part import FileRecord, Part, file_record
from ser.cache.store import Store, open_store
from ser.disk.faults import explain_disk_errors
from ser.disk.read import read_small
from ser.disk.workspace import workspace
from ser.disk.write import move_into_place, write_folder
from ser.errors import CorruptStore, StoreError, WrongUse, unknown

from .published import (
    LATEST,
    Published,
    PublishedPart,
    feature_folder,
    read_part_record,
    read_published,
    read_published_manifest,
    split_digest,
    with_parents,
)
from .remote import Remote, explained
from .verify import check_part

# Called with the bytes of each file that is done.
OnBytes = Callable[[int], Any]


class Pull:
    """Copy what is published at a URL into a store, or at `URL@DIGEST` just that; `run` does it.

    `parts` are those still to fetch by their folders, `already_there` how many the store has,
    and `bytes` what is to be fetched. Raises `WrongUse` if nothing is published there, and
    `CorruptStore` for what its digest does not name.
    """

    def __init__(
        self,
        url: str,
        path: Path,
        features: str | None = None,
        corpus: str | None = None,
        replace: bool = False,
        patience: float | None = None,
    ) -> None:
        self._path = path
        self._replace = replace
        place, digest = split_digest(url)
        self.remote = Remote(place, patience)
        self.digest = digest or self._read_latest()

        published = read_published(self.remote, self.digest)
        url = self.remote.shown

        corpora = set(corpus.split("+")) if corpus else set(published.manifests)
        strangers = corpora - published.manifests.keys()
        if strangers:
            raise unknown(f"corpus of {url}", min(strangers), published.manifests)
        self._manifests = [
            read_published_manifest(self.remote, name, published.manifests[name])
            for name in sorted(corpora)
        ]

        folders = set(published.features)
        if features:
            folders = published.folders_of(features, url)
        self._specs = {folder: published.features[folder] for folder in sorted(folders)}

        wanted = self._find_parts(published)
        self.parts = {
            folder: part for folder, part in wanted.items() if not (path / folder).exists()
        }
        self.already_there = len(wanted) - len(self.parts)
        self.bytes = sum(part.bytes for part in self.parts.values())

        for folder in sorted(wanted.keys() - self.parts.keys()):
            self._check_part_here(folder, wanted[folder], pinned=digest is not None)

    def _read_latest(self) -> str:
        """The latest root digest. Raises `WrongUse` if nothing is published."""
        latest = self.remote.read(LATEST)
        if latest is None:
            fault = "nothing is published there; `ser cache push URL` does it"
            hint = "and a root digest after an @ has 64 digits"
            raise WrongUse(f"{self.remote.shown}: {fault}, {hint}")
        return latest.decode(errors="replace").strip()

    def _find_parts(self, published: Published) -> dict[str, PublishedPart]:
        """The published parts of the features and corpora that are wanted, by their folders."""
        corpora = with_parents(self._manifests)
        parts = {}
        for folder, part in published.parts.items():
            if part.corpus in corpora and feature_folder(folder) in self._specs:
                parts[folder] = part
        return parts

    def _check_part_here(self, folder: str, published: PublishedPart, pinned: bool) -> None:
        """Raise if a part that is here lacks a file, or is another than a digest names."""
        _feature, fingerprint, *_ = folder.split("/")
        Part.open(self._path / folder, fingerprint)
        if not pinned:
            return

        record = file_record(read_small(self._path / folder / "part.json"))
        if record != published.record:
            pinned_url = f"{self.remote.shown}@{self.digest}"
            fault = f"{folder} is another part here than that of {pinned_url}"
            raise WrongUse(f"{self._path}: {fault}; name a new folder with --store")

    def run(self, on_progress: OnBytes = lambda _: None) -> str:
        """Pull what is missing: parts, each checked down to its last byte, then the manifests.

        Returns the URL with the root digest. The manifest of a corpus that is new here comes first,
        so that the store knows what it lacks.
        """
        store = open_store(self._path, create=True)
        self._check_room()

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

    def _check_room(self) -> None:
        free = shutil.disk_usage(self._path).free
        if self.bytes > free:
            sizes = f"{self.bytes / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
            remedy = "free some space, or name another --store"
            raise StoreError(f"{self._path}: no room to pull this: {sizes}; {remedy}")

    def _fetch(self, store: Store, on_progress: OnBytes, path: str) -> None:
        """Copy a part into a workspace, check it against its feature, and give it its name."""
        expected = self.parts[path]
        spec = self._specs[feature_folder(path)]
        url = f"{self.remote.shown}/{path}"

        with explained(url):
            content = self.remote.fetch(f"{path}/part.json", expected.record)
            published, record = read_part_record(content, url)
            if published != expected:
                raise CorruptStore(f"{url}: is another part than was published")

        def fetch_file(name: str, known: FileRecord) -> Iterator[bytes]:
            yield self.remote.fetch(f"{path}/{name}", known)
            on_progress(known.bytes)

        files = {name: fetch_file(name, known) for name, known in record.files.items()}

        explain = explain_disk_errors("pulling a part", store.path, expected.bytes)
        with explain, workspace(store.path) as temporary:
            folder = temporary / path.rpartition("/")[2]
            write_folder(folder, {**files, "part.json": [content]})
            with explained(url, folder):
                check_part(folder, spec.fingerprint, spec)
            move_into_place(folder, store.path / path)


def cache_folder(url: str) -> Path:
    """Where the store at a URL is copied to by `--store URL`.

    In $SER_STORES, or below the user's cache folder.
    """
    stores = os.environ.get("SER_STORES")
    if not stores:
        user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        stores = str(Path(user_cache) / "ser" / "stores")
    return Path(stores) / file_record(url.encode()).sha256[:16]
