"""The features that `--features` and `--views` name."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast, get_args

from msgspec import to_builtins

from ser.cache.extract_command import extract_command
from ser.cache.feature import Feature
from ser.cache.feature_name import parse_feature_name
from ser.cache.store import Store, listed
from ser.corpus.manifest import Manifest
from ser.disk.paths import real_path
from ser.disk.records import canonical_json, short_hash
from ser.errors import MissingRows, WrongUse

from ..records import FeatureRecord
from .inputs import Pool

POOLS = get_args(Pool)


@dataclass(frozen=True)
class FeatureSelection:
    """A feature to train on, and how its rows are read."""

    feature: Feature
    pool: Pool = "mean"
    """How `vectors` are made of an utterance's rows."""
    vectors: bool = False
    """Whether the model takes one vector for each utterance."""
    extra: str | None = None
    """What is read of the feature in place of its values, such as its token ids."""
    beside: str | None = None
    """An extra that is read as one more column beside the values."""
    hop: float | None = None
    """Seconds over which frames, that lie closer, are averaged; the last over what is left."""

    @property
    def level(self) -> str:
        """What a row stands for as it is read: "frame", "token" or "utterance"."""
        return "utterance" if self.vectors else self.feature.spec.level

    @property
    def pooled(self) -> bool:
        """Whether vectors are to be made of its rows."""
        return self.vectors and self.feature.spec.level != "utterance"

    @property
    def dim(self) -> int:
        """Dimension of a row that the model gets."""
        if self.pooled and self.pool == "meanstd":
            return 2 * self.feature.spec.dim
        return self.feature.spec.dim

    @property
    def record(self) -> FeatureRecord:
        """What a run's config holds of it."""
        return FeatureRecord(
            feature=self.feature.spec.name,
            fingerprint=self.feature.fingerprint,
            pool=self.pool,
            hop=self.hop,
        )


@dataclass(frozen=True)
class ModalitySelection:
    """What one modality is trained on: one feature, or several in the columns of a row.

    Rows are [rows, Σ dim]. The features are all sequences with the same number of rows, or else all
    vectors, sequences pooled: so as soon as one is at utterance level. Every column is standardised
    by itself.
    """

    name: str
    parts: tuple[FeatureSelection, ...]
    """The features, in the order of the columns."""
    sums: tuple[int, ...] = (1,)
    """How many successive `parts` the model adds up with learned weights (`LayerSums`): the layers
    of an encoder, or 1 for a feature by itself."""
    views: tuple[FeatureSelection, ...] = ()
    """What stands in the place of its one feature in the augmented copies of the utterances."""

    @property
    def modality(self) -> str:
        """Whether it is audio or text."""
        return self.parts[0].feature.spec.modality

    @property
    def level(self) -> str:
        """The level of its rows: "utterance" where features of several levels meet."""
        levels = {part.level for part in self.parts}
        return levels.pop() if len(levels) == 1 else "utterance"

    @property
    def dim(self) -> int:
        """Columns of a row."""
        return sum(part.dim for part in self.parts)

    @property
    def record(self) -> FeatureRecord:
        """What a run's config holds of it; of several features each, and every sum."""
        if len(self.parts) == 1:
            return self.parts[0].record

        sums = []
        first = 0
        for layers in self.sums:
            sums.append((layers, self.parts[first].dim))
            first += layers

        joined = [part.record for part in self.parts]
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
        records = []
        for part in self.parts:
            spec = part.feature.spec
            records.append({**spec.identity(), "provenance": dict(spec.provenance)})
        return records[0] if len(records) == 1 else {"joined": records}

    @property
    def has_random_weights(self) -> bool:
        """Whether any of the features was computed with random weights."""
        return any(part.feature.spec.random_weights for part in self.parts)

    def as_vectors(self) -> "ModalitySelection":
        """The same with one vector for each utterance."""
        return replace(
            self,
            parts=tuple(replace(part, vectors=True) for part in self.parts),
            views=tuple(replace(view, vectors=True) for view in self.views),
        )

    def as_rows(self, beside: str | None = None) -> "ModalitySelection":
        """The same with every row, and with that extra as one more column."""
        parts = tuple(replace(part, vectors=False, beside=beside) for part in self.parts)
        return replace(self, parts=parts)

    def with_extra(self, extra: str) -> "ModalitySelection":
        """The same, but that this extra of each feature is read in place of its values."""
        parts = tuple(replace(part, vectors=False, extra=extra) for part in self.parts)
        return replace(self, parts=parts)

    def source_key(self, manifest: Manifest) -> str:
        """What is read, alike in all processes: for a `DataCache`."""
        ways = [
            (
                real_path(part.feature.path),
                part.extra,
                part.beside,
                part.pooled and part.pool,
                part.hop,
            )
            for part in (*self.parts, *self.views)
        ]
        return f"{ways} {len(self.views)} {manifest.digest}"


def select_features(
    store: Store, features: str, corpus: str, views: str = ""
) -> tuple[dict[str, ModalitySelection], list[ModalitySelection]]:
    """The features of "hubert+is13+mpnet" by modality, whatever their order, and those of `views`.

    Raises `WrongUse` for a feature that is named twice, and for a view ("logmel:view=noise-1") that
    cannot stand in the place of one of them, and what `store.feature` raises for one that is not
    there.
    """
    selected: dict[str, ModalitySelection] = {}
    for name in features.split("+"):
        selection = select_feature(store, name, corpus)
        modality = selection.modality
        if modality in selected:
            selection = _side_by_side(selected[modality], selection)
        selected[modality] = selection

    augmented = [select_feature(store, name, corpus) for name in views.split("+") if name]
    for view in augmented:
        plain = selected.get(view.modality)
        if plain is None or not _can_replace(view, plain):
            replaced = plain.name if plain else "any feature that is trained on"
            raise WrongUse(
                f"--views {views}: {view.name} cannot take the place of {replaced}: another level, "
                "dimension, pool or hop, or several features in place of one"
            )
        # A copy whose view is of the other modality leaves this one as it is.
        copies = []
        for other in augmented:
            copy = other if other.modality == view.modality else plain
            copies.append(copy.parts[0])
        selected[view.modality] = replace(plain, views=tuple(copies))
    return selected, augmented


def _side_by_side(first: ModalitySelection, second: ModalitySelection) -> ModalitySelection:
    """Both in the columns of a row. Raises `WrongUse` if they have a feature in common."""
    name = f"{first.record.read_name}+{second.record.read_name}"
    first_paths = {part.feature.path for part in first.parts}
    common = first_paths.intersection(part.feature.path for part in second.parts)
    if common:
        raise WrongUse(f"--features {name}: names {min(common).parent.name} twice")
    return ModalitySelection(name, first.parts + second.parts, first.sums + second.sums)


def _can_replace(view: ModalitySelection, plain: ModalitySelection) -> bool:
    """Whether a view is one feature with rows of the same form as the one it stands for."""

    def forms(selection: ModalitySelection) -> list[tuple[Any, ...]]:
        return [(part.level, part.dim, part.pool, part.hop) for part in selection.parts]

    return len(view.parts) == 1 and forms(view) == forms(plain)


def select_feature(store: Store, name: str, corpus: str) -> ModalitySelection:
    """The feature of that name, and how it is read.

    With pool= it is one vector per utterance. With pool=mean and no hop these are the stored means
    of that name (`ser features … pool=mean`) if the store has them. With `layers=all` or
    `layers=6-9` it is the sum of these layers. Raises `WrongUse` for a way that it cannot be read
    in, `MissingRows` if it is not in the store.
    """
    feature, options, read, fingerprint = parse_feature_name(name)
    if not feature:
        raise WrongUse(
            f"a feature without a name: {name!r}; write one, or several joined with +, such as "
            "hubert+mpnet"
        )
    pool = read.get("pool", "mean")
    if pool not in POOLS:
        raise WrongUse(f"{name}: pool must be {' or '.join(POOLS)}")

    if read.get("pool") == "mean" and "hop" not in read:
        layers = _means_or_rows(store, feature, options, fingerprint, corpus)
    else:
        layers = _find(store, feature, options, fingerprint, corpus)

    if pool != "mean" and layers[0].spec.level == "utterance":
        raise WrongUse(
            f"{name}: has one vector per utterance, and there is nothing to pool; leave out "
            f"pool={pool}"
        )

    # Layers of one checkpoint have one hop.
    hop = _hop(name, layers[0], read["hop"]) if "hop" in read else None
    vectors = "pool" in read
    parts = tuple(FeatureSelection(layer, cast(Pool, pool), vectors, hop=hop) for layer in layers)
    full_name = layers[0].spec.name
    if len(parts) > 1:
        full_name = re.sub("@[^:]*", "", name.strip())
    return ModalitySelection(full_name, parts, (len(parts),))


def _find(
    store: Store, feature: str, options: Sequence[str], fingerprint: str, corpus: str
) -> list[Feature]:
    """The feature with these options, or each of its layers if they name several."""
    if _names_layers(options):
        return _layers(store, feature, options, fingerprint, corpus)
    name = f"{feature}:{','.join(options)}".rstrip(":")
    return [store.feature(f"{name}@{fingerprint}".rstrip("@"), corpus)]


def _names_layers(options: Sequence[str]) -> bool:
    return any(option.startswith("layers=") for option in options)


def _means_or_rows(
    store: Store, feature: str, options: Sequence[str], fingerprint: str, corpus: str
) -> list[Feature]:
    """The stored means of the feature, or else the rows that they are to be made of."""
    try:
        return _find(store, feature, [*options, "pool=mean"], fingerprint, corpus)
    except MissingRows as no_means:
        try:
            return _find(store, feature, options, fingerprint, corpus)
        except MissingRows as no_rows:
            # The means of layers take a hundredth of their frames, so these are to be made.
            raise (no_means if _names_layers(options) else no_rows) from None


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
    named = _as_dict(options)
    form = re.fullmatch(r"all|(\d{1,4})-(\d{1,4})", named.pop("layers"))
    if form is None:
        raise WrongUse(f"{name}: write layers=all or a range such as layers=6-9")
    norm = named.pop("norm", "after")

    complete = []
    for layers in _ways(store, feature, named, norm):
        if not any(layer.fingerprint.startswith(fingerprint) for layer in layers.values()):
            continue

        # The number of the last layer is in the provenance; where it is not, the deepest counts.
        deepest = max(layers) if form[1] is None else -1
        last = max(layer.spec.provenance.get("layers", deepest) for layer in layers.values())
        first_wanted = int(form[1] or 0)
        last_wanted = int(form[2] or last)
        wanted = range(first_wanted, last_wanted + 1)
        if not wanted or not all(number in layers for number in wanted):
            continue
        if last not in wanted or layers[last].spec.config.get("norm", "none") in ("none", norm):
            complete.append([layers[number] for number in wanted])

    if len(complete) > 1:
        manifest = store.joined_manifest(corpus)
        of_corpus = []
        for way in complete:
            if all(layer.complete(manifest) for layer in way):
                of_corpus.append(way)
        complete = of_corpus or complete
    if len(complete) > 1:
        firsts = listed([layers[0] for layers in complete])
        raise WrongUse(f"{store.path}: {name} is there in several ways, choose one: {firsts}")
    if not complete:
        command = extract_command(store.path, name, corpus)
        raise MissingRows(f"{store.path}: does not have all of {name}; run {command}")
    return complete[0]


def _ways(
    store: Store, feature: str, named: Mapping[str, str], norm: str
) -> list[dict[int, Feature]]:
    """The layers of the feature that have these options, by number, for each way to compute them.

    Layers are computed in one way if their specs differ in the layer alone. Of the last layer the
    one is taken that was stored before or after the LayerNorm, as `norm` says.
    """
    ways: dict[bytes, dict[int, Feature]] = {}
    for folder in store.folders():
        if folder.parent.name != feature:
            continue

        stored = Feature(store.path, folder)
        options = _as_dict(sorted(stored.spec.options))
        # The last layer may stand there without its number.
        last = stored.spec.config.get("layer", -1)
        number = int(options.pop("layer", last))
        options.pop("norm", None)
        if number < 0 or options != named:
            continue

        key = canonical_json({**stored.spec.identity(), "variant": "", "config": {}})
        way = ways.setdefault(key, {})
        is_named = f"layer={number}" in stored.spec.options
        if number not in way or (is_named and stored.spec.config.get("norm") in ("none", norm)):
            way[number] = stored
    return list(ways.values())


def _as_dict(options: Sequence[str]) -> dict[str, str]:
    """{"layer": "9"} of ["layer=9"]."""
    values = {}
    for option in options:
        key, _, value = option.partition("=")
        values[key] = value
    return values


def _hop(name: str, feature: Feature, text: str) -> float:
    """The hop in seconds. Raises `WrongUse` for one that is not a multiple of the feature's own."""
    frame_hop = feature.spec.hop if feature.spec.level == "frame" else None
    try:
        frames = float(text) / (frame_hop or math.nan)
        if round(frames) < 2 or abs(round(frames) - frames) > 1e-6:
            raise ValueError
    except (ValueError, OverflowError):
        known = "that of its frames, and it has none"
        if frame_hop:
            known = f"its frames' own, {frame_hop:g} s, such as {5 * frame_hop:g}"
        raise WrongUse(f"{name}: hop must be a multiple of {known}") from None
    return float(text)
