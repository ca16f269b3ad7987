"""The features that `--features` names, and the dataset that they make of a corpus in the store."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import torch
from msgspec import to_builtins

from ser.cache.feature import Feature
from ser.cache.feature_name import parse_feature_name
from ser.cache.spec import Spec
from ser.cache.store import Store, listed, open_store
from ser.corpus.manifest import Manifest
from ser.disk.records import canonical_json, short_hash
from ser.engines.machine import memory_budget
from ser.errors import MissingRows, WrongUse

from ..models import Fusion, get_fusion, with_layer_sums
from ..options import Experiment
from ..records import FeatureRecord, LabelRecord
from ..scores.raters import rater_scores
from ..targets import TARGETS
from .chosen import choose, classes_by_corpus
from .dataset import DataCache, Dataset, Inputs, Pool, with_rows
from .labels import UNLABELLED, get_policy
from .protocols import corpora_of
from .streamed import Streamed, within
from .votes import rater_votes


@dataclass(frozen=True)
class FeatureSelection:
    """A feature to train on; with `vectors`, `pool` makes one of the rows of each utterance.

    With a `hop` its rows are means over so many seconds, of frames that lie closer; the last over
    what is left. `extra` names what is read of the feature in place of its values, such as its
    token ids.
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
    def described(self) -> FeatureRecord:
        """What a run's config records of it."""
        return FeatureRecord(
            feature=self.feature.spec.name,
            fingerprint=self.feature.fingerprint,
            pool=self.pool,
            hop=self.hop,
        )

    def source(self, manifest: Manifest, rows: np.ndarray) -> Streamed:
        """These rows of the manifest; one of them is read now, and of the others all but the
        content is checked.

        Raises `MissingRows` and `CorruptStore`.
        """
        spec, places = self.feature.spec, self.feature.places(manifest, rows.tolist())
        lengths = np.array(
            [part.offsets[row + 1] - part.offsets[row] for part, row in places], np.int64
        )
        if not lengths.all():
            raise MissingRows(
                f"{spec.name}: utterance {manifest.ids[rows[lengths.argmin()]]} has no rows at all; "
                "extract it again with `ser features --retry`"
            )

        def read(utterances: np.ndarray) -> Inputs:
            chosen = [places[number] for number in utterances.tolist()]
            packed = self.feature.gather(chosen, [""] * len(chosen), self.extra is not None)
            if self.extra is not None and self.extra not in packed.extras:
                raise MissingRows(
                    f"{spec.name} holds rows without '{self.extra}'; run `ser cache remove "
                    f"{spec.feature}@{self.feature.fingerprint}` and extract it again"
                )
            values = packed.values if self.extra is None else packed.extras[self.extra][:, None]
            return as_read(
                Inputs(torch.from_numpy(values), packed.offsets), self.described, spec, self.vectors
            )

        numbers = {
            part: number for number, part in enumerate(dict.fromkeys(part for part, _ in places))
        }
        order = np.lexsort(([row for _, row in places], [numbers[part] for part, _ in places]))
        empty = read(order[:1]).values[:0].clone()  # whatever is read has its dtype and dimension
        every = round(self.hop / (spec.hop or math.nan)) if self.hop else 1
        made = np.ones_like(lengths) if self.pooled else -(-lengths // every)
        cost = made * empty.shape[1] * empty.itemsize
        if (
            self.pooled or self.hop is not None or self.extra is not None
        ):  # beside it stands what is stored
            cost += lengths * spec.dim * np.dtype(spec.dtype).itemsize
        return Streamed(
            empty, np.concatenate([[0], np.cumsum(made)]), read=read, cost=cost, order=order
        )


@dataclass(frozen=True)
class ModalitySelection:
    """What one modality is trained on: one feature, or several side by side in the columns of a row
    `[rows, Σ dim]`.

    They are all sequences with the same number of rows, or else all vectors, sequences pooled: so
    as soon as one is at utterance level. `sums` says how many successive `parts` the model adds up
    with learned weights (`LayerSums`): the layers of an encoder, or 1 for a feature by itself.
    Every column is standardised by itself. `views` stand in the place of its one feature in the
    augmented copies of the utterances.
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
    def described(self) -> FeatureRecord:
        """What a run's config records of it; of several features each, and (layers, dim) of each
        sum.
        """
        if len(self.parts) == 1:
            return self.parts[0].described
        joined, sums, first = [part.described for part in self.parts], [], 0
        for layers in self.sums:
            sums.append((layers, self.parts[first].dim))
            first += layers
        return FeatureRecord(
            feature=self.name,
            fingerprint=short_hash(to_builtins(joined)),
            pool="mean",
            sums=sums,
            joined=joined,
        )

    @property
    def specs(self) -> dict[str, Any]:
        """Whole, so that `ser predict` can compute the same features without the store."""
        specs = [part.feature.spec for part in self.parts]
        records = [{**spec.identity(), "provenance": dict(spec.provenance)} for spec in specs]
        return records[0] if len(records) == 1 else {"joined": records}

    def each(self, **changes: Any) -> "ModalitySelection":
        """The same with each feature changed."""
        parts, views = (
            tuple(replace(one, **changes) for one in side) for side in (self.parts, self.views)
        )
        return replace(self, parts=parts, views=views)

    def source(self, manifest: Manifest, rows: np.ndarray) -> Streamed:
        """As `FeatureSelection.source`; behind these n utterances come the same ones of each view.

        Raises `WrongUse` if the rows of its features are not alike.
        """
        copies, n = [self.parts, *((view,) for view in self.views)], len(rows)
        grid = [[part.source(manifest, rows) for part in parts] for parts in copies]
        for part, source in zip(self.parts, grid[0], strict=True):
            if not np.array_equal(source.offsets, grid[0][0].offsets):
                name = part.described.read_name
                other = self.parts[0].described.read_name
                remedy = "join them in a fusion of vectors such as lgf-add, which pools them"
                raise WrongUse(f"{self.name}: {name} has not as many rows as {other}; {remedy}")
        if len(self.parts) == len(copies) == 1:
            return grid[0][0]
        empty = torch.cat(
            [torch.cat([source.values for source in side], 1) for side in grid]
        )  # of the widest dtype
        lengths = np.concatenate([np.diff(side[0].offsets) for side in grid])

        def read(utterances: np.ndarray) -> Inputs:
            offsets = np.concatenate([[0], np.cumsum(lengths[utterances])])
            values = empty.new_empty(int(offsets[-1]), self.dim)
            firsts = np.searchsorted(utterances, n * np.arange(len(copies) + 1))
            for side, (first, last) in zip(grid, pairwise(firsts), strict=True):
                own = values[offsets[first] : offsets[last]].split(
                    [part.dim for part in self.parts], 1
                )
                for source, columns in zip(side, own, strict=True):
                    columns.copy_(source.read(utterances[first:last] % n).values)
            return Inputs(values, offsets)

        # Beside the rows of all features stand those of one, while they are read.
        beside = np.concatenate([np.max([source.cost for source in side], axis=0) for side in grid])
        order = np.concatenate([side[0].order + n * number for number, side in enumerate(grid)])
        cost = lengths * self.dim * empty.itemsize + beside
        return Streamed(
            empty, np.concatenate([[0], np.cumsum(lengths)]), read=read, cost=cost, order=order
        )

    def about(self, manifest: Manifest) -> str:
        """What is loaded, for a `DataCache`."""
        parts = (*self.parts, *self.views)
        ways = [
            (part.feature.path.resolve(), part.extra, part.pooled and part.pool, part.hop)
            for part in parts
        ]
        return f"{ways} {len(self.views)} {manifest.digest}"

    def load_once(self, cache: DataCache, manifest: Manifest, rows: np.ndarray) -> Inputs:
        """All of its source in memory, if it is not in the cache already."""
        n = len(rows) * (1 + len(self.views))
        return cache.load(
            self.about(manifest), rows, lambda: self.source(manifest, rows).read(np.arange(n))
        )


def select_feature(store: Store, name: str, corpus: str) -> ModalitySelection:
    """The feature of that name, and how it is read. Raises `WrongUse` for a way that it cannot be
    read in.

    With pool=mean and no hop it is the stored means of that name (`ser features … pool=mean`) if
    the store has them. With `layers=all` or `layers=6-9` it is the sum of these layers.
    """
    feature, options, read, fingerprint = parse_feature_name(name)
    if not feature:
        raise WrongUse(
            f"a feature without a name: {name!r}; write one, or several joined with +, such as hubert+mpnet"
        )
    pool: Any = read.get("pool", "mean")
    if pool not in get_args(Pool):
        raise WrongUse(f"{name}: pool must be {' or '.join(get_args(Pool))}")
    several = any(item.startswith("layers=") for item in options)

    def find(options: Sequence[str]) -> list[Feature]:
        if several:
            return _layers(store, feature, options, fingerprint, corpus)
        return [
            store.feature(
                f"{feature}:{','.join(options)}".rstrip(":") + f"@{fingerprint}".rstrip("@"), corpus
            )
        ]

    means = read.get("pool") == "mean" and "hop" not in read
    try:
        layers = find([*options, "pool=mean"] if means else options)
    except MissingRows as no_means:
        if not means:
            raise
        try:
            layers = find(options)
        except (
            MissingRows
        ) as fault:  # the means of layers take a hundredth of their frames, so these are to be made
            raise (no_means if several else fault) from None
    hop = (
        _hop(name, layers[0], read["hop"]) if "hop" in read else None
    )  # layers of one checkpoint have one
    parts = tuple(FeatureSelection(layer, pool, hop=hop) for layer in layers)
    full_name = re.sub("@[^:]*", "", name.strip())
    return ModalitySelection(
        full_name if len(parts) > 1 else layers[0].spec.name, parts, (len(parts),)
    )


def _layers(
    store: Store, feature: str, options: Sequence[str], fingerprint: str, corpus: str
) -> list[Feature]:
    """The layers of `feature` that its option `layers=…` names, in order, all of one checkpoint.

    The last layer of an encoder that ends in a LayerNorm is the one after it, unless norm=before is
    among the options. `fingerprint` begins that of any layer of the checkpoint. Raises
    `MissingRows` for what is not in the store, `WrongUse` for another form of `layers=` and, naming
    them, if there are several ways that are complete for the corpus, or none is.
    """
    name = f"{feature}:{','.join(options)}"
    named = dict(item.partition("=")[::2] for item in options)
    if not (form := re.fullmatch(r"all|(\d{1,4})-(\d{1,4})", named.pop("layers"))):
        raise WrongUse(f"{name}: write layers=all or a range such as layers=6-9")
    norm = named.pop("norm", "after")
    ways: dict[bytes, dict[int, Feature]] = {}
    for one in (
        Feature(store.path, folder) for folder in store.folders() if folder.parent.name == feature
    ):
        own = dict(item.partition("=")[::2] for item in one.spec.variant.split(","))
        layer, _ = int(own.pop("layer", -1)), own.pop("norm", "")
        if layer >= 0 and own == named:
            way = ways.setdefault(
                canonical_json({**one.spec.identity(), "variant": "", "config": {}}), {}
            )
            if layer not in way or one.spec.config.get("norm") == norm:
                way[layer] = one
    complete = []
    for way in ways.values():
        if not any(one.fingerprint.startswith(fingerprint) for one in way.values()):
            continue
        deepest = max(way) if form[1] is None else -1  # as far as an earlier version's store says
        last = max(one.spec.provenance.get("layers", deepest) for one in way.values())
        wanted = range(last + 1) if form[1] is None else range(int(form[1]), int(form[2]) + 1)
        if not wanted or not all(layer in way for layer in wanted):
            continue
        if last not in wanted or way[last].spec.config.get("norm", "none") in ("none", norm):
            complete.append([way[layer] for layer in wanted])
    if len(complete) > 1:
        manifest = store.joined_manifest(corpus)
        complete = [
            layers for layers in complete if all(one.complete(manifest) for one in layers)
        ] or complete
    if len(complete) > 1:
        firsts = listed([layers[0] for layers in complete])
        raise WrongUse(f"{store.path}: {name} is there in several ways, choose one: {firsts}")
    if not complete:
        command = f"ser features CORPUS --features {name} --store {store.path}"
        raise MissingRows(f"{store.path}: does not have all of {name}; run `{command}`")
    return complete[0]


def _hop(name: str, feature: Feature, text: str) -> float:
    """The hop in seconds. Raises `WrongUse` for one that is not a multiple of the feature's own."""
    own = feature.spec.hop if feature.spec.level == "frame" else None
    try:
        frames = float(text) / (own or math.nan)
        if round(frames) < 2 or abs(round(frames) - frames) > 1e-6:
            raise ValueError
    except (ValueError, OverflowError):
        known = (
            f"its frames' own, {own:g} s, such as {5 * own:g}"
            if own
            else "that of its frames, and it has none"
        )
        raise WrongUse(f"{name}: hop must be a multiple of {known}") from None
    return float(text)


def as_read(stored: Inputs, record: FeatureRecord, spec: Spec, vectors: bool) -> Inputs:
    """A feature's rows as a run takes them that has this record of it: at its `hop`, if any, or as
    `vectors`.
    """
    if record.hop and spec.hop:
        stored = stored.averaged(round(record.hop / spec.hop))
    return stored.pooled(record.pool) if vectors and spec.level != "utterance" else stored


def select_features(
    store: Store, features: str, corpus: str, views: str = ""
) -> tuple[dict[str, ModalitySelection], list[ModalitySelection]]:
    """The features of "hubert+is13+mpnet" by modality, whatever their order, and the augmented ones
    of `views`.

    Raises `WrongUse` for a feature that is named twice, and for a view ("logmel:view=noise-1") that
    cannot stand in the place of one of them, and what `store.feature` raises for one that is not
    there.
    """
    selected: dict[str, ModalitySelection] = {}
    for name in features.split("+"):
        one = select_feature(store, name, corpus)
        if before := selected.get(one.modality):
            joined = f"{before.described.read_name}+{one.described.read_name}"
            if common := {part.feature.path for part in before.parts} & {
                part.feature.path for part in one.parts
            }:
                raise WrongUse(f"--features {joined}: names {min(common).parent.name} twice")
            one = ModalitySelection(joined, before.parts + one.parts, before.sums + one.sums)
        selected[one.modality] = one
    augmented = [select_feature(store, name, corpus) for name in views.split("+") if name]
    for view in augmented:
        plain = selected.get(view.modality)
        forms = {
            tuple((p.feature.spec.level, p.dim, p.pool, p.hop) for p in one.parts)
            for one in (plain, view)
            if one
        }
        if plain is None or len(forms) > 1 or len(view.parts) > 1:
            replaced = plain.name if plain else "any feature that is trained on"
            raise WrongUse(
                f"--views {views}: {view.name} cannot take the place of {replaced}: another level, dimension, pool or "
                "hop, or several features in place of one"
            )
        copies = (one if one.modality == view.modality else plain for one in augmented)
        selected[view.modality] = replace(plain, views=tuple(one.parts[0] for one in copies))
    return selected, augmented


def load_dataset(experiment: Experiment, cache: DataCache | None = None) -> tuple[Dataset, Fusion]:
    """The corpus's labelled utterances with the features that the fusion takes; those of several
    corpora for "A+B".

    The experiment's options of the training itself are ignored. A `target` without classes keeps
    utterances of any label, one of valence, arousal and dominance those with all three ratings; a
    `limit` is spread evenly over the corpus. A `cache` gives what it has made before. What does not
    fit into `memory` is read from the store when it is needed. Raises `WrongUse` for names that do
    not fit together, `MissingRows` if an utterance lacks a feature (quarantined ones may be left
    out by `allow_missing`).
    """
    cache = cache or DataCache()
    budget = cache.half if experiment.memory is None else memory_budget(experiment.memory)
    budget = budget and budget // cache.workers
    store, target = open_store(experiment.store), TARGETS[experiment.target]
    manifest = store.joined_manifest(corpora_of(experiment.protocol, experiment.corpus))
    selected, augmented = select_features(
        store, experiment.features, manifest.corpus, experiment.views
    )
    levels = {}
    for modality, one in selected.items():
        distinct = {part.feature.spec.level for part in one.parts}
        levels[modality] = distinct.pop() if len(distinct) == 1 else "utterance"
    fusion = get_fusion(experiment.fusion, levels)
    policy = (
        get_policy(experiment.labels, manifest.column("label")) if target.labelled else UNLABELLED
    )
    inputs = {m: selected[m].each(vectors=fusion.level == "vector") for m in sorted(selected)}
    if any(max(one.sums) > 1 for one in inputs.values()):
        fusion = with_layer_sums(
            fusion, {modality: one.described.sums or [] for modality, one in inputs.items()}
        )
    described = {
        "corpus": manifest.corpus,
        "manifest": manifest.digest,
        "labels": LabelRecord(
            policy=policy.name, classes=list(policy.classes), maps=dict(policy.maps)
        ),
        "features": {modality: one.described for modality, one in inputs.items()},
        "views": [one.described for one in augmented],
        "limit": experiment.limit,
        **(
            {"only": experiment.only} if experiment.only else {}
        ),  # runs from before they were options keep their names
        **({"target": target.name} if target.name != "class" else {}),
    }
    key = canonical_json(
        [
            to_builtins(described),
            [one.about(manifest) for one in inputs.values()],
            experiment.allow_missing,
        ]
    )
    if key in cache.datasets:
        return cache.datasets[key], fusion

    utterances, left_out = choose(policy, manifest, target, experiment.only, experiment.limit)
    needed = [part.feature for one in (*selected.values(), *augmented) for part in one.parts]
    utterances, quarantined = with_rows(needed, manifest, utterances, experiment.allow_missing)
    left_out |= {f"{name}: quarantined": list(reasons) for name, reasons in quarantined.items()}
    corpora = classes_by_corpus(manifest, utterances)
    rows, votes = utterances.rows, manifest.column("votes")

    def read(**extras: str) -> dict[str, Inputs]:
        """By modality, in memory, as far as the budget goes; the rest is streamed."""
        chosen = {
            modality: one.each(extra=extras.get(modality)) for modality, one in inputs.items()
        }
        size = 4 * sum(
            part.bytes for feature in needed for part in feature.parts()
        )  # at most: all of it in float32
        if budget is None or cache.fits(size, budget):
            return {
                modality: one.load_once(cache, manifest, rows) for modality, one in chosen.items()
            }
        streams = [one.source(manifest, rows) for one in chosen.values()]
        found: dict[str, Inputs] = {}
        limited = within(budget, streams, cache.workers, fusion.level == "vector")
        for (modality, one), (hold, stream) in zip(chosen.items(), limited, strict=True):
            found[modality] = cache.load(one.about(manifest), rows, stream.held) if hold else stream
        return found

    parent = manifest.parent
    random = [
        one.name
        for one in selected.values()
        if any(part.feature.spec.random_weights for part in one.parts)
    ]
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
            rater_scores(*rater_votes(policy, [votes[row] for row in rows[which]]))
            if policy.classes
            else None
        ),
        views=tuple(one.modality for one in augmented),
    )
    return data, fusion
