"""What a store holds, said in plain values: the data behind `ser cache list` and `ser cache info`."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import SerError
from .features import Feature
from .manifest import Manifest
from .store import Store


@dataclass(frozen=True)
class Listing:
    """One feature and one corpus that has rows of it."""

    feature: str  # with its variant: "hubert:layer=9"
    fingerprint: str
    corpus: str | None  # None: no part yet
    rows: int  # current ones
    of: int | None  # utterances in the corpus's latest manifest
    quarantined: int
    superseded: int  # rows that the latest manifest does not ask for
    bytes: int
    backends: tuple[str, ...]
    modality: str | None
    level: str | None
    dim: int | None
    dtype: str | None
    model: str | None
    random_weights: bool
    complete: bool
    problem: str | None = None  # why it cannot be trusted; then the counts are zero


def list_features(store: Store) -> list[Listing]:
    """Every feature × corpus. One that cannot be trusted is listed too, with its problem."""
    manifests: dict[str, Manifest | str] = {}
    for corpus in store.corpora():
        try:
            manifests[corpus] = store.manifest(corpus)
        except SerError as error:
            manifests[corpus] = str(error)
    return [listing for folder in store.folders() for listing in _of_folder(store, folder, manifests)]


def _of_folder(store: Store, folder: Path, manifests: dict[str, Manifest | str]) -> list[Listing]:
    try:
        feature = Feature(store.path, folder)
        parts = feature.parts()
    except SerError as error:
        return [_broken(folder, str(error))]
    return [
        _listing(feature, corpus, manifests.get(corpus)) for corpus in sorted({p.record.corpus for p in parts})
    ] or [_listing(feature, None, None)]


def _broken(folder: Path, problem: str) -> Listing:
    return Listing(
        feature=folder.parent.name,
        fingerprint=folder.name,
        corpus=None,
        rows=0,
        of=None,
        quarantined=0,
        superseded=0,
        bytes=0,
        backends=(),
        modality=None,
        level=None,
        dim=None,
        dtype=None,
        model=None,
        random_weights=False,
        complete=False,
        problem=problem,
    )


def _listing(feature: Feature, corpus: str | None, manifest: Manifest | str | None) -> Listing:
    spec = feature.spec
    parts = [part for part in feature.parts() if part.record.corpus == corpus]
    known = manifest if isinstance(manifest, Manifest) else None
    rows = feature.rows(known) if known else 0
    quarantined = len(feature.quarantined(known)) if known else 0
    return Listing(
        feature=spec.name,
        fingerprint=feature.fingerprint,
        corpus=corpus,
        rows=rows,
        of=len(known) if known else None,
        quarantined=quarantined,
        superseded=sum(len(part.record.ids) for part in parts) - rows,
        bytes=sum(part.bytes for part in parts),
        backends=tuple(sorted({part.record.backend for part in parts})),
        modality=spec.modality,
        level=spec.level,
        dim=spec.dim,
        dtype=spec.dtype,
        model=spec.provenance.get("model"),
        random_weights=spec.random_weights,
        complete=known is not None and rows + quarantined == len(known),
        problem=manifest if isinstance(manifest, str) else None,
    )


def feature_info(store: Store, feature: Feature) -> dict[str, Any]:
    """How a feature was computed: everything in spec.json, and what each corpus has of it."""
    spec = feature.spec
    corpora: dict[str, Any] = {}
    for corpus in sorted({part.record.corpus for part in feature.parts()}):
        manifest = store.manifest(corpus) if corpus in store.corpora() else None
        listing = _listing(feature, corpus, manifest)
        parts = [part for part in feature.parts() if part.record.corpus == corpus]
        corpora[corpus] = {
            "rows": listing.rows,
            "of": listing.of,
            "complete": listing.complete,
            "superseded": listing.superseded,
            "quarantined": feature.quarantined(manifest) if manifest else {},
            "bytes": listing.bytes,
            "parts": len(parts),
            "backends": dict(Counter(part.record.backend for part in parts)),
            "vectors": sum(part.record.arrays["values"].shape[0] for part in parts),
        }
    return {
        "name": spec.name,
        "fingerprint": feature.fingerprint,
        "path": str(feature.path),
        **spec.identity(),
        "provenance": dict(spec.provenance),
        "corpora": corpora,
    }
