"""What `--features` names, and the dataset that it makes of a corpus in the store."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ser.cache.atomic_io import locked
from ser.cache.manifest import Manifest
from ser.cache.spec import canonical_json
from ser.cache.store import Feature, Store, open_store
from ser.errors import MissingRows, StoreError, WrongUse

from ..models import Fusion, get_fusion
from .dataset import Dataset, Inputs, Pool
from .labels import Utterances, apply_policy, get_policy, soft_labels


@dataclass(frozen=True)
class FeatureSelection:
    """A feature to train on; if it is `pooled`, `pool` makes one vector of the rows of each utterance.

    `extra` names what is read of the feature in the place of its values, such as its token ids.
    """

    feature: Feature
    pool: Pool = "mean"
    pooled: bool = False
    extra: str | None = None

    @property
    def modality(self) -> str:
        """Whether it is audio or text."""
        return self.feature.spec.modality

    @property
    def dim(self) -> int:
        """Dimension of a row that the model gets."""
        return self.feature.spec.dim * (2 if self.pooled and self.pool == "meanstd" else 1)

    @property
    def described(self) -> dict[str, Any]:
        """What a run's config records of it."""
        return {"feature": self.feature.spec.name, "fingerprint": self.feature.fingerprint, "pool": self.pool}

    def load(self, manifest: Manifest, rows: np.ndarray) -> Inputs:
        """The feature of the manifest's rows. Raises what `Feature.load` raises, and `MissingRows`."""
        packed, name = self.feature.load(manifest, rows.tolist()), self.feature.spec.name
        if len(empty := np.flatnonzero(np.diff(packed.offsets) == 0)):
            raise MissingRows(
                f"{name}: utterance {packed.ids[empty[0]]} has no rows at all; "
                "extract it again with `ser features --retry`"
            )
        if self.extra is not None and self.extra not in packed.extras:
            raise MissingRows(
                f"{name} holds rows without '{self.extra}'; run `ser cache remove "
                f"{self.feature.spec.feature}@{self.feature.fingerprint}` and extract it again"
            )
        values = packed.values if self.extra is None else packed.extras[self.extra][:, None]
        inputs = Inputs(torch.from_numpy(values), packed.offsets)
        return inputs.pooled(self.pool) if self.pooled else inputs


def select_feature(store: Store, name: str, corpus: str) -> FeatureSelection:
    """The feature of that name: `bert:layer=9,pool=meanstd@3f2a` is `bert:layer=9@3f2a`, pooled by "meanstd"."""
    body, at, fingerprint = name.strip().partition("@")
    feature, _, variant = body.partition(":")
    options = [item for item in variant.split(",") if item]
    pool: Any = ["mean", *(item.removeprefix("pool=") for item in options if item.startswith("pool="))][-1]
    if pool not in get_args(Pool):
        raise WrongUse(f"{name}: pool must be {' or '.join(get_args(Pool))}")
    kept = ",".join(item for item in options if not item.startswith("pool="))
    return FeatureSelection(store.feature(f"{feature}{':' if kept else ''}{kept}{at}{fingerprint}", corpus), pool)


def select_features(
    store: Store, features: str, corpus: str, views: str = ""
) -> tuple[dict[str, FeatureSelection], list[FeatureSelection]]:
    """The features of "hubert+mpnet" by modality, whatever their order, and the augmented ones of `views`.

    Raises `WrongUse` for two features of one modality, and for a view ("logmel:view=noise-1") that cannot stand in the
    place of one of them, and what `store.feature` raises for one that is not there.
    """
    selected: dict[str, FeatureSelection] = {}
    for name in features.split("+"):
        one = select_feature(store, name, corpus)
        if (other := selected.get(one.modality)) is not None:
            raise WrongUse(
                f"--features {features}: {other.feature.spec.name} and {one.feature.spec.name} are both "
                f"{one.modality} features, and a fusion takes one of each; train one run for each of them"
            )
        selected[one.modality] = one
    augmented = [select_feature(store, name, corpus) for name in views.split("+") if name]
    for view in augmented:
        plain = selected.get(view.modality)
        forms = {(one.feature.spec.level, one.feature.spec.dim, one.pool) for one in (plain, view) if one}
        if plain is None or len(forms) > 1:
            raise WrongUse(
                f"--views {views}: {view.feature.spec.name} cannot stand in the place of "
                f"{plain.feature.spec.name if plain else 'any feature that is trained on'}: another level, dimension "
                "or pool"
            )
    return selected, augmented


@dataclass
class DataCache:
    """What one experiment has loaded, for those that follow.

    With a folder `shared` it serves several processes: the first that needs a feature leaves it there packed, and all
    map the same pages of it.
    """

    shared: Path | None = None
    inputs: dict[str, Inputs] = field(default_factory=dict)
    datasets: dict[bytes, Dataset] = field(default_factory=dict)

    def load(self, selection: FeatureSelection, manifest: Manifest, rows: np.ndarray) -> Inputs:
        """As `selection.load`."""
        what = selection.extra or (selection.pool if selection.pooled else "rows")
        about = f"{selection.feature.path.resolve()} {manifest.digest} {what} ".encode(errors="surrogateescape")
        key = hashlib.sha256(about + rows.tobytes()).hexdigest()
        if key not in self.inputs:
            load = partial(selection.load, manifest, rows)
            self.inputs[key] = load() if self.shared is None else _shared(self.shared / key, load)
        return self.inputs[key]


def _shared(path: Path, load: Callable[[], Inputs]) -> Inputs:
    """What `load` gives, through a file, which all processes map, written by whoever comes first."""
    file, begun = path.with_suffix(".safetensors"), path.with_suffix(f".{os.getpid()}.part")  # there may be no locks
    with locked(path.with_suffix(".lock")):
        if not file.exists():
            inputs = load()
            try:
                save_file({"values": inputs.values, "offsets": torch.from_numpy(inputs.offsets)}, begun)
            except SafetensorError as fault:
                raise StoreError(
                    f"{path.parent}: cannot be written ({fault}); free some space and run the same command again"
                ) from None
            begun.replace(file)
    tensors = load_file(file)
    return Inputs(tensors["values"], tensors["offsets"].numpy())


def load_dataset(
    store_path: str | Path,
    features: str,
    fusion_name: str,
    corpus: str | None = None,
    labels: str = "4class",
    limit: int | None = None,
    allow_missing: bool = False,
    cache: DataCache | None = None,
    views: str = "",
    only: str | None = None,
) -> tuple[Dataset, Fusion]:
    """The corpus's labelled utterances with the features that the fusion takes.

    `only` keeps "scripted" or "improvised" ones, `limit` that many utterances, spread evenly over the corpus. `views`
    names augmented features, joined with `+`, that training mixes in. A `cache` gives what it has made before. Raises
    `WrongUse` for names that do not fit together, `MissingRows` if an utterance lacks a feature (quarantined ones may
    be left out by `allow_missing`).
    """
    cache = cache or DataCache()
    store = open_store(store_path)
    manifest = store.manifest(corpus)
    selected, augmented = select_features(store, features, manifest.corpus, views)
    fusion = get_fusion(fusion_name, {modality: one.feature.spec.level for modality, one in selected.items()})
    policy = get_policy(labels, manifest.column("label"))
    asked = [*selected.values(), *augmented]
    if fusion.level == "vector":
        asked = [replace(one, pooled=one.feature.spec.level != "utterance") for one in asked]
    about = [[str(one.feature.path), one.pool, one.pooled] for one in asked]
    key = canonical_json([manifest.digest, about, policy.described, limit, allow_missing, only])
    if key in cache.datasets:
        return cache.datasets[key], fusion

    utterances = apply_policy(policy, manifest)
    left_out: dict[str, Any] = {
        f"label {raw} is not in {policy.name}": count for raw, count in utterances.left_out.items()
    }
    if only is not None:
        kept = np.flatnonzero([only.startswith((scene or "?").split()[0]) for scene in utterances.scenes])
        if not len(kept):
            raise WrongUse(
                f"--only {only}: no id of corpus {manifest.corpus} says that its utterance is {only}, as IEMOCAP's do "
                "(Ses01F_script01_1_F000, Ses01F_impro01_F000); leave --only out"
            )
        left_out[f"--only {only}"] = len(utterances) - len(kept)
        utterances = utterances.take(kept)
    if limit is not None and limit < len(utterances):
        left_out[f"--limit {limit}"] = len(utterances) - limit
        utterances = utterances.take(np.linspace(0, len(utterances) - 1, limit).round().astype(int))
    utterances, quarantined = with_rows([one.feature for one in asked], manifest, utterances, allow_missing)
    left_out |= {f"{name}: quarantined": list(held) for name, held in quarantined.items()}
    inputs = {one.modality: one for one in sorted(asked[: len(selected)], key=lambda one: one.modality)}
    specs = {modality: one.feature.spec for modality, one in inputs.items()}
    rows, votes = utterances.rows, manifest.column("votes")

    def read(**extras: str) -> dict[str, Inputs]:
        return {m: cache.load(replace(one, extra=extras.get(m)), manifest, rows) for m, one in inputs.items()}

    data = cache.datasets[key] = Dataset(
        utterances=utterances,
        dims={modality: one.dim for modality, one in inputs.items()},
        read=read,
        described={
            "corpus": manifest.corpus,
            "manifest": manifest.digest,
            "labels": policy.described,
            "features": {modality: one.described for modality, one in inputs.items()},
            "views": [one.described for one in augmented],
            "limit": limit,
            **({"only": only} if only else {}),  # runs from before it was an option keep their names
        },
        notes={
            "synthetic": manifest.synthetic,
            "random_weights": [specs[modality].name for modality in selected if specs[modality].random_weights],
            # Whole, so that `ser predict` can compute the same features without the store.
            "specs": {m: {**spec.identity(), "provenance": dict(spec.provenance)} for m, spec in specs.items()},
            "left_out": left_out,
            "store": str(store.path.resolve()),
        },
        targets=torch.from_numpy(soft_labels(policy, [votes[row] for row in rows], utterances.labels)),
        views=tuple((one.modality, partial(cache.load, one, manifest, rows)) for one in asked[len(selected) :]),
    )
    return data, fusion


def with_rows(
    features: Sequence[Feature], manifest: Manifest, utterances: Utterances, allow_missing: bool
) -> tuple[Utterances, dict[str, dict[str, str]]]:
    """The utterances that every feature has, and by feature why others are quarantined in it, by id.

    Raises `MissingRows`, naming the command, for one that is lacking, and unless `allow_missing` for a quarantined one.
    """
    quarantined = {}
    for feature in features:
        name, reasons = feature.spec.name, feature.quarantined(manifest)
        held = {utterance: reasons[utterance] for utterance in utterances.ids if utterance in reasons}
        if held and not allow_missing:
            example, why = next(iter(held.items()))
            raise MissingRows(
                f"{name}: {len(held)} labelled utterances are quarantined, such as {example} ({why}); "
                "mend and extract them with `ser features --retry`, or leave them out with --allow-missing"
            )
        if held:
            quarantined[name] = held
            utterances = utterances.take(np.flatnonzero([utterance not in held for utterance in utterances.ids]))
        if missing := set(feature.missing(manifest)).intersection(utterances.rows.tolist()):
            raise MissingRows(
                f"{name} lacks {len(missing)} of the {len(utterances)} labelled utterances of corpus "
                f"{manifest.corpus}, such as {manifest.ids[min(missing)]}; run `ser features CORPUS --features {name} "
                f"--store {feature.path.parent.parent}`"
            )
    return utterances, quarantined
