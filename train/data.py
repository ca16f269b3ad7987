"""The labelled utterances of a corpus with their features, and the batches cut from them."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ser.cache.manifest import Manifest
from ser.cache.spec import canonical_json
from ser.cache.store import Feature, Store, open_store
from ser.errors import MissingRows, WrongUse

from .labels import Policy, Utterances, apply_policy, get_policy, soft_labels
from .models import Fusion, get_fusion
from .models.ragged import Batch, Sequences

Pool = Literal["mean", "meanstd"]


@dataclass(frozen=True)
class FeatureSelection:
    """A feature that training asks for, and how its frames become a vector where the fusion takes vectors.

    `extra` names what is read of it in the place of its values, such as its token ids.
    """

    feature: Feature
    pool: Pool = "mean"
    extra: str | None = None

    @property
    def modality(self) -> str:
        """Whether it is audio or text."""
        return self.feature.spec.modality

    def dim(self, vectors: bool) -> int:
        """Dimension of what the model gets: frames as stored, or one vector for each utterance."""
        both = vectors and self.pool == "meanstd" and self.feature.spec.level != "utterance"
        return self.feature.spec.dim * (2 if both else 1)

    @property
    def described(self) -> dict[str, Any]:
        """What a run's config records of it."""
        return {"feature": self.feature.spec.name, "fingerprint": self.feature.fingerprint, "pool": self.pool}


def choose_features(store: Store, names: str, corpus: str) -> dict[str, FeatureSelection]:
    """The features of `names` ("hubert+mpnet", "is13+bert:pool=meanstd") by modality; their order does not matter.

    Raises `WrongUse` for two features of one modality, and what `store.feature` raises for one that is not there.
    """
    chosen: dict[str, FeatureSelection] = {}
    for name in names.split("+"):
        plain, pool = _split_pool(name.strip())
        choice = FeatureSelection(store.feature(plain, corpus=corpus), pool)
        if (other := chosen.get(choice.modality)) is not None:
            raise WrongUse(
                f"--features {names}: {other.feature.spec.name} and {choice.feature.spec.name} are both "
                f"{choice.modality} features, and a fusion takes one of each; train one run for each of them"
            )
        chosen[choice.modality] = choice
    return chosen


def choose_views(
    store: Store, names: str, chosen: Mapping[str, FeatureSelection], corpus: str
) -> list[FeatureSelection]:
    """The augmented features of `names` ("logmel:view=pitch-1+logmel:view=noise-1"), each beside the plain feature.

    Raises `WrongUse` for one that cannot stand in the place of a feature of `chosen`.
    """
    views = []
    for name in filter(None, names.split("+")):
        plain, pool = _split_pool(name.strip())
        view = FeatureSelection(store.feature(plain, corpus=corpus), pool)
        beside = chosen.get(view.modality)
        if beside is None or (beside.feature.spec.level, beside.feature.spec.dim, beside.pool) != (
            view.feature.spec.level,
            view.feature.spec.dim,
            pool,
        ):
            plainly = beside.feature.spec.name if beside else "any feature that is trained on"
            raise WrongUse(f"--views {name}: cannot stand in the place of {plainly}: another level, dimension or pool")
        views.append(view)
    return views


def _split_pool(name: str) -> tuple[str, Pool]:
    """`bert:layer=9,pool=meanstd@3f2a` → (`bert:layer=9@3f2a`, "meanstd")."""
    body, at, fingerprint = name.partition("@")
    feature, _, variant = body.partition(":")
    settings = [item for item in variant.split(",") if item]
    pools = [item.removeprefix("pool=") for item in settings if item.startswith("pool=")]
    pool = pools[-1] if pools else "mean"
    if pool not in ("mean", "meanstd"):
        raise WrongUse(f"{name}: pool must be mean or meanstd")
    kept = ",".join(item for item in settings if not item.startswith("pool="))
    return f"{feature}{':' if kept else ''}{kept}{at}{fingerprint}", pool  # type: ignore[return-value]


FITS = 0.5  # of a GPU's free memory may be inputs that stay there


@dataclass(frozen=True)
class Inputs:
    """One modality of all n utterances: values [rows, dim] as stored, `offsets` [n + 1] int64.

    With `repeats`, utterances n, n + 1, … are the same ones again.
    """

    values: Tensor
    offsets: np.ndarray
    repeats: int = 1

    @property
    def dim(self) -> int:
        """Dimension of a row."""
        return self.values.shape[1]

    def take(self, utterances: np.ndarray) -> Sequences:
        """The rows of the given utterances, one after the other, in the stored dtype."""
        if self.repeats > 1:
            utterances = utterances % (len(self.offsets) - 1)
        starts, lengths = self.offsets[utterances], np.diff(self.offsets)[utterances]
        before = np.cumsum(lengths) - lengths
        rows = torch.from_numpy(np.arange(lengths.sum()) + np.repeat(starts - before, lengths))
        if self.values.is_pinned():  # and so must be what a GPU is to take by itself
            values = torch.empty(len(rows), self.dim, dtype=self.values.dtype, pin_memory=True)
            torch.index_select(self.values, 0, rows, out=values)
        else:
            values = self.values[rows.to(self.values.device, non_blocking=True)]
        return Sequences(values, torch.from_numpy(lengths))

    def on(self, device: torch.device) -> "Inputs":
        """The same with the values on `device`, in the stored dtype; pinned where they do not fit on a GPU."""
        if device.type == "cuda" and self.values.nbytes > FITS * torch.cuda.mem_get_info(device)[0]:
            return replace(self, values=self.values.pin_memory())
        return replace(self, values=self.values.to(device))

    def pooled(self, pool: Pool) -> "Inputs":
        """One float32 vector per utterance: the mean over its rows, or mean and standard deviation [n, 2 dim]."""
        pieces = self.values.numpy()
        bounds = zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True)
        vectors = np.empty((len(self.offsets) - 1, self.dim * (2 if pool == "meanstd" else 1)), dtype=np.float32)
        for vector, (start, end) in zip(vectors, bounds, strict=True):
            rows = pieces[start:end].astype(np.float32)
            vector[: self.dim] = rows.mean(axis=0)
            if pool == "meanstd":
                vector[self.dim :] = rows.std(axis=0)
        return Inputs(torch.from_numpy(vectors), np.arange(len(self.offsets)))


@dataclass(frozen=True)
class Standardizer:
    """Z-score of one modality: (x − mean) / std, each [dim] float32."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, inputs: Inputs, utterances: np.ndarray) -> "Standardizer":
        """Statistics of all rows of the given utterances, which must be those of the training part alone."""
        total, squares, rows = torch.zeros(inputs.dim).double(), torch.zeros(inputs.dim).double(), 0
        low, high = torch.tensor(np.inf), torch.tensor(-np.inf)
        for chunk in np.array_split(utterances, len(utterances) // 256 + 1):
            values = inputs.take(chunk).values
            low, high = torch.minimum(low, values.amin(0).float()), torch.maximum(high, values.amax(0).float())
            wide = values.double()
            total, squares, rows = total + wide.sum(0), squares + (wide * wide).sum(0), rows + len(wide)
        mean = total / rows
        variance = (squares / rows - mean * mean).clamp_min(0)
        # What is constant in training says nothing: it stays (almost) zero in place of being divided by zero.
        std = torch.where((high > low) & (variance > 0), variance.sqrt(), 1.0)
        return cls(mean.float(), std.float())

    def of_all(self, inputs: Inputs) -> Inputs:
        """The same utterances with their values scaled, in float32."""
        return replace(inputs, values=self(inputs.values))

    def __call__(self, values: Tensor) -> Tensor:
        """Scaled values [rows, dim] in float32."""
        return (values.float() - self.mean.to(values.device)) / self.std.to(values.device)


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
    device: str = "cpu"  # where batches are put together, see `on`
    _elsewhere: dict[str, "Dataset"] = field(init=False, default_factory=dict, repr=False)  # the same on other devices

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

    def on(self, device: str) -> "Dataset":
        """The same utterances with their inputs moved to a GPU once, for all runs that train on them."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            inputs = {modality: stored.on(torch.device(device)) for modality, stored in self.inputs.items()}
            self._elsewhere[device] = replace(self, read=lambda: inputs, device=device)
        return self._elsewhere[device]

    def scaled(self, scaling: Mapping[str, Standardizer]) -> "Dataset":
        """The same utterances with their inputs scaled once and for all, in float32."""
        ready = {m: scaling[m].of_all(x) if m in scaling else x for m, x in self.inputs.items()}
        return replace(self, read=lambda: ready)

    def reading(self, extras: Mapping[str, str]) -> "Dataset":
        """The same utterances with an extra of a modality's feature, such as "token", in the place of its values."""
        features = {
            m: {**about, "extra": extras[m]} if m in extras else about
            for m, about in self.described["features"].items()
        }
        described = {**self.described, "features": features}
        return replace(self, read=partial(self.read, extras), described=described)

    def batch(self, groups: Sequence[np.ndarray], scaling: Mapping[str, Standardizer], soft: bool = False) -> Batch:
        """The batch of the given dialogues (arrays of rows in turn order), its inputs scaled and in float32.

        The stored dtype is what travels to a GPU.
        """
        rows = np.concatenate(groups)
        inputs = {}
        for modality, stored in self.inputs.items():
            taken = stored.take(rows).to(self.device)
            scale = scaling.get(modality, Tensor.float)
            inputs[modality] = Sequences(scale(taken.values), taken.lengths)
        return Batch(
            inputs=inputs,
            labels=torch.from_numpy(self.utterances.labels[rows]),
            utterances=torch.from_numpy(rows),
            dialogues=torch.tensor([len(group) for group in groups]),
            targets=self.targets[torch.from_numpy(rows)] if soft and self.targets is not None else None,
        ).to(self.device)

    def groups(self, rows: np.ndarray, unit: str) -> list[np.ndarray]:
        """The rows as the units that a batch counts: whole dialogues in turn order, or single utterances."""
        return self.utterances.by_dialogue(rows) if unit == "dialogue" else list(rows[:, None])

    def batches(
        self,
        rows: np.ndarray,
        unit: str,
        size: int,
        scaling: Mapping[str, Standardizer],
        generator: torch.Generator | None = None,
        soft: bool = False,
    ) -> Iterator[Batch]:
        """All rows once in batches of `size` units, shuffled by `generator` if there is one."""
        groups = self.groups(rows, unit)
        order = torch.randperm(len(groups), generator=generator).tolist() if generator else range(len(groups))
        for start in range(0, len(groups), size):
            yield self.batch([groups[i] for i in order[start : start + size]], scaling, soft)


@dataclass
class Loader:
    """What one run has loaded, the next runs share.

    With a folder `shared`, so do other processes: the first that wants a feature leaves it there packed, and all map
    the same pages of it.
    """

    shared: Path | None = None
    held: dict[str, Inputs] = field(default_factory=dict)
    datasets: dict[tuple, "Dataset"] = field(default_factory=dict)

    def inputs(self, choice: FeatureSelection, manifest: Manifest, rows: np.ndarray, vectors: bool) -> Inputs:
        """The feature of the manifest's rows, pooled to vectors if asked. Raises what `Feature.load` raises."""
        view = choice.extra or (choice.pool if vectors else "rows")
        about = f"{choice.feature.path.resolve()} {manifest.digest} {view} ".encode()
        key = hashlib.sha256(about + rows.tobytes()).hexdigest()
        if key not in self.held:
            if self.shared is None:
                self.held[key] = _read(choice, manifest, rows, vectors)
            else:
                self.held[key] = _read_shared(self.shared / key, choice, manifest, rows, vectors)
        return self.held[key]


def _read(choice: FeatureSelection, manifest: Manifest, rows: np.ndarray, vectors: bool) -> Inputs:
    packed = choice.feature.load(manifest, rows.tolist())
    if len(empty := np.flatnonzero(np.diff(packed.offsets) == 0)):
        raise MissingRows(
            f"{choice.feature.spec.name}: utterance {packed.ids[empty[0]]} has no rows at all; "
            "extract it again with `ser features --retry`"
        )
    values = packed.values
    if choice.extra is not None:
        if choice.extra not in packed.extras:
            raise MissingRows(
                f"{choice.feature.spec.name} holds rows without '{choice.extra}'; run `ser cache remove "
                f"{choice.feature.spec.feature}@{choice.feature.fingerprint}` and extract it again"
            )
        values = packed.extras[choice.extra][:, None]
    inputs = Inputs(torch.from_numpy(values), packed.offsets)
    return inputs.pooled(choice.pool) if vectors and choice.feature.spec.level != "utterance" else inputs


def _read_shared(path: Path, choice: FeatureSelection, manifest: Manifest, rows: np.ndarray, vectors: bool) -> Inputs:
    """The same through `<path>.values.npy` and `<path>.offsets.npy`, written by whoever comes first."""
    values, offsets = path.with_suffix(".values.npy"), path.with_suffix(".offsets.npy")
    lock = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not offsets.exists():  # written last
            inputs = _read(choice, manifest, rows, vectors)
            np.save(values, inputs.values.numpy())
            np.save(path.with_suffix(".part.npy"), inputs.offsets)
            path.with_suffix(".part.npy").rename(offsets)
    finally:
        os.close(lock)
    # Copy on write: torch wants a writable array, nobody writes, so all processes read the same pages.
    mapped = np.load(values, mmap_mode="c", allow_pickle=False)
    return Inputs(torch.from_numpy(mapped), np.load(offsets, allow_pickle=False))


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
    chosen: Mapping[str, FeatureSelection],
    augmented: Sequence[FeatureSelection],
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

    def reader(choice: FeatureSelection) -> Callable[[], dict[str, Inputs]]:
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


def _refuse_missing(choice: FeatureSelection, manifest: Manifest, rows: np.ndarray) -> None:
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
    choice: FeatureSelection,
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


def with_views(data: Dataset, train: np.ndarray) -> tuple[Dataset, np.ndarray]:
    """A dataset that holds every utterance once as it is and once per view, and the rows of `train` in all of them.

    Row r of view v = 1, 2, … is v · n + r. A view's utterances keep their labels and form dialogues of their own.
    """
    if not data.views:
        return data, train
    copies, n = len(data.views) + 1, len(data.utterances)
    plain = data.utterances
    between = int(plain.dialogues.max()) + 1
    utterances = Utterances(
        ids=list(plain.ids) * copies,
        labels=np.tile(plain.labels, copies),
        classes=plain.classes,
        sessions=list(plain.sessions) * copies,
        speakers=list(plain.speakers) * copies,
        dialogues=np.concatenate([plain.dialogues + between * copy for copy in range(copies)]),
        turns=np.tile(plain.turns, copies),
    )
    inputs = {
        modality: _joined([plainly, *(view.get(modality, plainly) for view in data.view_inputs)])
        for modality, plainly in data.inputs.items()
    }
    targets = None if data.targets is None else data.targets.repeat(copies, 1)
    rows = np.concatenate([train + n * copy for copy in range(copies)])
    return replace(data, utterances=utterances, read=lambda: inputs, targets=targets, views=()), rows


def _joined(parts: list[Inputs]) -> Inputs:
    """One modality of all copies; a modality that no view changes is not copied in memory."""
    n = len(parts[0].offsets) - 1
    if all(part is parts[0] for part in parts):
        return Inputs(parts[0].values, parts[0].offsets, repeats=len(parts))
    starts = np.cumsum([0, *(len(part.values) for part in parts)])
    offsets = [part.offsets[:n] + start for part, start in zip(parts, starts, strict=False)]
    return Inputs(torch.cat([part.values for part in parts]), np.concatenate([*offsets, starts[-1:]]))
