"""What a store holds: its features, and what each corpus has of them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from ser.cache.feature import Feature
from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.disk.records import canonical_json
from ser.errors import SerError

# The latest manifest of each corpus, or why it cannot be trusted.
Manifests = Mapping[str, Manifest | str]


@dataclass(frozen=True, kw_only=True)
class RowsOfCorpus:
    """What one corpus has of a feature, counted by the corpus's latest manifest."""

    rows: int
    # Of these, rows of the corpus's parent.
    lent: int
    # Utterances of the manifest; None where it cannot be trusted.
    of: int | None
    complete: bool
    # Rows that the manifest does not name.
    superseded: int
    bytes: int
    # Why the manifest cannot be trusted.
    problem: str | None
    # The reason of each quarantined utterance, by its id.
    quarantined: dict[str, str]
    parts: int
    # How many parts each backend has.
    backends: dict[str, int]
    # Rows of all arrays of values: frames, tokens or utterances.
    vectors: int

    def to_json(self) -> dict[str, Any]:
        """The counts by name, with a problem only where there is one."""
        counts = asdict(self)
        if self.problem is None:
            del counts["problem"]
        return counts


@dataclass(frozen=True)
class ListedFeature:
    """One line of `ser cache list`: a feature, and what one corpus has of it.

    A feature without parts has no corpus; of one with a `problem`, which cannot be trusted, only
    the folder's names are known.
    """

    # With its variant: "hubert:layer=9".
    feature: str
    fingerprint: str
    corpus: str | None = None
    rows: int = 0
    lent: int = 0
    of: int | None = None
    quarantined: int = 0
    superseded: int = 0
    bytes: int = 0
    backends: list[str] = field(default_factory=list)
    modality: str | None = None
    level: str | None = None
    dim: int | None = None
    dtype: str | None = None
    model: str | None = None
    random_weights: bool = False
    complete: bool = False
    problem: str | None = None


def list_features(store: Store) -> list[ListedFeature]:
    """Every feature × corpus that has rows of it."""
    manifests = latest_manifests(store)

    listing: list[ListedFeature] = []
    for folder in store.folders():
        try:
            listing += _list_feature(Feature(store.path, folder), manifests)
        except (SerError, OSError) as error:
            unreadable = ListedFeature(folder.parent.name, folder.name, problem=str(error))
            listing.append(unreadable)
    return listing


def _list_feature(feature: Feature, manifests: Manifests) -> list[ListedFeature]:
    """One line for each corpus that has rows of a feature; one line where none has."""
    spec = feature.spec
    how_made: dict[str, Any] = {
        "feature": spec.name,
        "fingerprint": feature.fingerprint,
        "modality": spec.modality,
        "level": spec.level,
        "dim": spec.dim,
        "dtype": spec.dtype,
        "model": spec.provenance.get("model"),
        "random_weights": spec.random_weights,
    }

    lines = []
    for corpus, counts in rows_by_corpus(feature, manifests).items():
        line = ListedFeature(
            **how_made,
            corpus=corpus,
            rows=counts.rows,
            lent=counts.lent,
            of=counts.of,
            quarantined=len(counts.quarantined),
            superseded=counts.superseded,
            bytes=counts.bytes,
            backends=sorted(counts.backends),
            complete=counts.complete,
            problem=counts.problem,
        )
        lines.append(line)
    return lines or [ListedFeature(**how_made)]


def feature_info(feature: Feature, manifests: Manifests) -> dict[str, Any]:
    """How a feature was computed: everything in spec.json, and what each corpus has of it."""
    counts = rows_by_corpus(feature, manifests)
    return {
        "name": feature.spec.name,
        "fingerprint": feature.fingerprint,
        "path": str(feature.path),
        **feature.spec.to_json(),
        "computed_with": computed_with(feature),
        "corpora": {corpus: rows.to_json() for corpus, rows in counts.items()},
    }


def computed_with(feature: Feature) -> list[dict[str, Any]]:
    """The versions of packages with which rows were computed, most rows first.

    Each has `rows`, `versions` (None where the part does not record them, as before there was such
    a record), and, after the first, `differs`: the packages of other versions than the first's.
    """
    rows_of: dict[bytes, int] = {}
    for part in feature.parts():
        versions = canonical_json(part.record.written_by.get("versions"))
        rows_of[versions] = rows_of.get(versions, 0) + len(part.keys)

    listed: list[dict[str, Any]] = []
    for recorded, rows in sorted(rows_of.items(), key=lambda entry: -entry[1]):
        entry: dict[str, Any] = {"rows": rows, "versions": msgspec.json.decode(recorded)}
        if listed:
            entry["differs"] = _differing(listed[0]["versions"] or {}, entry["versions"] or {})
        listed.append(entry)
    return listed


def _differing(first: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """The packages whose versions differ, by name."""
    packages = first.keys() | other.keys()
    return sorted(name for name in packages if first.get(name) != other.get(name))


def latest_manifests(store: Store) -> dict[str, Manifest | str]:
    """The latest manifest of each corpus, or why it cannot be trusted."""
    manifests: dict[str, Manifest | str] = {}
    for corpus in store.corpora():
        try:
            manifests[corpus] = store.manifest(corpus)
        except SerError as error:
            manifests[corpus] = str(error)
    return manifests


def corpora_of(feature: Feature, manifests: Manifests) -> list[str]:
    """The corpora that have rows of a feature, their own or their parent's, by name."""
    corpora = {part.record.corpus for part in feature.parts()}
    for manifest in manifests.values():
        if isinstance(manifest, Manifest) and manifest.parent and feature.rows(manifest):
            corpora.add(manifest.corpus)
    return sorted(corpora)


def rows_by_corpus(feature: Feature, manifests: Manifests) -> dict[str, RowsOfCorpus]:
    """What each corpus has of a feature."""
    return {
        corpus: _rows_of_corpus(feature, corpus, manifests.get(corpus))
        for corpus in corpora_of(feature, manifests)
    }


def _rows_of_corpus(feature: Feature, corpus: str, manifest: Manifest | str | None) -> RowsOfCorpus:
    """What one corpus has of a feature; `manifest` is its latest, or why that is not trusted."""
    parts = [part for part in feature.parts() if part.record.corpus == corpus]
    stored = sum(len(part.keys) for part in parts)

    current = []
    quarantined: dict[str, str] = {}
    utterances = None
    if isinstance(manifest, Manifest):
        current = [key for key in feature.keys(manifest) if feature.place(key)]
        quarantined = feature.quarantined(manifest)
        utterances = len(manifest)

    lent = sum(owner != corpus for owner, _, _ in current)
    return RowsOfCorpus(
        rows=len(current),
        lent=lent,
        of=utterances,
        complete=len(current) + len(quarantined) == utterances,
        superseded=stored - (len(current) - lent),
        bytes=sum(part.bytes for part in parts),
        problem=manifest if isinstance(manifest, str) else None,
        quarantined=quarantined,
        parts=len(parts),
        backends=dict(Counter(part.record.backend for part in parts)),
        vectors=sum(part.record.arrays["values"].shape[0] for part in parts),
    )
