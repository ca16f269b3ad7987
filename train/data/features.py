"""What `--features` names, and the dataset that it makes of a corpus in the store."""

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
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
from ser.cache.spec import Spec, canonical_json
from ser.cache.store import Feature, Store, listed, open_store
from ser.engines.machine import memory
from ser.errors import MissingRows, StoreError, WrongUse

from ..models import Fusion, get_fusion, with_layer_sums
from ..scores import rater_scores
from ..targets import TARGETS
from .dataset import Dataset, Inputs, Pool
from .labels import DIMENSIONS, UNLABELLED, Utterances, apply_policy, get_policy, rater_votes

OWN_HOP = ("logmel", "mfcc")  # whose `hop` is one of their extraction's options, and so another feature


@dataclass(frozen=True)
class FeatureSelection:
    """A feature to train on; if it is `pooled`, `pool` makes one vector of the rows of each utterance.

    With a `hop` its rows are means over so many seconds, of frames that lie closer; the last over what is left.
    `extra` names what is read of the feature in the place of its values, such as its token ids.
    """

    feature: Feature
    pool: Pool = "mean"
    pooled: bool = False
    extra: str | None = None
    hop: float | None = None

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
        spec, hop = self.feature.spec, {} if self.hop is None else {"hop": self.hop}
        return {"feature": spec.name, "fingerprint": self.feature.fingerprint, "pool": self.pool, **hop}

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
        inputs = as_read(Inputs(torch.from_numpy(values), packed.offsets), self.described, self.feature.spec)
        return inputs.pooled(self.pool) if self.pooled else inputs


@dataclass(frozen=True)
class ModalitySelection:
    """What one modality is trained on: one feature, or several side by side in the columns of a row `[rows, Σ dim]`.

    They are all sequences with the same number of rows, or else all vectors, sequences pooled: so as soon as one is at
    utterance level. `sums` says how many successive `parts` the model adds up with learned weights (`LayerSums`): the
    layers of an encoder, or 1 for a feature by itself. Every column is standardised by itself.
    """

    name: str
    parts: tuple[FeatureSelection, ...]
    sums: tuple[int, ...] = (1,)

    @property
    def modality(self) -> str:
        """Whether it is audio or text."""
        return self.parts[0].modality

    @property
    def level(self) -> str:
        """That of its features, or "utterance" if they differ."""
        levels = {one.feature.spec.level for one in self.parts}
        return levels.pop() if len(levels) == 1 else "utterance"

    @property
    def dim(self) -> int:
        """Columns of a row."""
        return sum(one.dim for one in self.parts)

    @property
    def described(self) -> dict[str, Any]:
        """What a run's config records of it; of several features each, and (layers, dim) of each sum."""
        if len(self.parts) == 1:
            return self.parts[0].described
        joined = [one.described for one in self.parts]
        digest = hashlib.sha256(canonical_json(joined)).hexdigest()[:16]
        firsts = np.cumsum([0, *self.sums[:-1]])
        sums = [[layers, self.parts[first].dim] for layers, first in zip(self.sums, firsts, strict=True)]
        return {"feature": self.name, "fingerprint": digest, "pool": "mean", "sums": sums, "joined": joined}

    @property
    def specs(self) -> dict[str, Any]:
        """Whole, so that `ser predict` can compute the same features without the store."""
        specs = [one.feature.spec for one in self.parts]
        found = [{**spec.identity(), "provenance": dict(spec.provenance)} for spec in specs]
        return found[0] if len(found) == 1 else {"joined": found}

    def beside(self, other: "ModalitySelection") -> "ModalitySelection":
        """Both. Raises `WrongUse` if they have a feature in common."""
        if common := {one.feature.path for one in self.parts} & {one.feature.path for one in other.parts}:
            raise WrongUse(f"--features {self.name}+{other.name}: {min(common).parent.name} stands there twice")
        name = "+".join(read_name(one.described) for one in (self, other))
        return ModalitySelection(name, self.parts + other.parts, self.sums + other.sums)

    def each(self, change: Callable[[FeatureSelection], FeatureSelection]) -> "ModalitySelection":
        """The same with each feature changed."""
        return replace(self, parts=tuple(map(change, self.parts)))

    def load(self, manifest: Manifest, rows: np.ndarray) -> Inputs:
        """As `FeatureSelection.load`. Raises `WrongUse` if all do not fit into memory, or their rows are not alike."""
        first = self.parts[0].load(manifest, rows)
        if len(self.parts) == 1:
            return first
        narrow = all(one.feature.spec.dtype == "float16" and not one.pooled for one in self.parts)
        needed = len(first.values) * self.dim * (2 if narrow else 4)
        if (free := memory()[1]) is not None and needed > free:
            raise WrongUse(
                f"{self.name}: {needed / 1e9:.1f} GB of rows do not fit into memory ({free / 1e9:.1f} GB are free); "
                "name fewer layers, such as layers=6-9, extract and train on pool=mean, or give --limit"
            )
        values = torch.empty(len(first.values), self.dim, dtype=torch.float16 if narrow else torch.float32)
        for part, columns in zip(self.parts, values.split([one.dim for one in self.parts], 1), strict=True):
            one = first if part is self.parts[0] else part.load(manifest, rows)
            if not np.array_equal(one.offsets, first.offsets):
                raise WrongUse(
                    f"{self.name}: {part.feature.spec.name} has not as many rows as {self.parts[0].feature.spec.name}; "
                    "join them in a fusion of vectors such as lgf-add, which pools them"
                )
            columns.copy_(one.values)
        return Inputs(values, first.offsets)


def when_read(name: str) -> tuple[str, dict[str, str]]:
    """A feature's name without what is done when it is read, and that: `bert:layer=9,pool=meanstd@3f2a` is
    `bert:layer=9@3f2a` with the pool "meanstd".
    """
    body, at, fingerprint = name.strip().partition("@")
    feature, _, variant = body.partition(":")
    ways = ("pool=",) if feature in OWN_HOP else ("pool=", "hop=")
    kept = ",".join(item for item in variant.split(",") if item and not item.startswith(ways))
    read = dict(item.split("=", 1) for item in variant.split(",") if item.startswith(ways))
    return f"{feature}{':' if kept else ''}{kept}{at}{fingerprint}", read


def read_name(described: Mapping[str, Any]) -> str:
    """The name of a feature that a run's config records, with what is done when it is read."""
    name, own = described["feature"], described.items()
    read = [f"{way}={value}" for way, value in own if way in ("pool", "hop") and value != "mean"]
    return f"{name}{',' if ':' in name else ':'}{','.join(read)}" if read else name


def select_feature(store: Store, name: str, corpus: str) -> ModalitySelection:
    """The feature of that name, and how it is read. Raises `WrongUse` for a way that it cannot be read in.

    With pool=mean it is the stored means of that name (`ser features … pool=mean`) if the store has them. With
    `layers=all` or `layers=6-9` it is the sum of these layers.
    """
    stored, read = when_read(name)
    pool: Any = read.get("pool", "mean")
    if pool not in get_args(Pool):
        raise WrongUse(f"{name}: pool must be {' or '.join(get_args(Pool))}")
    body, _, fingerprint = stored.partition("@")
    feature, _, variant = body.partition(":")
    options = [item for item in variant.split(",") if item]
    found: list[Feature] = []
    if read.get("pool") == "mean":
        with contextlib.suppress(MissingRows):
            found = _stored(store, feature, [*options, "pool=mean"], fingerprint, corpus)
    found = found or _stored(store, feature, options, fingerprint, corpus)
    parts = tuple(FeatureSelection(one, pool, hop=_hop(name, one, read.get("hop"))) for one in found)
    whole = name.strip().partition("@")[0]
    return ModalitySelection(whole if len(parts) > 1 else found[0].spec.name, parts, (len(parts),))


def _hop(name: str, feature: Feature, asked: str | None) -> float | None:
    """The hop asked for, in seconds. Raises `WrongUse` for one that is no multiple of the feature's own."""
    if asked is None:
        return None
    own = feature.spec.hop if feature.spec.level == "frame" else None
    try:
        every = float(asked) / (own or math.nan)
        if round(every) < 2 or abs(round(every) - every) > 1e-6:
            raise ValueError
    except (ValueError, OverflowError):
        known = f"its frames' own, {own:g} s, such as {5 * own:g}" if own else "that of its frames, and it says none"
        raise WrongUse(f"{name}: hop must be a multiple of {known}") from None
    return float(asked)


def _stored(store: Store, feature: str, options: Sequence[str], fingerprint: str, corpus: str) -> list[Feature]:
    """The feature with these options, or in order the layers that `layers=` names, all of one checkpoint.

    The last layer of an encoder that ends in a LayerNorm is the one after it, unless norm=before is asked for.
    `fingerprint` begins that of one of them. Raises `MissingRows` for what is not in the store, `WrongUse` for another
    form of `layers=` and, naming them, if there are several ways.
    """
    name = f"{feature}:{','.join(options)}".rstrip(":")
    asked = [item.removeprefix("layers=") for item in options if item.startswith("layers=")]
    if not asked:
        return [store.feature(f"{name}@{fingerprint}".rstrip("@"), corpus)]
    if not (form := re.fullmatch(r"all|(\d{1,4})-(\d{1,4})", asked[0])):
        raise WrongUse(f"{name}: write layers=all or a range such as layers=6-9")
    norm = "before" if "norm=before" in options else "after"
    rest = {item for item in options if not item.startswith(("layers=", "norm="))}
    ways: dict[bytes, dict[int, Feature]] = {}
    for one in (Feature(store.path, folder) for folder in store.folders() if folder.parent.name == feature):
        own = one.spec.variant.split(",")
        layer = [int(item.removeprefix("layer=")) for item in own if item.startswith("layer=")]
        if layer and rest == {item for item in own if not item.startswith(("layer=", "norm="))}:
            way = ways.setdefault(canonical_json({**one.spec.identity(), "variant": "", "config": {}}), {})
            if layer[0] not in way or one.spec.config.get("norm") == norm:
                way[layer[0]] = one
    found = []
    for way in ways.values():
        deepest = max(way) if form[1] is None else -1  # as far as an earlier version's store says
        last = max(one.spec.provenance.get("layers", deepest) for one in way.values())
        wanted = range(last + 1) if form[1] is None else range(int(form[1]), int(form[2]) + 1)
        layers = [way[layer] for layer in wanted if layer in way]
        other = last in wanted and last in way and norm == "after" and way[last].spec.config.get("norm") == "before"
        if len(layers) == len(wanted) > 0 and not other:
            found += [layers] if any(one.fingerprint.startswith(fingerprint) for one in layers) else []
    if len(found) > 1:
        raise WrongUse(f"{store.path}: {name} is there in several ways, choose one: {listed([w[0] for w in found])}")
    if not found:
        command = f"ser features CORPUS --features {name} --store {store.path}"
        raise MissingRows(f"{store.path}: does not have all of {name}; run `{command}`")
    return found[0]


def as_read(stored: Inputs, described: Mapping[str, Any], spec: Spec) -> Inputs:
    """A feature's rows as a run takes them that records it as `described`: averaged to its `hop`, if it has one."""
    return stored.averaged(round(described["hop"] / spec.hop)) if "hop" in described and spec.hop else stored


def select_features(
    store: Store, features: str, corpus: str, views: str = ""
) -> tuple[dict[str, ModalitySelection], list[ModalitySelection]]:
    """The features of "hubert+is13+mpnet" by modality, whatever their order, and the augmented ones of `views`.

    Raises `WrongUse` for a feature that is named twice, and for a view ("logmel:view=noise-1") that cannot stand in the
    place of one of them, and what `store.feature` raises for one that is not there.
    """
    selected: dict[str, ModalitySelection] = {}
    for name in features.split("+"):
        one = select_feature(store, name, corpus)
        known = selected.get(one.modality)
        selected[one.modality] = known.beside(one) if known else one
    augmented = [select_feature(store, name, corpus) for name in views.split("+") if name]
    for view in augmented:
        plain = selected.get(view.modality)
        forms = {tuple((p.feature.spec.level, p.dim, p.pool, p.hop) for p in one.parts) for one in (plain, view) if one}
        if plain is None or len(forms) > 1 or len(view.parts) > 1:
            raise WrongUse(
                f"--views {views}: {view.name} cannot stand in the place of "
                f"{plain.name if plain else 'any feature that is trained on'}: another level, dimension, pool or hop, "
                "or several features in the place of one"
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

    def load(self, selection: ModalitySelection, manifest: Manifest, rows: np.ndarray) -> Inputs:
        """As `selection.load`."""
        about = " ".join(
            f"{one.feature.path.resolve()} {one.extra or (one.pool if one.pooled else 'rows')} {one.hop or ''}"
            for one in selection.parts
        )
        about = f"{about} {manifest.digest} "
        key = hashlib.sha256(about.encode(errors="surrogateescape") + rows.tobytes()).hexdigest()
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
    target: str = "class",
) -> tuple[Dataset, Fusion]:
    """The corpus's labelled utterances with the features that the fusion takes; those of several corpora for "A+B".

    `only` keeps "scripted" or "improvised" ones, `limit` that many utterances, spread evenly over the corpus. `views`
    names augmented features, joined with `+`, that training mixes in. A `target` without classes keeps utterances of
    any label, one of valence, arousal and dominance those with all three ratings. A `cache` gives what it has made
    before. Raises `WrongUse` for names that do not fit together, `MissingRows` if an utterance lacks a feature
    (quarantined ones may be left out by `allow_missing`).
    """
    cache = cache or DataCache()
    store = open_store(store_path)
    manifest = store.joined_manifest(corpus)
    selected, augmented = select_features(store, features, manifest.corpus, views)
    fusion = get_fusion(fusion_name, {modality: one.level for modality, one in selected.items()})
    policy = get_policy(labels, manifest.column("label")) if TARGETS[target].labelled else UNLABELLED
    asked = [*selected.values(), *augmented]
    if fusion.level == "vector":
        asked = [one.each(lambda part: replace(part, pooled=part.feature.spec.level != "utterance")) for one in asked]
    inputs = {one.modality: one for one in sorted(asked[: len(selected)], key=lambda one: one.modality)}
    if any(max(one.sums) > 1 for one in inputs.values()):
        fusion = with_layer_sums(fusion, {modality: one.described for modality, one in inputs.items()})
    parts = [part for one in asked for part in one.parts]
    about = [[str(part.feature.path), part.pool, part.pooled, part.hop] for part in parts]
    key = canonical_json([manifest.digest, about, policy.described, limit, allow_missing, only, target])
    if key in cache.datasets:
        return cache.datasets[key], fusion

    utterances = apply_policy(policy, manifest, TARGETS[target].undecided)
    votes, of = manifest.column("votes"), utterances.corpora or [manifest.corpus] * len(utterances)
    mute = {*of} - {name for name, row in zip(of, utterances.rows, strict=True) if votes[row]}
    if TARGETS[target].voted and mute:
        raise WrongUse(
            f"--target {target}: corpus {min(mute)} does not hold its raters' votes; train --target class on it"
        )
    left_out: dict[str, Any] = {
        f"label {raw} is not in {policy.name}": count for raw, count in utterances.left_out.items()
    }
    if TARGETS[target].rated:
        kept = np.flatnonzero(np.isfinite(utterances.dimensions).all(1))
        if not len(kept):
            raise WrongUse(
                f"--target {target}: no utterance of corpus {manifest.corpus} has ratings of {', '.join(DIMENSIONS)}; "
                "train --target class on it"
            )
        if absent := len(utterances) - len(kept):
            left_out[f"no rating of {', '.join(DIMENSIONS)}"] = absent
        utterances = utterances.take(kept)
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
    utterances, quarantined = with_rows([part.feature for part in parts], manifest, utterances, allow_missing)
    left_out |= {f"{name}: quarantined": list(held) for name, held in quarantined.items()}
    corpora = {}
    for part in manifest.parts:
        labelled = utterances.labels[[name == part.corpus for name in utterances.corpora]]
        if not len(labelled):
            raise WrongUse(
                f"--corpus: --only, --limit or --target leaves no utterance of corpus {part.corpus}; leave it out"
            )
        sizes = np.bincount(labelled, minlength=len(policy.classes)).tolist()
        corpora[part.corpus] = {"synthetic": part.synthetic, "classes": dict(zip(policy.classes, sizes, strict=False))}
    rows, votes = utterances.rows, manifest.column("votes")

    def read(**extras: str) -> dict[str, Inputs]:
        chosen = {m: one.each(partial(replace, extra=extras.get(m))) for m, one in inputs.items()}
        return {m: cache.load(one, manifest, rows) for m, one in chosen.items()}

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
            **({"only": only} if only else {}),  # runs from before they were options keep their names
            **({"target": target} if target != "class" else {}),
        },
        notes={
            "synthetic": manifest.synthetic,
            "random_weights": [
                one.name for one in selected.values() if any(part.feature.spec.random_weights for part in one.parts)
            ],
            "specs": {modality: one.specs for modality, one in inputs.items()},
            "left_out": left_out,
            "raters": rater_scores(*rater_votes(policy, [votes[row] for row in rows])) if policy.classes else None,
            "store": str(store.path.resolve()),
            **({"corpora": corpora} if corpora else {}),
        },
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
