"""From a store to a dataset: names resolved, labels applied, nothing dropped without being named."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ser.cache.errors import MissingRows
from ser.cache.manifest import Manifest
from ser.cache.spec import canonical_json
from ser.cache.store import open_store

from .choice import Choice, choose_features, choose_views
from .data import Dataset
from .inputs import Inputs
from .labels import Policy, apply_policy, get_policy, soft_labels
from .loader import Loader
from .models import Fusion, get_fusion
from .utterances import Utterances


def load_dataset(
    store_path: str | Path,
    features: str,
    fusion_name: str,
    corpus: str | None = None,
    labels: str = "4class",
    limit: int | None = None,
    allow_missing: bool = False,
    loader: Loader | None = None,
    views: str = "",
) -> tuple[Dataset, Fusion]:
    """The corpus's labelled utterances with the features that the fusion takes.

    `limit` keeps that many utterances, spread evenly over the corpus. `views` names augmented features, joined with
    `+`, that training mixes in. A `loader` gives what it has made before. Raises `WrongUse` for names that do not fit
    together, `MissingRows` if an utterance lacks a feature (quarantined ones may be left out by `allow_missing`).
    """
    loader = loader or Loader()
    store = open_store(store_path)
    manifest = store.manifest(corpus)
    chosen = choose_features(store, features, manifest.corpus)
    fusion = get_fusion(fusion_name, {modality: choice.feature.spec.level for modality, choice in chosen.items()})
    augmented = choose_views(store, views, chosen, manifest.corpus)
    policy = get_policy(labels)
    vectors = fusion.level == "vector"
    features_read = tuple((str(choice.feature.path), choice.pool) for choice in [*chosen.values(), *augmented])
    key = (manifest.digest, features_read, canonical_json(policy.described), limit, allow_missing, vectors)
    if key not in loader.datasets:
        loader.datasets[key] = _dataset(manifest, chosen, augmented, policy, limit, allow_missing, vectors, loader)
    return loader.datasets[key], fusion


def _dataset(
    manifest: Manifest,
    chosen: Mapping[str, Choice],
    augmented: Sequence[Choice],
    policy: Policy,
    limit: int | None,
    allow_missing: bool,
    vectors: bool,
    loader: Loader,
) -> Dataset:
    labelled = apply_policy(policy, manifest)
    left_out: dict[str, Any] = {
        f"label {raw} is not in {policy.name}": count for raw, count in labelled.left_out.items()
    }

    keep = np.ones(len(labelled.rows), dtype=bool)
    if limit is not None and limit < len(keep):
        keep[:] = False
        keep[np.linspace(0, len(keep) - 1, limit).round().astype(int)] = True
        left_out[f"--limit {limit}"] = int(np.sum(~keep))
    for choice in [*chosen.values(), *augmented]:
        keep &= ~_quarantined(choice, manifest, labelled.rows, keep, allow_missing, left_out)
        _refuse_missing(choice, manifest, labelled.rows[keep])
    labelled = type(labelled)(labelled.policy, labelled.rows[keep], labelled.labels[keep], labelled.left_out)

    def read(extras: Mapping[str, str] | None = None) -> dict[str, Inputs]:
        asked = {m: replace(choice, extra=(extras or {}).get(m)) for m, choice in sorted(chosen.items())}
        return {m: loader.inputs(choice, manifest, labelled.rows, vectors) for m, choice in asked.items()}

    def reader(choice: Choice) -> Callable[[], dict[str, Inputs]]:
        return lambda: {choice.modality: loader.inputs(choice, manifest, labelled.rows, vectors)}

    specs = [choice.feature.spec for choice in chosen.values()]
    votes = manifest.column("votes")
    targets = soft_labels(labelled.policy, [votes[row] for row in labelled.rows], labelled.labels)
    return Dataset(
        utterances=Utterances.of(manifest, labelled),
        dims={modality: choice.dim(vectors) for modality, choice in sorted(chosen.items())},
        read=read,
        described={
            "corpus": manifest.corpus,
            "manifest": manifest.digest,
            "labels": policy.described,
            "features": {modality: choice.described for modality, choice in sorted(chosen.items())},
            "views": [choice.described for choice in augmented],
            "limit": limit,
        },
        notes={
            "synthetic": manifest.synthetic,
            "random_weights": [spec.name for spec in specs if spec.random_weights],
            # Whole, so that `ser predict` can compute the same features without the store.
            "specs": {
                modality: {**choice.feature.spec.identity(), "provenance": dict(choice.feature.spec.provenance)}
                for modality, choice in sorted(chosen.items())
            },
            "left_out": left_out,
            "store": str(next(iter(chosen.values())).feature.store.resolve()),
        },
        targets=torch.from_numpy(targets),
        views=tuple(reader(choice) for choice in augmented),
    )


def _refuse_missing(choice: Choice, manifest: Manifest, rows: np.ndarray) -> None:
    """Raise `MissingRows`, naming the command, if the feature lacks some of the rows."""
    missing = set(choice.feature.missing(manifest)).intersection(rows.tolist())
    if missing:
        name = choice.feature.spec.name
        raise MissingRows(
            f"{name} lacks {len(missing)} of the {len(rows)} labelled utterances of corpus {manifest.corpus}, such as "
            f"{manifest.ids[min(missing)]}; run `ser features CORPUS --features {name} "
            f"--store {choice.feature.path.parent.parent}`"
        )


def _quarantined(
    choice: Choice,
    manifest: Manifest,
    rows: np.ndarray,
    keep: np.ndarray,
    allow_missing: bool,
    left_out: dict[str, Any],
) -> np.ndarray:
    """Which of the rows are quarantined in this feature, noted in `left_out`; bool [n]."""
    reasons = choice.feature.quarantined(manifest)
    ids = [manifest.ids[row] for row in rows]
    held = np.array([utterance in reasons for utterance in ids], dtype=bool)
    names = [utterance for utterance, out in zip(ids, held & keep, strict=True) if out]
    feature = choice.feature.spec.name
    if names and not allow_missing:
        raise MissingRows(
            f"{feature}: {len(names)} labelled utterances are quarantined, such as {names[0]} ({reasons[names[0]]}); "
            "mend and extract them with `ser features --retry`, or leave them out with --allow-missing"
        )
    left_out |= {f"{feature}: quarantined": names} if names else {}
    return held
