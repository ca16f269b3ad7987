"""The labelled utterances of a corpus with their inputs, packed in memory, and the batches cut from
them.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ser.cache.feature import Feature
from ser.corpus.manifest import Manifest
from ser.disk.locks import locked
from ser.engines.machine import memory_budget
from ser.errors import MissingRows, StoreError

from ..models.ragged import Batch, Sequences, on_device, send
from .utterances import Utterances

Pool = Literal["mean", "meanstd"]
Cut = Sequence[np.ndarray]  # the utterances of one batch, dialogue by dialogue
Read = tuple[Cut, Mapping[str, "Inputs"]]
Hide = Callable[[int], Mapping[str, Tensor]]
FITS = 0.5  # of a GPU's free memory may be inputs that stay there
COLUMNS = 32  # a block so wide sums bit for bit as it does within all columns: torch adds them up side by side


@dataclass(frozen=True)
class Inputs:
    """One modality of all n utterances: values [rows, dim] as stored, `offsets` [n + 1] int64.

    Numbers wrap around: utterance n is utterance 0 again, so a view (an augmented copy) that leaves
    a modality as it is takes no memory for it.
    """

    values: Tensor
    offsets: np.ndarray
    pinned: bool = False  # whether rows are taken into pinned memory, to travel to a GPU
    room: int = 64 << 20  # bytes that may be added up, or read, at once
    streamed: ClassVar[bool] = (
        False  # whether the rows are read when they are asked for: see `Streamed`
    )

    @property
    def dim(self) -> int:
        """Dimension of a row."""
        return self.values.shape[1]

    def take(self, utterances: np.ndarray, hidden: Tensor | None = None) -> Sequences:
        """The rows of the given utterances, one after the other, in the stored dtype; none of those
        `hidden`, bool [n].

        Rows of values on a GPU are taken when the batch is sent there.
        """
        rows, lengths = self.rows(utterances)
        if hidden is not None:
            rows, lengths = rows[~hidden.repeat_interleave(lengths)], lengths * ~hidden
        if self.values.device.type != "cpu":
            return Sequences(self.values, lengths, rows)
        values = torch.empty(len(rows), self.dim, dtype=self.values.dtype, pin_memory=self.pinned)
        return Sequences(torch.index_select(self.values, 0, rows, out=values), lengths)

    def rows(self, utterances: np.ndarray) -> tuple[Tensor, Tensor]:
        """Which rows of the values are these utterances' `[r]`, and how many each has `[n]`, int64."""
        utterances = utterances % (len(self.offsets) - 1)
        starts = self.offsets[utterances]
        lengths = self.offsets[utterances + 1] - starts
        before = np.cumsum(lengths) - lengths
        rows = np.arange(lengths.sum()) + np.repeat(starts - before, lengths)
        return torch.from_numpy(rows), torch.from_numpy(lengths)

    def ahead(self, data: "Dataset", cuts: Iterable[Cut], unit: str, size: int) -> Iterator[Read]:
        """Each cut, of so many units, with inputs that hold its utterances; of what is streamed
        some is read ahead.

        Raises `WrongUse` if the largest batch that could be cut so cannot be read within the budget
        of memory.
        """
        return ((cut, data.inputs) for cut in cuts)

    def pieces(self, utterances: np.ndarray) -> list[np.ndarray]:
        """The utterances cut into arrays that there is room to take; one array if they are in
        memory.
        """
        return [utterances]

    def moments(self, utterances: np.ndarray) -> Tensor:
        """Of the utterances' rows: least and largest value, the sum, and that of the squares; `[4,
        dim]` float64.

        So many columns at a time as there is room for. The sums are bit by bit those of all columns
        at once.
        """
        pieces, moments = self.pieces(utterances), list[Tensor]()
        rows = int(np.diff(self.offsets)[utterances].sum())
        in_memory = (
            [self.take(utterances).values] if len(pieces) == 1 else None
        )  # else taken again for other columns
        width = max(1, self.room // (8 * rows * COLUMNS)) * COLUMNS
        for first in range(0, max(1, self.dim - 1), width):
            stop = (
                first + width if first + width < self.dim - 1 else self.dim
            )  # one alone is added up in another order
            wide, at = torch.empty(rows, stop - first, dtype=torch.float64), 0
            for values in in_memory or (self.take(piece).values for piece in pieces):
                wide[at : at + len(values)] = values[:, first:stop]
                at += len(values)
            moments.append(
                torch.stack([wide.amin(0), wide.amax(0), wide.sum(0), wide.mul_(wide).sum(0)])
            )
        return torch.cat(moments, 1)

    def scaled(self, standardize: "Standardizer", corpora: np.ndarray) -> "Inputs":
        """The same standardised, float32; `corpora` are the numbers of the utterances' corpora."""
        lengths = torch.from_numpy(np.diff(self.offsets))
        return replace(
            self, values=standardize(self.values, np.resize(corpora, len(lengths)), lengths)
        )

    def on(self, device: torch.device) -> "Inputs":
        """The same with the values on `device`, in the stored dtype; where a GPU has no room, each
        batch travels.
        """
        if device.type == "cuda" and self.values.nbytes > FITS * torch.cuda.mem_get_info(device)[0]:
            return replace(self, pinned=True)
        return replace(self, values=self.values.to(device))

    def averaged(self, every: int) -> "Inputs":
        """Means of so many frames each, float32; the last one of an utterance over as many as are
        left.
        """
        values, lengths = self.values.numpy(), -(-np.diff(self.offsets) // every)
        means, offsets = (
            np.empty((lengths.sum(), self.dim), np.float32),
            np.concatenate([[0], lengths.cumsum()]),
        )
        for here, (start, end) in zip(offsets, pairwise(self.offsets), strict=False):
            firsts = np.arange(0, end - start, every)
            sums = np.add.reduceat(values[start:end].astype(np.float32), firsts)
            means[here : here + len(firsts)] = sums / np.diff(firsts, append=end - start)[:, None]
        return Inputs(torch.from_numpy(means), offsets)

    def pooled(self, pool: Pool) -> "Inputs":
        """One float32 vector per utterance: the mean over its rows, or mean and standard deviation
        [n, 2 dim].
        """
        values, ways = self.values.numpy(), (np.mean, np.std) if pool == "meanstd" else (np.mean,)
        vectors = np.empty((len(self.offsets) - 1, self.dim * len(ways)), dtype=np.float32)
        for vector, (start, end) in zip(vectors, pairwise(self.offsets), strict=True):
            rows = values[start:end].astype(np.float32)
            vector[:] = np.concatenate([way(rows, axis=0) for way in ways])
        return Inputs(torch.from_numpy(vectors), np.arange(len(self.offsets)))


@dataclass
class DataCache:
    """The features that one experiment has loaded, for the next ones.

    With a folder `shared` it serves so many `workers`, processes that share one budget of memory:
    the first that needs a feature leaves it there packed, and all map the same pages of it.
    """

    shared: Path | None = None
    workers: int = 1
    inputs: dict[str, Inputs] = field(default_factory=dict)
    datasets: dict[bytes, "Dataset"] = field(default_factory=dict)
    half: int | None = field(
        default_factory=lambda: memory_budget(None)
    )  # of the memory that was free at first

    def fits(self, size: int, budget: int) -> bool:
        """Whether so many bytes fit into the budget; what earlier experiments loaded is dropped if
        it is in the way.
        """
        held = sum(inputs.values.nbytes for inputs in self.inputs.values()) // self.workers
        if held and held + size > budget:
            self.inputs.clear()
            for data in self.datasets.values():
                data.held.clear()  # they are read again when they are needed
        return size <= budget

    def load(self, about: str, rows: np.ndarray, load: Callable[[], Inputs]) -> Inputs:
        """The inputs that `load` gives for these rows; `about` names manifest and features, alike
        in all processes.
        """
        key = hashlib.sha256(about.encode(errors="surrogateescape") + rows.tobytes()).hexdigest()
        if key in self.inputs:
            return self.inputs[key]
        if self.shared is None:
            return self.inputs.setdefault(key, load())
        file = self.shared / f"{key}.safetensors"
        with locked(file.with_suffix(".lock")):
            if not file.exists():  # whoever comes first writes it
                inputs, new = (
                    load(),
                    file.with_suffix(f".{os.getpid()}.part"),
                )  # there may be no locks
                try:
                    save_file(
                        {"values": inputs.values, "offsets": torch.from_numpy(inputs.offsets)}, new
                    )
                except SafetensorError as fault:
                    what = f"{self.shared}: cannot be written ({fault})"
                    raise StoreError(
                        f"{what}; free some space and run the same command again"
                    ) from None
                new.replace(file)
        tensors = load_file(file)
        return self.inputs.setdefault(key, Inputs(tensors["values"], tensors["offsets"].numpy()))


@dataclass(frozen=True)
class Standardizer:
    """Z-score of one modality: (x − mean) / std, each float32 [dim], or [1 + C, dim]: row c is that
    of corpus c.

    Row 0 is that of utterances of no corpus: the whole training part's.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, inputs: Inputs, utterances: np.ndarray) -> "Standardizer":
        """Statistics of all rows of the given utterances; `fit.fit_standardizers` says which may be
        given.
        """
        chunks = np.array_split(utterances, len(utterances) // 256 + 1)
        low, high, total, squares = inputs.moments(chunks[0])
        for chunk in chunks[1:]:
            least, most, sums, of_squares = inputs.moments(chunk)
            low, high = torch.minimum(low, least), torch.maximum(high, most)
            total, squares = total + sums, squares + of_squares
        rows = int(np.diff(inputs.offsets)[utterances].sum())
        mean = total / rows
        variance = (squares / rows - mean * mean).clamp_min(0)
        # A column that is constant in training stays (almost) zero, instead of being divided by
        # zero.
        std = torch.where((high > low) & (variance > 0), variance.sqrt(), 1.0)
        return cls(mean.float(), std.float())

    def __call__(self, values: Tensor, corpora: np.ndarray, lengths: Tensor) -> Tensor:
        """Standardised values [rows, dim] in float32 of utterances of such lengths, of the corpora
        of these numbers.
        """
        mean, std = self.mean, self.std
        if mean.ndim > 1:
            row = send(torch.from_numpy(corpora).repeat_interleave(lengths), values.device)
            mean, std = mean[row], std[row]
        return (values.float() - mean) / std


@dataclass
class Dataset:
    """The labelled utterances of a corpus with the inputs of one fusion."""

    utterances: Utterances
    dims: dict[str, int]  # of each modality
    read: Callable[
        ..., Mapping[str, Inputs]
    ]  # the values of each modality, or the extras that it names
    described: Mapping[
        str, Any
    ]  # corpus, manifest and features with their digests, for a run's config
    notes: Mapping[str, Any] = field(
        default_factory=dict
    )  # synthetic, random weights, utterances left out
    raters: Callable[[np.ndarray], dict[str, Any] | None] = lambda rows: (
        None
    )  # their own scores of these utterances
    views: tuple[
        str, ...
    ] = ()  # the modality of each augmented copy, whose rows follow in its inputs
    device: str = "cpu"  # where batches are put together, see `on`
    held: dict[str, Mapping[str, Inputs]] = field(
        init=False, default_factory=dict, repr=False
    )  # inputs, by device

    @property
    def inputs(self) -> Mapping[str, Inputs]:
        """The values of each modality, read when they are first needed."""
        if self.device not in self.held:
            with torch.inference_mode(
                False
            ):  # whoever reads them first, training must be able to use them
                self.held[self.device] = self.read()
        return self.held[self.device]

    def on(self, device: str) -> "Dataset":
        """The same utterances with their inputs moved to a GPU once, for all runs that train on
        them.
        """
        if device == self.device:
            return self
        if device not in self.held:
            self.held[device] = {
                modality: one.on(torch.device(device)) for modality, one in self.inputs.items()
            }
        inputs = self.held[device]
        return replace(self, read=lambda: inputs, device=device)

    def scaled(self, standardizers: Mapping[str, Standardizer]) -> "Dataset":
        """The same utterances with their inputs standardised once and for all, in float32."""
        numbers = self.utterances.corpus_numbers
        inputs = {
            **self.inputs,
            **{m: self.inputs[m].scaled(one, numbers) for m, one in standardizers.items()},
        }
        return replace(self, read=lambda: inputs)

    def batch(
        self,
        groups: Cut,
        standardizers: Mapping[str, Standardizer],
        truth: Tensor | None = None,
        read: Mapping[str, Inputs] | None = None,
        hide: Hide | None = None,
    ) -> Batch:
        """The batch of the given dialogues (arrays of rows in turn order), its inputs standardised
        and in float32.

        `truth` of all utterances [n, …] is what the loss compares with in place of their classes.
        `read` are inputs that hold these dialogues, by default all. Inputs travel to a GPU in the
        stored dtype. `hide` chooses which of so many utterances do without a modality, bool [n] by
        modality.
        """
        rows, read = np.concatenate(groups), read or self.inputs
        of_rows, hidden = torch.from_numpy(rows), hide(len(rows)) if hide else {}
        batch = Batch(
            inputs={
                modality: stored.take(rows, hidden.get(modality))
                for modality, stored in read.items()
            },
            dialogues=torch.tensor([len(group) for group in groups]),
            speakers=torch.from_numpy(self.utterances.speaker_numbers[rows]),
            truth=(torch.from_numpy(self.utterances.labels) if truth is None else truth)[of_rows],
            utterances=of_rows,
        )
        batch = on_device(batch, self.device)
        for modality, x in batch.inputs.items():
            standardize, corpora = standardizers.get(modality), self.utterances.corpus_numbers[rows]
            x.values = (
                standardize(x.values, corpora, x.lengths) if standardize else x.values.float()
            )
        return batch

    def groups(self, rows: np.ndarray, unit: str) -> list[np.ndarray]:
        """The rows as the units that a batch counts: whole dialogues in turn order, or single
        utterances.
        """
        if unit != "dialogue":
            return list(rows[:, None])
        rows, of = np.sort(rows), self.utterances
        order = rows[np.lexsort((of.turns[rows], of.dialogues[rows]))]
        starts = np.flatnonzero(np.diff(of.dialogues[order])) + 1
        return [group for group in np.split(order, starts) if len(group)]

    def batches(
        self,
        rows: np.ndarray,
        unit: str,
        size: int,
        standardizers: Mapping[str, Standardizer],
        generator: torch.Generator | None = None,
        truth: Tensor | None = None,
        sampler: Literal["shuffle", "balanced"] = "shuffle",
        hide: Hide | None = None,
    ) -> Iterator[Batch]:
        """All rows once in batches of `size` units, as `batch` makes them, shuffled by `generator`
        if there is one.

        "balanced" draws as many utterances with replacement, each of the classes that occur as
        likely.
        """
        groups = self.groups(rows, unit)
        order: Sequence[int] = range(len(groups))
        if sampler == "balanced":
            _, of_class, sizes = np.unique(
                self.utterances.labels[rows], return_inverse=True, return_counts=True
            )
            chances = torch.from_numpy(1 / sizes[of_class])
            order = torch.multinomial(
                chances, len(groups), replacement=True, generator=generator
            ).tolist()
        elif generator:
            order = torch.randperm(len(groups), generator=generator).tolist()
        there = {
            m: Standardizer(one.mean.to(self.device), one.std.to(self.device))
            for m, one in standardizers.items()
        }
        cuts = (
            [groups[i] for i in order[start : start + size]]
            for start in range(0, len(groups), size)
        )
        reader = max(
            self.inputs.values(), key=lambda one: one.streamed
        )  # if any is streamed, it reads them all
        for cut, read in reader.ahead(self, cuts, unit, size):
            yield self.batch(cut, there, truth, read, hide)


def with_rows(
    features: Sequence[Feature], manifest: Manifest, utterances: Utterances, allow_missing: bool
) -> tuple[Utterances, dict[str, dict[str, str]]]:
    """The utterances that every feature has, and by feature why others are quarantined in it, by
    id.

    Raises `MissingRows`, naming the command, for an utterance without the feature, and unless
    `allow_missing` for a quarantined one; also if no other is left.
    """
    quarantined = {}
    for feature in features:
        name, reasons = feature.spec.name, feature.quarantined(manifest)
        bad = {id_: reasons[id_] for id_ in utterances.ids if id_ in reasons}
        others = len(bad) < len(utterances)
        if bad and not (allow_missing and others):
            example, why = next(iter(bad.items()))
            raise MissingRows(
                f"{name}: {len(bad)} labelled utterances are quarantined, such as {example} ({why}); mend and extract "
                f"them with `ser features --retry`{', or leave them out with --allow-missing' if others else ''}"
            )
        if bad:
            quarantined[name] = bad
            utterances = utterances.take(np.flatnonzero([id_ not in bad for id_ in utterances.ids]))
        feature.places(manifest, utterances.rows.tolist())
    return utterances, quarantined


def with_views(data: Dataset, train: np.ndarray) -> tuple[Dataset, np.ndarray]:
    """A dataset that holds every utterance once as it is and once per view, and the rows of `train`
    in all of them.

    Row r of view v = 1, 2, … is v · n + r. A view's utterances keep their labels, in dialogues of
    their own.
    """
    if not data.views:
        return data, train
    n, copies = len(data.utterances), len(data.views) + 1
    utterances = data.utterances.take(np.tile(np.arange(n), copies))
    apart = np.repeat(np.arange(copies), n) * (int(utterances.dialogues.max()) + 1)
    utterances = replace(utterances, dialogues=utterances.dialogues + apart)
    more = replace(data, utterances=utterances, read=lambda: data.inputs, views=())
    return more, np.concatenate([train + n * copy for copy in range(copies)])
