"""What `--features` names, and the dataset that it makes of a corpus in the store."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import torch

from ser.cache.manifest import Manifest
from ser.cache.spec import Spec, canonical_json, parse_name, short_hash
from ser.cache.store import Feature, Store, listed, open_store
from ser.engines.machine import memory_budget
from ser.errors import MissingRows, WrongUse

from ..models import Fusion, get_fusion, with_layer_sums
from ..options import Experiment
from ..scores import rater_scores
from ..targets import TARGETS
from .dataset import DataCache, Dataset, Inputs, Pool, with_rows
from .labels import UNLABELLED, choose, classes_by_corpus, get_policy, rater_votes
from .splits import corpora_of
from .streamed import Streamed, within


@dataclass(frozen=True)
class FeatureSelection:
    """A feature to train on; where `vectors` are asked for, `pool` makes one of the rows of each utterance.

    With a `hop` its rows are means over so many seconds, of frames that lie closer; the last over what is left.
    `extra` names what is read of the feature in the place of its values, such as its token ids.
    """

    feature: Feature
    pool: Pool = "mean"
    vectors: bool = False
    extra: str | None = None
    hop: float | None = None

    @property
    def pooled(self) -> bool:
        """Whether vectors are to be made of its rows."""
        return self.vectors and self.feature.spec.level != "utterance"

    @property
    def dim(self) -> int:
        """Dimension of a row that the model gets."""
        return self.feature.spec.dim * (2 if self.pooled and self.pool == "meanstd" else 1)

    @property
    def described(self) -> dict[str, Any]:
        """What a run's config records of it."""
        spec, hop = self.feature.spec, {} if self.hop is None else {"hop": self.hop}
        return {"feature": spec.name, "fingerprint": self.feature.fingerprint, "pool": self.pool, **hop}

    def source(self, manifest: Manifest, rows: np.ndarray) -> Streamed:
        """These rows of the manifest, of which one is read now.

        Raises `MissingRows` and `CorruptStore`; of the others all but the content is checked now.
        """
        spec, places = self.feature.spec, self.feature.places(manifest, rows.tolist())
        lengths = np.array([part.offsets[row + 1] - part.offsets[row] for part, row in places], np.int64)
        if not lengths.all():
            raise MissingRows(
                f"{spec.name}: utterance {manifest.ids[rows[lengths.argmin()]]} has no rows at all; "
                "extract it again with `ser features --retry`"
            )

        def read(utterances: np.ndarray) -> Inputs:
            found = [places[number] for number in utterances.tolist()]
            packed = self.feature.gather(found, [""] * len(found), self.extra is not None)
            if self.extra is not None and self.extra not in packed.extras:
                raise MissingRows(
                    f"{spec.name} holds rows without '{self.extra}'; run `ser cache remove "
                    f"{spec.feature}@{self.feature.fingerprint}` and extract it again"
                )
            values = packed.values if self.extra is None else packed.extras[self.extra][:, None]
            return as_read(Inputs(torch.from_numpy(values), packed.offsets), self.described, spec, self.vectors)

        numbers = {part: number for number, part in enumerate(dict.fromkeys(part for part, _ in places))}
        order = np.lexsort(([row for _, row in places], [numbers[part] for part, _ in places]))
        empty = read(order[:1]).values[:0].clone()  # whatever is read has its dtype and dimension
        every = round(self.hop / (spec.hop or math.nan)) if self.hop else 1
        made = np.ones_like(lengths) if self.pooled else -(-lengths // every)
        cost = made * empty.shape[1] * empty.itemsize
        if self.pooled or self.hop is not None or self.extra is not None:  # beside it stands what is stored
            cost += lengths * spec.dim * np.dtype(spec.dtype).itemsize
        return Streamed(empty, np.concatenate([[0], np.cumsum(made)]), read=read, cost=cost, order=order)


@dataclass(frozen=True)
class ModalitySelection:
    """What one modality is trained on: one feature, or several side by side in the columns of a row `[rows, Σ dim]`.

    They are all sequences with the same number of rows, or else all vectors, sequences pooled: so as soon as one is at
    utterance level. `sums` says how many successive `parts` the model adds up with learned weights (`LayerSums`): the
    layers of an encoder, or 1 for a feature by itself. Every column is standardised by itself. `views` stand in the
    place of its one feature in the augmented copies of the utterances.
    """

    name: str
    parts: tuple[FeatureSelection, ...]
    sums: tuple[int, ...] = (1,)
    views: tuple[FeatureSelection, ...] = ()

    @property
    def modality(self) -> str:
        """Whether it is audio or text."""
        return self.parts[0].feature.spec.modality

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
        firsts = np.cumsum([0, *self.sums[:-1]])
        sums = [[layers, self.parts[first].dim] for layers, first in zip(self.sums, firsts, strict=True)]
        return {"feature": self.name, "fingerprint": short_hash(joined), "pool": "mean", "sums": sums, "joined": joined}

    @property
    def specs(self) -> dict[str, Any]:
        """Whole, so that `ser predict` can compute the same features without the store."""
        specs = [one.feature.spec for one in self.parts]
        found = [{**spec.identity(), "provenance": dict(spec.provenance)} for spec in specs]
        return found[0] if len(found) == 1 else {"joined": found}

    def each(self, **changes: Any) -> "ModalitySelection":
        """The same with each feature changed."""
        parts, views = (tuple(replace(one, **changes) for one in side) for side in (self.parts, self.views))
        return replace(self, parts=parts, views=views)

    def source(self, manifest: Manifest, rows: np.ndarray) -> Streamed:
        """As `FeatureSelection.source`; behind these n utterances come the same ones of each view.

        Raises `WrongUse` if the rows of its features are not alike.
        """
        copies, n = [self.parts, *((view,) for view in self.views)], len(rows)
        grid = [[part.source(manifest, rows) for part in parts] for parts in copies]
        for part, source in zip(self.parts, grid[0], strict=True):
            if not np.array_equal(source.offsets, grid[0][0].offsets):
                name, other = (read_name(one.described) for one in (part, self.parts[0]))
                raise WrongUse(
                    f"{self.name}: {name} has not as many rows as {other}; join them in a fusion of vectors such as "
                    "lgf-add, which pools them"
                )
        if len(self.parts) == len(copies) == 1:
            return grid[0][0]
        empty = torch.cat([torch.cat([source.values for source in side], 1) for side in grid])  # of the widest dtype
        lengths = np.concatenate([np.diff(side[0].offsets) for side in grid])

        def read(utterances: np.ndarray) -> Inputs:
            offsets = np.concatenate([[0], np.cumsum(lengths[utterances])])
            values = empty.new_empty(int(offsets[-1]), self.dim)
            firsts = np.searchsorted(utterances, n * np.arange(len(copies) + 1))
            for side, (first, last) in zip(grid, pairwise(firsts), strict=True):
                own = values[offsets[first] : offsets[last]].split([part.dim for part in self.parts], 1)
                for source, columns in zip(side, own, strict=True):
                    columns.copy_(source.read(utterances[first:last] % n).values)
            return Inputs(values, offsets)

        # Beside the rows of all features stand those of one, while they are read.
        beside = np.concatenate([np.max([source.cost for source in side], axis=0) for side in grid])
        order = np.concatenate([side[0].order + n * number for number, side in enumerate(grid)])
        cost = lengths * self.dim * empty.itemsize + beside
        return Streamed(empty, np.concatenate([[0], np.cumsum(lengths)]), read=read, cost=cost, order=order)

    def about(self, manifest: Manifest) -> str:
        """What is loaded, for a `DataCache`."""
        parts = (*self.parts, *self.views)
        ways = [(one.feature.path.resolve(), one.extra, one.pooled and one.pool, one.hop) for one in parts]
        return f"{ways} {len(self.views)} {manifest.digest}"

    def load_once(self, cache: DataCache, manifest: Manifest, rows: np.ndarray) -> Inputs:
        """All of its source in memory, if it is not in the cache already."""
        n = len(rows) * (1 + len(self.views))
        return cache.load(self.about(manifest), rows, lambda: self.source(manifest, rows).read(np.arange(n)))


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
            return _layers(store, feature, options, fingerprint, corpus)
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
    hop = _hop(name, found[0], read["hop"]) if "hop" in read else None  # layers of one checkpoint have one
    parts = tuple(FeatureSelection(one, pool, hop=hop) for one in found)
    whole = re.sub("@[^:]*", "", name.strip())
    return ModalitySelection(whole if len(parts) > 1 else found[0].spec.name, parts, (len(parts),))


def _layers(store: Store, feature: str, options: Sequence[str], fingerprint: str, corpus: str) -> list[Feature]:
    """The layers of `feature` that the one of its options that is `layers=…` names, in order, all of one checkpoint.

    The last layer of an encoder that ends in a LayerNorm is the one after it, unless norm=before is asked for.
    `fingerprint` begins that of any layer of the checkpoint. Raises `MissingRows` for what is not in the store,
    `WrongUse` for another form of `layers=` and, naming them, if there are several ways that are complete for the
    corpus, or none is.
    """
    name = f"{feature}:{','.join(options)}"
    named = dict(item.partition("=")[::2] for item in options)
    if not (form := re.fullmatch(r"all|(\d{1,4})-(\d{1,4})", named.pop("layers"))):
        raise WrongUse(f"{name}: write layers=all or a range such as layers=6-9")
    norm = named.pop("norm", "after")
    ways: dict[bytes, dict[int, Feature]] = {}
    for one in (Feature(store.path, folder) for folder in store.folders() if folder.parent.name == feature):
        own = dict(item.partition("=")[::2] for item in one.spec.variant.split(","))
        layer, _ = int(own.pop("layer", -1)), own.pop("norm", "")
        if layer >= 0 and own == named:
            way = ways.setdefault(canonical_json({**one.spec.identity(), "variant": "", "config": {}}), {})
            if layer not in way or one.spec.config.get("norm") == norm:
                way[layer] = one
    found = []
    for way in ways.values():
        deepest = max(way) if form[1] is None else -1  # as far as an earlier version's store says
        last = max(one.spec.provenance.get("layers", deepest) for one in way.values())
        wanted = range(last + 1) if form[1] is None else range(int(form[1]), int(form[2]) + 1)
        layers = [way[layer] for layer in wanted if layer in way]
        other = last in wanted and last in way and way[last].spec.config.get("norm", "none") not in ("none", norm)
        if len(layers) == len(wanted) > 0 and not other:
            found += [layers] if any(one.fingerprint.startswith(fingerprint) for one in way.values()) else []
    if len(found) > 1:
        manifest = store.joined_manifest(corpus)
        found = [layers for layers in found if all(one.complete(manifest) for one in layers)] or found
    if len(found) > 1:
        raise WrongUse(f"{store.path}: {name} is there in several ways, choose one: {listed([w[0] for w in found])}")
    if not found:
        command = f"ser features CORPUS --features {name} --store {store.path}"
        raise MissingRows(f"{store.path}: does not have all of {name}; run `{command}`")
    return found[0]


def _hop(name: str, feature: Feature, asked: str) -> float:
    """The hop asked for, in seconds. Raises `WrongUse` for one that is no multiple of the feature's own."""
    own = feature.spec.hop if feature.spec.level == "frame" else None
    try:
        every = float(asked) / (own or math.nan)
        if round(every) < 2 or abs(round(every) - every) > 1e-6:
            raise ValueError
    except (ValueError, OverflowError):
        known = f"its frames' own, {own:g} s, such as {5 * own:g}" if own else "that of its frames, and it says none"
        raise WrongUse(f"{name}: hop must be a multiple of {known}") from None
    return float(asked)


def as_read(stored: Inputs, described: Mapping[str, Any], spec: Spec, vectors: bool) -> Inputs:
    """A feature's rows as a run takes them that records it as `described`: at its `hop`, if any, or as `vectors`."""
    read = stored.averaged(round(described["hop"] / spec.hop)) if "hop" in described and spec.hop else stored
    return read.pooled(described["pool"]) if vectors and spec.level != "utterance" else read


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
        if known := selected.get(one.modality):
            joined = "+".join(read_name(side.described) for side in (known, one))
            if common := {part.feature.path for part in known.parts} & {part.feature.path for part in one.parts}:
                raise WrongUse(f"--features {joined}: {min(common).parent.name} stands there twice")
            one = ModalitySelection(joined, known.parts + one.parts, known.sums + one.sums)
        selected[one.modality] = one
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
        copies = (one if one.modality == view.modality else plain for one in augmented)
        selected[view.modality] = replace(plain, views=tuple(one.parts[0] for one in copies))
    return selected, augmented


def load_dataset(asked: Experiment, cache: DataCache | None = None) -> tuple[Dataset, Fusion]:
    """The corpus's labelled utterances with the features that the fusion takes; those of several corpora for "A+B".

    What `asked` says of the training itself is not looked at. A `target` without classes keeps utterances of any label,
    one of valence, arousal and dominance those with all three ratings; a `limit` is spread evenly over the corpus. A
    `cache` gives what it has made before. What does not fit into `memory` is read from the store when it is asked for.
    Raises `WrongUse` for names that do not fit together, `MissingRows` if an utterance lacks a feature (quarantined
    ones may be left out by `allow_missing`).
    """
    cache = cache or DataCache()
    budget = cache.half if asked.memory is None else memory_budget(asked.memory)
    budget = budget and budget // cache.workers
    store, target = open_store(asked.store), TARGETS[asked.target]
    manifest = store.joined_manifest(corpora_of(asked.protocol, asked.corpus))
    selected, augmented = select_features(store, asked.features, manifest.corpus, asked.views)
    levels = {modality: {part.feature.spec.level for part in one.parts} for modality, one in selected.items()}
    fusion = get_fusion(asked.fusion, {m: min(of) if len(of) == 1 else "utterance" for m, of in levels.items()})
    policy = get_policy(asked.labels, manifest.column("label")) if target.labelled else UNLABELLED
    inputs = {m: selected[m].each(vectors=fusion.level == "vector") for m in sorted(selected)}
    if any(max(one.sums) > 1 for one in inputs.values()):
        fusion = with_layer_sums(fusion, {modality: one.described for modality, one in inputs.items()})
    described = {
        "corpus": manifest.corpus,
        "manifest": manifest.digest,
        "labels": {"policy": policy.name, "classes": list(policy.classes), "maps": dict(policy.maps)},
        "features": {modality: one.described for modality, one in inputs.items()},
        "views": [one.described for one in augmented],
        "limit": asked.limit,
        **({"only": asked.only} if asked.only else {}),  # runs from before they were options keep their names
        **({"target": target.name} if target.name != "class" else {}),
    }
    key = canonical_json([described, [one.about(manifest) for one in inputs.values()], asked.allow_missing])
    if key in cache.datasets:
        return cache.datasets[key], fusion

    utterances, left_out = choose(policy, manifest, target, asked.only, asked.limit)
    needed = [part.feature for one in (*selected.values(), *augmented) for part in one.parts]
    utterances, quarantined = with_rows(needed, manifest, utterances, asked.allow_missing)
    left_out |= {f"{name}: quarantined": list(held) for name, held in quarantined.items()}
    corpora = classes_by_corpus(manifest, utterances)
    rows, votes = utterances.rows, manifest.column("votes")

    def read(**extras: str) -> dict[str, Inputs]:
        """By modality, in memory, as far as the budget goes; the rest is streamed."""
        chosen = {modality: one.each(extra=extras.get(modality)) for modality, one in inputs.items()}
        size = 4 * sum(part.bytes for feature in needed for part in feature.parts())  # at most: all of it in float32
        if budget is None or cache.fits(size, budget):
            return {modality: one.load_once(cache, manifest, rows) for modality, one in chosen.items()}
        streams = [one.source(manifest, rows) for one in chosen.values()]
        found = zip(chosen.items(), within(budget, streams, cache.workers, fusion.level == "vector"), strict=True)
        return {
            modality: cache.load(one.about(manifest), rows, stream.held) if hold else stream
            for (modality, one), (hold, stream) in found
        }

    parent = manifest.parent
    random = [one.name for one in selected.values() if any(part.feature.spec.random_weights for part in one.parts)]
    data = cache.datasets[key] = Dataset(
        utterances=utterances,
        dims={modality: one.dim for modality, one in inputs.items()},
        read=read,
        described=described,
        notes={
            "synthetic": manifest.synthetic,
            "random_weights": random,
            "specs": {modality: one.specs for modality, one in inputs.items()},
            "left_out": left_out,
            "store": str(store.path.resolve()),
            **({"corpora": corpora} if corpora else {}),
            **({"transcripts": {"of": parent.corpus, **parent.transcripts}} if parent else {}),
        },
        raters=lambda which: (
            rater_scores(*rater_votes(policy, [votes[row] for row in rows[which]])) if policy.classes else None
        ),
        views=tuple(one.modality for one in augmented),
    )
    return data, fusion
