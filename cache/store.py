"""The store: a folder of manifests and features, for many readers and writers at once.

    store = open_store("features")
    manifest = store.manifest("iemocap")
    packed = store["hubert"].load(manifest)   # every block's checksum verified

What lies where, key by key, is in FORMAT.md.
"""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ser.cache.manifests import generations, list_corpora, make_latest, read_manifest
from ser.cache.spec import Spec
from ser.corpus.manifest import Manifest
from ser.corpus.names import RESERVED, check_name, is_name
from ser.disk.read import folders_in, read_small
from ser.disk.records import canonical_json, checksummed_json
from ser.disk.workspace import put_files, remove_leftovers
from ser.disk.write import explain_disk_errors, make_folder
from ser.errors import CorruptStore, MissingRows, StoreError, WrongUse

from .feature import Feature
from .part import Packed, PartRows, Quarantine

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")
__all__ = [
    "Feature",
    "Manifest",
    "Packed",
    "PartRows",
    "Quarantine",
    "Spec",
    "Store",
    "check_name",
    "open_store",
]


def open_store(path: Path | str, create: bool = False) -> "Store":
    """Open a store. With `create`, a missing or empty folder becomes one, and what killed writers
    left is removed.

    Raises `WrongUse` if the path holds no store.
    """
    path = check_local(path)
    manifests = path / "manifests"
    if not manifests.is_dir():
        free = not path.exists() or (
            path.is_dir() and all(entry.name in RESERVED for entry in path.iterdir())
        )
        if not free and not manifests.is_dir():  # another process may just have made it
            fault = "is a file" if path.is_file() else "is not a store and not empty"
            raise WrongUse(f"{path}: {fault}; name another folder with --store")
        if not create:
            raise WrongUse(
                f"{path}: holds no store; run `ser features CORPUS --store {path}` to make one"
            )
        with explain_disk_errors("making a store", path):
            make_folder(manifests)
    if create:
        remove_leftovers(path)
    return Store(path)


def check_local(path: Path | str) -> Path:
    """The path of a store to write or open. Raises `WrongUse` for a URL."""
    if "://" in str(path) or re.match("[a-z0-9]{2,}:/", str(path)):  # a Path keeps one slash
        there = (
            "whose card, README.md, says what is published there, and `pull URL --dry-run` how much"
        )
        raise WrongUse(
            f"a store must be a path here, not a URL; `ser cache push` and `pull` copy them, {there}"
        )
    return Path(path)


@dataclass(frozen=True)
class Store:
    """An open store. Reading writes nothing, so it may be read-only."""

    path: Path

    def corpora(self) -> list[str]:
        """The names of the corpora that have a manifest."""
        return list_corpora(self.path)

    def only_corpus(self, corpus: str | None = None) -> str:
        """`corpus` if it is in the store (None: the only one). Raises `WrongUse` that lists them."""
        known = self.corpora()
        if not known:
            raise WrongUse(
                f"{self.path}: holds no corpus yet; run `ser features CORPUS --store {self.path}`"
            )
        if corpus is None and len(known) > 1:
            raise WrongUse(
                f"{self.path}: holds several corpora, name one with --corpus: {', '.join(known)}"
            )
        if corpus is not None and corpus not in known:
            raise WrongUse(f"{self.path}: has no corpus {corpus!r}; known: {', '.join(known)}")
        return corpus or known[0]

    def manifest(self, corpus: str | None = None, digest: str | None = None) -> Manifest:
        """A corpus's manifest (None: the only corpus) by its digest (None: the latest).

        Raises `WrongUse` for an unknown one and `CorruptStore` for one that cannot be trusted.
        """
        return read_manifest(self.path, self.only_corpus(corpus), digest)

    def joined_manifest(self, corpora: str | None = None, digests: str | None = None) -> Manifest:
        """As `manifest`; for "a+b" that of several corpora, always in alphabetical order."""
        names = sorted({*(corpora or "").split("+")})
        if len(names) == 1:
            return self.manifest(corpora and names[0], digests)
        known = digests.split("+") if digests else [None] * len(names)
        return Manifest.joined([self.manifest(*pair) for pair in zip(names, known, strict=False)])

    def put_manifest(
        self, manifest: Manifest, replace: bool = False, command: str = "put_manifest"
    ) -> str:
        """Store a manifest as the corpus's latest, with the `command` in the corpus's log. Returns
        its digest.

        One that equals the latest is not written again. Unless it may `replace` the latest, raises
        `WrongUse` if it lacks utterances of it, or their audio or transcripts, or if the latest is
        damaged and not this one, and `StoreError` if the latest is of a newer format.
        """
        folder = self.path / "manifests" / check_name("corpus", manifest.corpus)
        for id_, times in Counter(manifest.ids).items():
            if id_ is None or times > 1:
                fault = "an utterance without an id" if id_ is None else f"utterance {id_!r} twice"
                raise WrongUse(
                    f"corpus {manifest.corpus}: has {fault}; ids must name one utterance each"
                )
        if manifest.corpus in self.corpora():
            try:
                latest = self.manifest(manifest.corpus)
                if not latest.gives_way(manifest, replace, self.path):
                    return latest.digest
            except (
                CorruptStore
            ) as error:  # the same is written again; of another it is unknown what that lacks
                known = {one.digest for one in generations(folder)}
                if not replace and known and manifest.digest not in known:
                    raise WrongUse(
                        f"{error}; this is another manifest, which takes its place with --replace"
                    ) from None
            except StoreError:
                if not replace:
                    raise
        make_latest(self.path, manifest, command)
        return manifest.digest

    def rollback(self, corpus: str, digest: str | None = None) -> Manifest:
        """Make an earlier manifest the corpus's latest again: the one whose digest begins so (None:
        the one before).

        Raises `WrongUse` if there is none or several.
        """
        folder = self.path / "manifests" / self.only_corpus(corpus)
        digests = [one.digest for one in generations(folder)]
        if digest is None:
            latest = read_small(folder / "latest").decode(errors="replace").strip()
            last = max(
                (number for number, one in enumerate(digests) if one == latest),
                default=len(digests),
            )
            chosen = [one for one in digests[:last] if one != latest][-1:]
        else:
            chosen = sorted({one for one in digests if one.startswith(digest)})
        if len(chosen) != 1:
            fault = (
                "no manifest before its latest"
                if digest is None
                else f"{len(chosen)} manifests {digest!r}"
            )
            raise WrongUse(
                f"{self.path}: corpus {corpus} has {fault}; `ser cache rollback {corpus} --list` names them"
            )
        manifest = self.manifest(corpus, chosen[0])
        make_latest(self.path, manifest, "cache rollback")
        return manifest

    def folders(self) -> list[Path]:
        """Every folder `<feature>/<fingerprint>`, damaged ones too."""
        features = [folder for folder in folders_in(self.path) if is_name(folder.name)]
        return [
            folder
            for feature in features
            for folder in folders_in(feature)
            if _FINGERPRINT.fullmatch(folder.name)
        ]

    def features(self) -> list[Feature]:
        """Every feature in the store, one per fingerprint. Raises `CorruptStore` for one that
        cannot be trusted.
        """
        return [Feature(self.path, folder) for folder in self.folders()]

    def add(self, spec: Spec) -> Feature:
        """The feature computed in this way; its folder is made if it is missing.

        Raises `WrongUse`, and writes nothing, for a spec that could not be read back.
        """
        check_name("feature", spec.feature)
        try:
            msgspec.json.decode(canonical_json(spec.to_json()), type=Spec)
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
            raise WrongUse(
                f"{spec.name}: no store can hold a feature that is specified so ({error})"
            ) from None
        folder = self.path / spec.folder
        there = folder.exists()
        try:
            return Feature(self.path, folder)
        except CorruptStore:
            # Missing, or damaged: the folder's name vouches for its content, so the parts beside it
            # stay good.
            put_files(
                self.path, folder, {"spec.json": checksummed_json(spec.to_json())}, replace=there
            )
        return Feature(self.path, folder)

    def __getitem__(self, name: str) -> Feature:
        return self.feature(name)

    def feature(self, name: str, corpus: str | None = None) -> Feature:
        """A feature by `name[:variant][@fingerprint]`, such as `hubert:layer=9@3f2a`.

        Raises `MissingRows` naming the command if the store has none, and `WrongUse` listing them
        if two are complete for the corpus, or for all corpora of "a+b" (or if none is, and several
        are incomplete).
        """
        features = self.named(name)
        if len(features) == 1:
            return features[0]
        manifest = self.joined_manifest(corpus)
        complete = [feature for feature in features if feature.complete(manifest)]
        if len(complete) == 1:
            return complete[0]
        if manifest.parts and not complete:
            ways = []
            for part in manifest.parts:
                whole = listed([feature for feature in features if feature.complete(part)])
                ways.append(f"{part.corpus} has {whole or 'none that is complete'}")
            fault = f"{name} is not computed in the same way for all; {'; '.join(ways)}"
            raise WrongUse(f"{self.path}: {fault}; extract all in one way")
        state = "complete" if complete else "incomplete"
        raise WrongUse(
            f"{self.path}: {name} is {state} in several ways, choose one: {listed(complete or features)}"
        )

    def named(self, name: str) -> list[Feature]:
        """Every way of computing `name[:variant][@fingerprint]` in the store. Raises `MissingRows`
        if there is none.
        """
        full_name, _, prefix = name.partition("@")
        feature, colon, options = full_name.partition(":")
        folders = [folder for folder in self.folders() if folder.parent.name == feature]
        # Only those of the fingerprint are read, so that a damaged one beside them does no harm.
        ways = [Feature(self.path, folder) for folder in folders if folder.name.startswith(prefix)]
        ways = [
            way
            for way in ways
            if way.spec.name == feature + colon + ",".join(sorted(options.split(",")))
        ]
        if not ways:
            others = sorted(
                {Feature(self.path, folder).spec.name + f"@{folder.name[:8]}" for folder in folders}
            )
            names = {folder.parent.name for folder in self.folders()}
            alike = others or difflib.get_close_matches(feature, names, n=1)
            hint = f" (there is {', '.join(alike)}); if you mean another," if alike else ";"
            command = f"ser features CORPUS --features {full_name} --store {self.path}"
            raise MissingRows(f"{self.path}: has no feature {name!r}{hint} run `{command}`")
        return ways


def listed(features: Sequence[Feature]) -> str:
    """Features by fingerprint, each with its model or extractor, for a message."""
    specs = [feature.spec for feature in features]
    return ", ".join(
        f"{s.name}@{s.fingerprint[:8]} ({s.provenance.get('model') or s.extractor})" for s in specs
    )
