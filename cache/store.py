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

from ser.corpus.manifest import Manifest
from ser.corpus.names import RESERVED, check_name, is_name
from ser.disk.faults import explain_disk_errors
from ser.disk.folders import folders_in
from ser.disk.leftovers import remove_leftovers
from ser.disk.records import canonical_json, checksummed_json
from ser.disk.workspace import put_files
from ser.disk.write import make_folder
from ser.errors import CorruptStore, MissingRows, StoreError, WrongUse, ser_command

from .extract_command import extract_command
from .feature import Feature
from .manifest_log import earlier_digests, generations
from .manifests import list_corpora, make_latest, read_manifest
from .spec import Spec

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")

# A Path keeps one of a URL's two slashes. A scheme has two letters at least: "C:/" is a drive.
_URL = re.compile(r"[a-z0-9]{2,}:/")


def open_store(path: Path | str, create: bool = False) -> "Store":
    """Open a store.

    With `create`, a missing or empty folder becomes one, and what killed writers left is removed.
    Raises `WrongUse` if the path holds no store.
    """
    path = check_local(path)
    manifests = path / "manifests"

    # Asked for again at the end: another process may just have made it.
    if not manifests.is_dir() and not _may_become_store(path) and not manifests.is_dir():
        fault = "is a file" if path.is_file() else "is not a store and not empty"
        raise WrongUse(f"{path}: {fault}; name another folder with --store")

    if not manifests.is_dir():
        if not create:
            command = extract_command(path)
            raise WrongUse(f"{path}: holds no store; run {command} to make one")
        with explain_disk_errors("making a store", path):
            make_folder(manifests)

    if create:
        remove_leftovers(path)
    return Store(path)


def check_local(path: Path | str) -> Path:
    """The path of a store to write or open. Raises `WrongUse` for a URL."""
    if "://" in str(path) or _URL.match(str(path)):
        raise WrongUse(
            "a store must be a path here, not a URL; `ser cache push` and `pull` copy them, whose "
            "card, README.md, says what is published there, and `pull URL --dry-run` how much"
        )
    return Path(path)


def _may_become_store(path: Path) -> bool:
    """Whether nothing is there, or a folder with nothing in it but what a store or a disk has."""
    if not path.exists():
        return True
    return path.is_dir() and all(entry.name in RESERVED for entry in path.iterdir())


@dataclass(frozen=True)
class Store:
    """An open store. Reading writes nothing, so it may be read-only."""

    path: Path

    def corpora(self) -> list[str]:
        """The names of the corpora that have a manifest."""
        return list_corpora(self.path)

    def only_corpus(self, corpus: str | None = None) -> str:
        """`corpus` if it is in the store (None: the only one).

        Raises `WrongUse` that lists them.
        """
        known = self.corpora()
        if not known:
            command = extract_command(self.path)
            raise WrongUse(f"{self.path}: holds no corpus yet; run {command}")

        if corpus is None:
            if len(known) > 1:
                names = ", ".join(known)
                raise WrongUse(
                    f"{self.path}: holds several corpora, name one with --corpus: {names}"
                )
            return known[0]

        if corpus not in known:
            raise WrongUse(f"{self.path}: has no corpus {corpus!r}; known: {', '.join(known)}")
        return corpus

    def manifest(self, corpus: str | None = None, digest: str | None = None) -> Manifest:
        """A corpus's manifest (None: the only corpus) by its digest (None: the latest).

        Raises `WrongUse` for an unknown one and `CorruptStore` for one that cannot be trusted.
        """
        return read_manifest(self.path, self.only_corpus(corpus), digest)

    def joined_manifest(self, corpora: str | None = None, digests: str | None = None) -> Manifest:
        """As `manifest`; for "a+b" that of several corpora, always in alphabetical order."""
        if corpora is None:
            return self.manifest(None, digests)

        names = sorted(set(corpora.split("+")))
        if len(names) == 1:
            return self.manifest(names[0], digests)
        if not digests:
            return Manifest.joined([self.manifest(name) for name in names])

        manifests = []
        for name, digest in zip(names, digests.split("+"), strict=False):
            manifests.append(self.manifest(name, digest))
        return Manifest.joined(manifests)

    def put_manifest(
        self, manifest: Manifest, replace: bool = False, command: str = "put_manifest"
    ) -> str:
        """Store a manifest as the corpus's latest, with the `command` in the corpus's log.

        Returns its digest. One that equals the latest is not written again. Unless it may `replace`
        the latest, raises `WrongUse` if it lacks utterances of it, or their audio or transcripts,
        or if the latest is damaged and not this one, and `StoreError` if the latest is of a newer
        format.
        """
        check_name("corpus", manifest.corpus)
        _check_ids(manifest)

        if manifest.corpus in self.corpora():
            try:
                latest = self.manifest(manifest.corpus)
                if not latest.gives_way(manifest, replace, self.path):
                    return latest.digest
            except CorruptStore as error:
                if not replace:
                    self._check_rewrites(manifest, error)
            except StoreError:
                if not replace:
                    raise

        make_latest(self.path, manifest, command)
        return manifest.digest

    def _check_rewrites(self, manifest: Manifest, damage: CorruptStore) -> None:
        """Raise `WrongUse` if a manifest is another than those of a corpus whose latest is damaged.

        The same is written again; of another it is unknown what it lacks.
        """
        folder = self.path / "manifests" / manifest.corpus
        known = {generation.digest for generation in generations(folder)}
        if known and manifest.digest not in known:
            remedy = "this is another manifest, which takes its place with --replace"
            raise WrongUse(f"{damage}; {remedy}") from None

    def rollback(self, corpus: str, digest: str | None = None) -> Manifest:
        """Make an earlier manifest the corpus's latest again.

        It is the one whose digest begins so (None: the one before). Raises `WrongUse` if there is
        none or several.
        """
        corpus = self.only_corpus(corpus)
        folder = self.path / "manifests" / corpus
        if digest is None:
            chosen = earlier_digests(folder)[-1:]
            fault = "no manifest before its latest"
        else:
            digests = {generation.digest for generation in generations(folder)}
            chosen = [known for known in digests if known.startswith(digest)]
            fault = f"{len(chosen)} manifests {digest!r}"

        if len(chosen) != 1:
            command = ser_command("cache", "rollback", corpus, "--list", "--store", self.path)
            raise WrongUse(f"{self.path}: corpus {corpus} has {fault}; {command} names them")

        manifest = self.manifest(corpus, chosen[0])
        make_latest(self.path, manifest, "cache rollback")
        return manifest

    def folders(self) -> list[Path]:
        """Every folder `<feature>/<fingerprint>`, damaged ones too."""
        folders = []
        for feature in folders_in(self.path):
            if is_name(feature.name):
                folders += [
                    folder for folder in folders_in(feature) if _FINGERPRINT.fullmatch(folder.name)
                ]
        return folders

    def features(self) -> list[Feature]:
        """Every feature in the store, one per fingerprint.

        Raises `CorruptStore` for one that cannot be trusted.
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
            fault = f"no store can hold a feature that is specified so ({error})"
            raise WrongUse(f"{spec.name}: {fault}") from None

        folder = self.path / spec.folder
        existed = folder.exists()
        try:
            return Feature(self.path, folder)
        except CorruptStore:
            # Missing, or damaged: the folder's name vouches for its content, so the parts beside it
            # stay good.
            files = {"spec.json": checksummed_json(spec.to_json())}
            put_files(self.path, folder, files, replace=existed)
        return Feature(self.path, folder)

    def __getitem__(self, name: str) -> Feature:
        return self.feature(name)

    def feature(self, name: str, corpus: str | None = None) -> Feature:
        """A feature by `name[:variant][@fingerprint]`, such as `hubert:layer=9@3f2a`.

        Raises `MissingRows` naming the command if the store has none, and `WrongUse` listing them
        if two are complete for the corpus, or for all corpora of "a+b" (or if none is, and several
        are incomplete). One that is there under another name is found: see `Spec.is_called`.
        """
        features = self._ways(name)
        if len(features) == 1:
            return features[0]

        manifest = self.joined_manifest(corpus)
        complete = _each_way_once([feature for feature in features if feature.complete(manifest)])
        if len(complete) == 1:
            return complete[0]
        if not complete:
            features = _each_way_once(features)
            if len(features) == 1:
                return features[0]

        if complete:
            fault = f"{name} is complete in several ways, choose one: {listed(complete)}"
        elif manifest.parts:
            ways = _complete_by_corpus(features, manifest)
            fault = (
                f"{name} is not computed in the same way for all; {ways}; extract all in one way"
            )
        else:
            fault = f"{name} is incomplete in several ways, choose one: {listed(features)}"
        raise WrongUse(f"{self.path}: {fault}")

    def named(self, name: str) -> list[Feature]:
        """Every way of computing `name[:variant][@fingerprint]` in the store.

        Raises `MissingRows` if there is none.
        """
        options = _options_of(name)
        ways = []
        for way in self._ways(name):
            if _options_of(way.spec.name) == options:
                ways.append(way)
        if not ways:
            raise MissingRows(
                f"{self.path}: has no feature {name!r}; it is there under another name, which must "
                f"be given: {listed(self._ways(name))}"
            )
        return ways

    def _ways(self, name: str) -> list[Feature]:
        """As `named`, and behind them those that are the same under another name."""
        full_name, _, fingerprint = name.partition("@")
        feature = full_name.partition(":")[0]
        options = _options_of(name)
        folders = [folder for folder in self.folders() if folder.parent.name == feature]

        named = []
        same = []
        for folder in folders:
            # No other fingerprint is read, so that a damaged one beside them does no harm.
            if not folder.name.startswith(fingerprint):
                continue
            way = Feature(self.path, folder)
            if _options_of(way.spec.name) == options:
                named.append(way)
            elif way.spec.is_called(options):
                same.append(way)

        if named:
            # Under another name those alone that are the same numbers.
            numbers = {way.spec.numbers for way in named}
            same = [way for way in same if way.spec.numbers in numbers]
        ways = named + same
        if not ways:
            hint = self._similar(feature, folders)
            command = extract_command(self.path, full_name)
            raise MissingRows(f"{self.path}: has no feature {name!r}{hint} run {command}")
        return ways

    def same_numbers(self, spec: Spec) -> Feature | None:
        """The feature under another name that a spec's would be, where its own is not there."""
        if (self.path / spec.folder).exists():
            return None
        for folder in self.folders():
            if folder.parent.name != spec.feature:
                continue
            feature = Feature(self.path, folder)
            if feature.spec.numbers == spec.numbers and feature.spec.is_called(spec.options):
                return feature
        return None

    def _similar(self, feature: str, folders: Sequence[Path]) -> str:
        """What a user may have meant: other ways of the feature, one of a similar name, or any."""
        others = set()
        for folder in folders:
            spec = Feature(self.path, folder).spec
            others.add(f"{spec.name}@{folder.name[:8]}")

        alike = sorted(others)
        if not alike:
            names = sorted({folder.parent.name for folder in self.folders()})
            # All, where none is alike.
            alike = difflib.get_close_matches(feature, names, n=1) or names

        return f" (there is {', '.join(alike)}); if you mean another," if alike else ";"


def _options_of(name: str) -> frozenset[str]:
    """The options of extraction in a feature's name, in whatever order."""
    variant = name.partition("@")[0].partition(":")[2]
    return frozenset(variant.split(",")) - {""}


def _each_way_once(features: Sequence[Feature]) -> list[Feature]:
    """Of features that hold the same numbers under other names the first."""
    by_numbers: dict[str, Feature] = {}
    for feature in features:
        by_numbers.setdefault(feature.spec.numbers, feature)
    return list(by_numbers.values())


def listed(features: Sequence[Feature]) -> str:
    """Features by fingerprint, each with its model or extractor, for a message."""
    lines = []
    for feature in features:
        spec = feature.spec
        origin = spec.provenance.get("model") or spec.extractor
        lines.append(f"{spec.name}@{spec.fingerprint[:8]} ({origin})")
    return ", ".join(lines)


def _check_ids(manifest: Manifest) -> None:
    for id_, times in Counter(manifest.ids).items():
        if id_ is None or times > 1:
            fault = "an utterance without an id" if id_ is None else f"utterance {id_!r} twice"
            rule = "ids must name one utterance each"
            raise WrongUse(f"corpus {manifest.corpus}: has {fault}; {rule}")


def _complete_by_corpus(features: Sequence[Feature], manifest: Manifest) -> str:
    """Of several corpora, in which ways each is complete; for a message."""
    ways = []
    for part in manifest.parts:
        complete = listed([feature for feature in features if feature.complete(part)])
        ways.append(f"{part.corpus} has {complete or 'none that is complete'}")
    return "; ".join(ways)
