"""What `--features` names, and the dataset that it makes of a corpus in the store."""

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch

from ser.cache.manifest import Manifest
from ser.cache.part import Packed
from ser.cache.spec import Spec, canonical_json
from ser.cache.store import Feature, Store, open_store
from ser.engines.machine import memory_budget
from ser.errors import MissingRows, WrongUse

from ..models import Fusion, get_fusion, with_layer_sums
from ..scores import rater_scores
from ..targets import TARGETS
from .dataset import DataCache, Dataset, Inputs, Pool, with_rows
from .labels import UNLABELLED, choose, classes_by_corpus, get_policy, rater_votes
from .layers import find_layers

if TYPE_CHECKING:
    from .streamed import Streamed

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
        packed = self.feature.load(manifest, rows.tolist())
        self.check(np.diff(packed.offsets), packed.ids)
        return self.of(packed)

    def check(self, lengths: np.ndarray, ids: Sequence[str]) -> None:
        """Raise `MissingRows` if one of these utterances has no rows."""
        if len(empty := np.flatnonzero(lengths == 0)):
            raise MissingRows(
                f"{self.feature.spec.name}: utterance {ids[empty[0]]} has no rows at all; "
                "extract it again with `ser features --retry`"
            )

    def of(self, packed: Packed) -> Inputs:
        """What is trained on of rows as stored. Raises `MissingRows` if they lack the extra."""
        if self.extra is not None and self.extra not in packed.extras:
            raise MissingRows(
                f"{self.feature.spec.name} holds rows without '{self.extra}'; run `ser cache remove "
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
        return self.parts[0].feature.spec.modality

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
        name = "+".join(read_name(one.described) for one in (self, other))
        if common := {one.feature.path for one in self.parts} & {one.feature.path for one in other.parts}:
            raise WrongUse(f"--features {name}: {min(common).parent.name} stands there twice")
        return ModalitySelection(name, self.parts + other.parts, self.sums + other.sums)

    def each(self, change: Callable[[FeatureSelection], FeatureSelection]) -> "ModalitySelection":
        """The same with each feature changed."""
        return replace(self, parts=tuple(map(change, self.parts)))

    def load(self, manifest: Manifest, rows: np.ndarray) -> Inputs:
        """As `FeatureSelection.load`. Raises `WrongUse` if their rows are not alike."""
        return self.joined(lambda part: part.load(manifest, rows))

    def stream(self, manifest: Manifest, rows: np.ndarray) -> "Streamed":
        """As `load`, but the rows are read when they are asked for; all but their content is checked now."""
        from .streamed import Places, Streamed

        ids = [manifest.ids[row] for row in rows]
        places = {part: Places.of(part.feature, manifest, rows.tolist()) for part in self.parts}
        specs, lengths = {part: part.feature.spec for part in self.parts}, {}
        for part, found in places.items():
            part.check(found.lengths, ids)
            every = round(part.hop / (specs[part].hop or math.nan)) if part.hop else 1
            lengths[part] = np.ones_like(found.lengths) if part.pooled else -(-found.lengths // every)
            self._check_alike(part, lengths[part], lengths[self.parts[0]])

        def read(utterances: np.ndarray) -> Inputs:
            return self.joined(lambda part: part.of(places[part].load(utterances, part.extra is not None)))

        # What stands beside the rows while they are made: those of one feature as stored, and as they are trained on.
        stored = [places[part].lengths * one.dim * np.dtype(one.dtype).itemsize for part, one in specs.items()]
        [first, *others] = self.parts
        plain = not others and not first.pooled and first.hop is None and first.extra is None
        beside = 0 * stored[0] if plain else np.max(stored, axis=0) * min(2, len(self.parts))
        return Streamed.of(read, lengths[self.parts[0]], beside, places[self.parts[0]].order)

    def _check_alike(self, part: FeatureSelection, lengths: np.ndarray, others: np.ndarray) -> None:
        if not np.array_equal(lengths, others):
            name, other = (read_name(each.described) for each in (part, self.parts[0]))
            raise WrongUse(
                f"{self.name}: {name} has not as many rows as {other}; join them in a fusion of vectors such as "
                "lgf-add, which pools them"
            )

    def joined(self, load: Callable[[FeatureSelection], Inputs]) -> Inputs:
        """The features side by side, each as `load` gives it."""
        first = load(self.parts[0])
        if len(self.parts) == 1:
            return first
        exact = any(one.pooled or one.hop is not None for one in self.parts)  # means are float32
        narrow = not exact and all(one.feature.spec.dtype == "float16" for one in self.parts)
        values = torch.empty(len(first.values), self.dim, dtype=torch.float16 if narrow else torch.float32)
        for part, columns in zip(self.parts, values.split([one.dim for one in self.parts], 1), strict=True):
            one = first if part is self.parts[0] else load(part)
            self._check_alike(part, one.offsets, first.offsets)
            columns.copy_(one.values)
        return Inputs(values, first.offsets)

    def about(self, manifest: Manifest) -> str:
        """What is loaded, for a `DataCache`."""
        parts = [(one.feature.path.resolve(), one.extra, one.pooled and one.pool, one.hop) for one in self.parts]
        return f"{parts} {manifest.digest}"

    def load_once(self, cache: DataCache, manifest: Manifest, rows: np.ndarray) -> Inputs:
        """As `load`, if it is not in the cache already."""
        return cache.load(self.about(manifest), rows, partial(self.load, manifest, rows))


def parse_name(name: str) -> tuple[str, list[str], dict[str, str], str]:
    """A feature's name in its parts, among them what is done when it is read.

    Of `bert:layer=9,pool=meanstd@3f2a`, or `bert@3f2a:layer=9,pool=meanstd`: "bert", ["layer=9"], {"pool": "meanstd"}
    and "3f2a".
    """
    plain, _, rest = name.strip().partition("@")
    fingerprint, _, after = rest.partition(":")
    feature, _, before = plain.partition(":")
    items = [item for item in f"{before},{after}".split(",") if item]
    ways = ("pool=",) if feature in OWN_HOP else ("pool=", "hop=")
    read = dict(item.split("=", 1) for item in items if item.startswith(ways))
    return feature, [item for item in items if not item.startswith(ways)], read, fingerprint


def read_name(described: Mapping[str, Any]) -> str:
    """The name of a feature that a run's config records, with what is done when it is read."""
    name, own = described["feature"], described.items()
    read = [f"{way}={value}" for way, value in own if way in ("pool", "hop") and value != "mean"]
    return f"{name}{',' if ':' in name else ':'}{','.join(read)}" if read else name


def select_feature(store: Store, name: str, corpus: str) -> ModalitySelection:
    """The feature of that name, and how it is read. Raises `WrongUse` for a way that it cannot be read in.

    With pool=mean and no hop it is the stored means of that name (`ser features … pool=mean`) if the store has them.
    With `layers=all` or `layers=6-9` it is the sum of these layers.
    """
    feature, options, read, fingerprint = parse_name(name)
    if not feature:
        raise WrongUse(f"a feature without a name: {name!r}; write one, or several joined with +, such as hubert+mpnet")
    pool: Any = read.get("pool", "mean")
    if pool not in get_args(Pool):
        raise WrongUse(f"{name}: pool must be {' or '.join(get_args(Pool))}")
    several = any(item.startswith("layers=") for item in options)

    def find(options: Sequence[str]) -> list[Feature]:
        if several:
            return find_layers(store, feature, options, fingerprint, corpus)
        return [store.feature(f"{feature}:{','.join(options)}".rstrip(":") + f"@{fingerprint}".rstrip("@"), corpus)]

    means = read.get("pool") == "mean" and "hop" not in read
    try:
        found = find([*options, "pool=mean"] if means else options)
    except MissingRows as lacking:
        if not means:
            raise
        try:
            found = find(options)
        except MissingRows as fault:  # the means of layers take a hundredth of their frames, so these are to be made
            raise (lacking if several else fault) from None
    parts = tuple(FeatureSelection(one, pool, hop=_hop(name, one, read.get("hop"))) for one in found)
    whole = re.sub("@[^:]*", "", name.strip())
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
    memory: str | None = None,
) -> tuple[Dataset, Fusion]:
    """The corpus's labelled utterances with the features that the fusion takes; those of several corpora for "A+B".

    `only` keeps "scripted" or "improvised" ones, `limit` that many utterances, spread evenly over the corpus. `views`
    names augmented features, joined with `+`, that training mixes in. A `target` without classes keeps utterances of
    any label, one of valence, arousal and dominance those with all three ratings. A `cache` gives what it has made
    before. What does not fit into `memory`, such as "8GB", is read from the store when it is asked for. Raises
    `WrongUse` for names that do not fit together, `MissingRows` if an utterance lacks a feature (quarantined ones may
    be left out by `allow_missing`).
    """
    cache = cache or DataCache()
    budget = cache.half if memory is None else memory_budget(memory)
    budget = budget and budget // cache.workers
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
    about = [[one.about(manifest), one.described] for one in asked]
    key = canonical_json([about, len(selected), policy.described, limit, allow_missing, only, target])
    if key in cache.datasets:
        return cache.datasets[key], fusion

    utterances, left_out = choose(policy, manifest, TARGETS[target], only, limit)
    utterances, quarantined = with_rows([part.feature for part in parts], manifest, utterances, allow_missing)
    left_out |= {f"{name}: quarantined": list(held) for name, held in quarantined.items()}
    corpora = classes_by_corpus(manifest, utterances)
    rows, votes = utterances.rows, manifest.column("votes")

    def read(**extras: str) -> dict[str, Inputs]:
        chosen = {m: one.each(partial(replace, extra=extras.get(m))) for m, one in inputs.items()}
        return load_within(budget, cache, manifest, rows, chosen, asked[len(selected) :], fusion.level == "vector")

    parent = manifest.parent
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
            "store": str(store.path.resolve()),
            **({"corpora": corpora} if corpora else {}),
            **({"transcripts": {"of": parent.corpus, **parent.transcripts}} if parent else {}),
        },
        raters=lambda which: (
            rater_scores(*rater_votes(policy, [votes[row] for row in rows[which]])) if policy.classes else None
        ),
        views=tuple((one.modality, partial(one.load_once, cache, manifest, rows)) for one in asked[len(selected) :]),
    )
    return data, fusion


def load_within(
    budget: int | None,
    cache: DataCache,
    manifest: Manifest,
    rows: np.ndarray,
    chosen: Mapping[str, ModalitySelection],
    views: Sequence[ModalitySelection],
    vectors: bool,
) -> dict[str, Inputs]:
    """The inputs by modality. What does not fit into the budget is streamed; the views are as what they stand for.

    Raises what `ModalitySelection.load` raises.
    """
    groups = [[one, *(view for view in views if view.modality == modality)] for modality, one in chosen.items()]
    features = {part.feature for group in groups for one in group for part in one.parts}
    # At most: as stored, as they are trained on, and standardised in float32, of which those with views have two.
    size = 4 * sum(part.bytes for feature in features for part in feature.parts()) * (2 if views else 1)
    if budget is not None and not cache.fits(size, budget):
        from .streamed import within

        cache.inputs = {key: one for key, one in cache.inputs.items() if not one.streamed}
        streams = [[one.stream(manifest, rows) for one in group] for group in groups]
        for group, (hold, found) in zip(groups, within(budget, streams, cache.workers, vectors), strict=True):
            for one, stream in zip(group, found, strict=True):
                cache.load(one.about(manifest), rows, stream.held, None if hold else stream)
    return {modality: one.load_once(cache, manifest, rows) for modality, one in chosen.items()}
