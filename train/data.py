"""The labelled utterances of a corpus with their features, loaded once, and the batches cut from them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser.cache.errors import MissingRows
from ser.cache.manifest import Manifest
from ser.cache.store import open_store

from .batch import Batch, Sequences
from .choice import Choice, choose_features, choose_views
from .inputs import Inputs, Scaling
from .labels import apply_policy, get_policy, soft_labels
from .loader import Loader
from .models import Fusion, get_fusion
from .utterances import Utterances


@dataclass
class Dataset:
    """The labelled utterances of a corpus with the inputs of one fusion."""

    utterances: Utterances
    dims: dict[str, int]  # of each modality
    read: Callable[..., Mapping[str, Inputs]]
    described: Mapping[str, Any]  # corpus, manifest and features with their digests, for a run's config
    notes: Mapping[str, Any] = field(default_factory=dict)  # synthetic, random weights, what is left out
    targets: Tensor | None = None  # soft labels [n, K]
    views: tuple[Callable[[], Mapping[str, Inputs]], ...] = ()  # augmented copies of a modality, for training alone

    @cached_property
    def view_inputs(self) -> list[Mapping[str, Inputs]]:
        """The values of each view, by the modality that it changes."""
        with torch.inference_mode(False):
            return [read() for read in self.views]

    @cached_property
    def inputs(self) -> Mapping[str, Inputs]:
        """The values of each modality, read when they are first asked for."""
        with torch.inference_mode(False):  # whoever asks first, training must be able to use them
            return self.read()

    def scaled(self, scaling: Mapping[str, Scaling]) -> "Dataset":
        """The same utterances with their inputs scaled once and for all, in float32."""
        ready = {m: scaling[m].of_all(x) if m in scaling else x for m, x in self.inputs.items()}
        return replace(self, read=lambda: ready)

    def reading(self, extras: Mapping[str, str]) -> "Dataset":
        """The same utterances with an extra of a modality's feature, such as "token", in the place of its values."""
        features = {
            m: {**about, "extra": extras[m]} if m in extras else about
            for m, about in self.described["features"].items()
        }
        return replace(self, read=partial(self.read, extras), described={**self.described, "features": features})

    def batch(self, groups: Sequence[np.ndarray], scaling: Mapping[str, Scaling], soft: bool = False) -> Batch:
        """The batch of the given dialogues (arrays of rows in turn order), its inputs scaled and in float32."""
        rows = np.concatenate(groups)
        inputs = {}
        for modality, stored in self.inputs.items():
            taken = stored.take(rows)
            scale = scaling.get(modality, Tensor.float)
            inputs[modality] = Sequences(scale(taken.values), taken.lengths)
        return Batch(
            inputs=inputs,
            labels=torch.from_numpy(self.utterances.labels[rows]),
            utterances=torch.from_numpy(rows),
            dialogues=torch.tensor([len(group) for group in groups]),
            targets=self.targets[torch.from_numpy(rows)] if soft and self.targets is not None else None,
        )

    def groups(self, rows: np.ndarray, unit: str) -> list[np.ndarray]:
        """The rows as the units that a batch counts: whole dialogues in turn order, or single utterances."""
        return self.utterances.by_dialogue(rows) if unit == "dialogue" else list(rows[:, None])

    def batches(
        self,
        rows: np.ndarray,
        unit: str,
        size: int,
        scaling: Mapping[str, Scaling],
        generator: torch.Generator | None = None,
        soft: bool = False,
    ) -> Iterator[Batch]:
        """All rows once in batches of `size` units, shuffled by `generator` if there is one."""
        groups = self.groups(rows, unit)
        order = torch.randperm(len(groups), generator=generator).tolist() if generator else range(len(groups))
        for start in range(0, len(groups), size):
            yield self.batch([groups[i] for i in order[start : start + size]], scaling, soft)


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
    `+`, that training mixes in. Raises `WrongUse` for names that do not fit
    together, `MissingRows` if an utterance lacks a feature (quarantined ones may be left out by `allow_missing`).
    """
    store = open_store(store_path)
    manifest = store.manifest(corpus)
    chosen = choose_features(store, features, manifest.corpus)
    fusion = get_fusion(fusion_name, {modality: choice.feature.spec.level for modality, choice in chosen.items()})
    augmented = choose_views(store, views, chosen, manifest.corpus)
    labelled = apply_policy(get_policy(labels), manifest)
    left_out = {f"label {raw} is not in {labels}": count for raw, count in labelled.left_out.items()}

    keep = np.ones(len(labelled.rows), dtype=bool)
    if limit is not None and limit < len(keep):
        keep[:] = False
        keep[np.linspace(0, len(keep) - 1, limit).round().astype(int)] = True
        left_out[f"--limit {limit}"] = int(np.sum(~keep))
    for choice in [*chosen.values(), *augmented]:
        keep &= ~_quarantined(choice, manifest, labelled.rows, keep, allow_missing, left_out)
        _refuse_missing(choice, manifest, labelled.rows[keep])
    labelled = type(labelled)(labelled.policy, labelled.rows[keep], labelled.labels[keep], labelled.left_out)

    loader = loader or Loader()
    vectors = fusion.level == "vector"

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
            "labels": {
                "policy": labelled.policy.name,
                "classes": list(labelled.policy.classes),
                "maps": dict(labelled.policy.maps),
            },
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
            "store": str(Path(store_path)),
        },
        targets=torch.from_numpy(targets),
        views=tuple(reader(choice) for choice in augmented),
    ), fusion


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
