"""The store: a folder of manifests and features, for many readers and writers at once.

    store = open_store("features")
    manifest = store.manifest("iemocap")
    packed = store["hubert"].load(manifest)   # every block's checksum verified

What lies where, key by key, is in FORMAT.md.
"""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path

from ser.errors import CorruptStore, MissingRows, StoreError, WrongUse

from .atomic_io import (
    faults_named,
    make_folder,
    move_into_place,
    remove_leftovers,
    replace_file,
    sync_folder,
    workspace,
    write_file,
)
from .feature import Feature, spec_bytes
from .manifest import Manifest
from .part import Packed, Part, PartRows, Quarantine, read_small
from .spec import Spec

__all__ = ["Feature", "Manifest", "Packed", "Part", "PartRows", "Quarantine", "Spec", "Store", "open_store"]

# Feature and corpus names become folders; ids never do.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RESERVED = {"manifests", "tmp"}
_LATEST = re.compile(rb"[0-9a-f]{64}\n")


def open_store(path: Path | str, create: bool = False) -> "Store":
    """Open a store; with `create`, make one where there is none (a missing or empty folder).

    Raises `WrongUse` if the path holds no store.
    """
    path = Path(path)
    if not _is_store(path):
        if not create:
            raise WrongUse(f"{path}: holds no store; run `ser features CORPUS --store {path}` to make one")
        # Looked at once more, since another process may be making it just now.
        if not _is_free(path) and not _is_store(path):
            raise WrongUse(f"{path}: is no store and not empty; name a new folder with --store")
        with faults_named("making a store", path):
            make_folder(path / "manifests")
    return Store(path)


def _is_store(path: Path) -> bool:
    return (path / "manifests").is_dir()


def _is_free(path: Path) -> bool:
    return not path.exists() or (path.is_dir() and not any(entry.name not in _RESERVED for entry in path.iterdir()))


def check_name(kind: str, name: str) -> str:
    """A feature's or corpus's name, fit to be a folder. Raises `WrongUse`."""
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise WrongUse(f"a {kind} cannot be called {name!r}; use letters, digits, '-', '_' and '.'")
    return name


class Store:
    """An open store. Reading writes nothing, so a read-only one works."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._cleaned = False

    def __repr__(self) -> str:
        return f"<Store {self.path}>"

    def remove_leftovers(self) -> list[str]:
        """Remove what killed writers left under `tmp/`. Returns the names that went."""
        self._cleaned = True
        return remove_leftovers(self.path)

    def _before_writing(self) -> None:
        if not self._cleaned:
            self.remove_leftovers()

    def corpora(self) -> list[str]:
        """The names of the corpora that have a manifest."""
        return [folder.name for folder in _folders(self.path / "manifests")]

    def only_corpus(self, corpus: str | None = None) -> str:
        """`corpus` if it is in the store; None: the only one. Raises `WrongUse` listing them."""
        known = self.corpora()
        if not known:
            raise WrongUse(f"{self.path}: holds no corpus yet; run `ser features CORPUS --store {self.path}`")
        if corpus is None and len(known) > 1:
            raise WrongUse(f"{self.path}: holds several corpora, name one with --corpus: {', '.join(known)}")
        if corpus is not None and corpus not in known:
            raise WrongUse(f"{self.path}: has no corpus {corpus!r}; known: {', '.join(known)}")
        return corpus or known[0]

    def manifest(self, corpus: str | None = None, digest: str | None = None) -> Manifest:
        """A corpus's manifest (None: the only corpus) by its digest (None: the latest).

        Raises `WrongUse` for an unknown one and `CorruptStore` for one that cannot be trusted.
        """
        corpus = self.only_corpus(corpus)
        folder = self.path / "manifests" / corpus
        if digest is None:
            digest = self._latest(folder)
        elif not re.fullmatch(r"[0-9a-f]{64}", digest) or not (folder / f"{digest}.parquet").exists():
            raise WrongUse(f"{folder}: has no manifest {digest!r}")
        path = folder / f"{digest}.parquet"
        manifest = Manifest.from_content(read_small(path), digest, str(path))
        if manifest.corpus != corpus:
            raise CorruptStore(f"{path}: is the manifest of corpus {manifest.corpus!r}; run `ser features` again")
        return manifest

    def _latest(self, folder: Path) -> str:
        content = read_small(folder / "latest")
        if not _LATEST.fullmatch(content):
            raise CorruptStore(f"{folder / 'latest'}: altered or cut short; run `ser features` to write it again")
        digest = content.decode().strip()
        if not (folder / f"{digest}.parquet").exists():
            raise CorruptStore(
                f"{folder / 'latest'}: names {folder / digest}.parquet, which is missing; "
                "run `ser features` to write it again"
            )
        return digest

    def put_manifest(self, manifest: Manifest) -> str:
        """Keep a manifest and make it the corpus's latest. Returns its digest.

        One whose table the latest has already is not written again.
        """
        self._before_writing()
        folder = self.path / "manifests" / check_name("corpus", manifest.corpus)
        _check_unique(manifest)
        if (latest := self._unchanged(folder, manifest)) is not None:
            return latest
        files = {f"{manifest.digest}.parquet": manifest.content, "latest": f"{manifest.digest}\n".encode()}
        with faults_named("writing a manifest", self.path, len(manifest.content)):
            if folder.exists() or not self._new_folder(folder, files):
                for name, content in files.items():
                    replace_file(folder / name, content, self.path)
        return manifest.digest

    def _new_folder(self, folder: Path, files: Mapping[str, bytes], *inside: str) -> bool:
        """Make a folder with all its files in one step. False if somebody else has just made it."""
        with workspace(self.path) as temporary:
            made = temporary / folder.name
            made.mkdir()
            for name in inside:
                (made / name).mkdir()
            for name, content in files.items():
                write_file(made / name, [content])
            sync_folder(made)
            make_folder(folder.parent)
            return move_into_place(made, folder)

    def _unchanged(self, folder: Path, manifest: Manifest) -> str | None:
        try:
            latest = self.manifest(manifest.corpus)
        except (StoreError, WrongUse):
            return None
        same = latest.table.equals(manifest.table) and latest.synthetic == manifest.synthetic
        return latest.digest if same else None

    def folders(self) -> list[Path]:
        """Every folder `<feature>/<fingerprint>`, whether its content can be trusted or not."""
        features = [folder for folder in _folders(self.path) if folder.name not in _RESERVED]
        return [folder for feature in features for folder in _folders(feature)]

    def features(self) -> list[Feature]:
        """Every feature in the store, one per fingerprint. Raises `CorruptStore` for one that cannot be trusted."""
        return [Feature(self.path, folder) for folder in self.folders()]

    def add(self, spec: Spec) -> Feature:
        """The feature computed in this way, its folder made if it is not there yet."""
        self._before_writing()
        folder = self.path / check_name("feature", spec.feature) / spec.fingerprint
        if not folder.exists():
            with faults_named(f"adding feature {spec.name}", self.path):
                self._new_folder(folder, {"spec.json": spec_bytes(spec)}, "parts")
        try:
            return Feature(self.path, folder)
        except CorruptStore:
            # The folder's name vouches for what spec.json must say, so the parts beside it stay good.
            with faults_named("writing spec.json again", self.path):
                replace_file(folder / "spec.json", spec_bytes(spec), self.path)
                make_folder(folder / "parts")
            return Feature(self.path, folder)

    def __getitem__(self, name: str) -> Feature:
        return self.feature(name)

    def feature(self, name: str, corpus: str | None = None) -> Feature:
        """A feature by `name[:variant][@fingerprint]`, such as `hubert:layer=9@3f2a`.

        Raises `MissingRows` naming the command if the store has none, and `WrongUse` listing them if two are
        complete for the corpus (or several are begun and none is).
        """
        found = self.named(name)
        if len(found) == 1:
            return found[0]
        manifest = self.manifest(corpus)
        complete = [feature for feature in found if feature.complete(manifest)]
        if len(complete) == 1:
            return complete[0]
        state = "complete" if complete else "begun"
        raise WrongUse(f"{self.path}: {name} is {state} in several ways, choose one: {listed(complete or found)}")

    def named(self, name: str) -> list[Feature]:
        """Every way of computing `name[:variant][@fingerprint]` in the store. Raises `MissingRows` if there is none."""
        wanted, _, prefix = name.partition("@")
        wanted = ":".join(",".join(sorted(piece.split(","))) for piece in wanted.split(":"))
        near = [folder for folder in self.folders() if folder.parent.name == wanted.partition(":")[0]]
        # One that cannot be trusted does not keep from another beside it that is asked for by its fingerprint.
        ways = [Feature(self.path, folder) for folder in near if folder.name.startswith(prefix)]
        found = [feature for feature in ways if feature.spec.name == wanted]
        if not found:
            raise self._no_feature(name, near)
        return found

    def _no_feature(self, name: str, near: list[Path]) -> MissingRows:
        others = sorted({Feature(self.path, folder).spec.name + f"@{folder.name[:8]}" for folder in near})
        asked = name.partition("@")[0]
        known = [folder.name for folder in _folders(self.path) if folder.name not in _RESERVED]
        alike = difflib.get_close_matches(asked.partition(":")[0], known, n=1)
        there = f" (there is {', '.join(others)})" if others else f" (did you mean {alike[0]}?)" if alike else ""
        return MissingRows(
            f"{self.path}: has no feature {name!r}{there}; "
            f"run `ser features CORPUS --features {asked} --store {self.path}`"
        )


def _check_unique(manifest: Manifest) -> None:
    seen: set[str] = set()
    for id_ in manifest.ids:
        if id_ is None or id_ in seen:
            what = "an utterance without an id" if id_ is None else f"utterance {id_!r} twice"
            raise WrongUse(f"corpus {manifest.corpus}: has {what}; ids must name one utterance each")
        seen.add(id_)


def _folders(parent: Path) -> list[Path]:
    return sorted(entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def listed(features: list[Feature]) -> str:
    """Features by fingerprint, each with where it comes from, for a message."""
    specs = [feature.spec for feature in features]
    origins = [spec.provenance.get("model") or spec.extractor for spec in specs]
    return ", ".join(f"{s.name}@{s.fingerprint[:8]} ({origin})" for s, origin in zip(specs, origins, strict=True))
