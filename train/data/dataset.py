"""The labelled utterances of a corpus with their inputs, and the batches that are cut from them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..models.batch import Batch, on_device
from .inputs import Inputs
from .origin import NO_ORIGIN, NO_RECORD, DatasetOrigin, DatasetRecord
from .read_ahead import BatchInputs, Dialogues, read_ahead
from .standardizer import Standardizer
from .utterances import Utterances

# Which of so many utterances of a batch do without a modality: bool [n], by modality.
Hide = Callable[[int], Mapping[str, Tensor]]


def no_raters(rows: np.ndarray) -> dict[str, Any] | None:
    """Of a dataset whose raters are not known."""
    return None


def no_ballots() -> Sequence[np.ndarray]:
    """Of a dataset whose raters are not known."""
    return ()


@dataclass
class Dataset:
    """The labelled utterances of a corpus with the inputs of one fusion."""

    utterances: Utterances
    dims: dict[str, int]
    """The dimension of each modality's rows."""
    read: Callable[..., Mapping[str, Inputs]]
    """Gives the inputs of each modality; called with text=FUNCTION those of the selection that the
    function makes of the text's."""
    record: DatasetRecord = NO_RECORD
    """Corpus, manifest, features, …: what a run's config says of it."""
    origin: DatasetOrigin = NO_ORIGIN
    """Where it comes from, and what of the corpus is not in it."""
    raters: Callable[[np.ndarray], dict[str, Any] | None] = no_raters
    """The raters' own scores of the utterances of these rows."""
    ballots: Callable[[], Sequence[np.ndarray]] = no_ballots
    """Gives each utterance's votes [raters, K], see `votes.ballots`."""
    views: tuple[str, ...] = ()
    """The modality of each augmented copy, whose rows follow in its inputs."""
    device: str = "cpu"
    """Where batches are put together, see `on`."""
    inputs_on: dict[str, Mapping[str, Inputs]] = field(init=False, default_factory=dict, repr=False)
    """What has been read, by device."""

    @property
    def inputs(self) -> Mapping[str, Inputs]:
        """The inputs of each modality, read when they are first needed."""
        if self.device not in self.inputs_on:
            # Whoever reads them first, training must be able to use them.
            with torch.inference_mode(False):
                self.inputs_on[self.device] = self.read()
        return self.inputs_on[self.device]

    def forget_inputs(self) -> None:
        """Drop what has been read: it is read again when it is needed."""
        self.inputs_on.clear()

    def on(self, device: str) -> "Dataset":
        """The same utterances, their inputs moved to a GPU once for all runs that train on them."""
        if device == self.device:
            return self
        if device not in self.inputs_on:
            moved = {}
            for modality, inputs in self.inputs.items():
                moved[modality] = inputs.on(torch.device(device))
            self.inputs_on[device] = moved
        inputs_there = self.inputs_on[device]
        return replace(self, read=lambda: inputs_there, device=device)

    def scaled(self, standardizers: Mapping[str, Standardizer]) -> "Dataset":
        """The same utterances with their inputs standardised once and for all, in float32."""
        inputs = dict(self.inputs)
        for modality, standardizer in standardizers.items():
            stored = self.inputs[modality]
            inputs[modality] = stored.scaled(standardizer, self.utterances.corpus_numbers)
        return replace(self, read=lambda: inputs)

    def groups(self, rows: np.ndarray, unit: str) -> list[np.ndarray]:
        """The rows as the units that a batch counts.

        Whole dialogues in turn order where the unit is "dialogue", or else single utterances.
        """
        if unit != "dialogue":
            return list(rows[:, None])

        rows = np.sort(rows)
        turns = self.utterances.turns[rows]
        dialogues = self.utterances.dialogues[rows]
        order = np.lexsort((turns, dialogues))
        starts = np.flatnonzero(np.diff(dialogues[order])) + 1
        return [group for group in np.split(rows[order], starts) if len(group)]

    def batch(
        self,
        dialogues: Dialogues,
        standardizers: Mapping[str, Standardizer],
        truth: Tensor | None = None,
        read: Mapping[str, Inputs] | None = None,
        hide: Hide | None = None,
    ) -> Batch:
        """The batch of these dialogues, its inputs standardised and in float32.

        `truth` of all utterances [n, …] is what the loss compares with in place of their classes.
        `read` are inputs that hold these dialogues, by default all. Inputs travel to a GPU in the
        stored dtype.
        """
        rows = np.concatenate(dialogues)
        of_rows = torch.from_numpy(rows)
        hidden = hide(len(rows)) if hide else {}
        if truth is None:
            truth = torch.from_numpy(self.utterances.labels)

        inputs = {}
        for modality, stored in (read or self.inputs).items():
            inputs[modality] = stored.take(rows, hidden.get(modality))

        batch = Batch(
            inputs=inputs,
            dialogues=torch.tensor([len(dialogue) for dialogue in dialogues]),
            speakers=torch.from_numpy(self.utterances.speaker_numbers[rows]),
            truth=truth[of_rows],
            utterances=of_rows,
        )
        batch = on_device(batch, self.device)

        for modality, sequences in batch.inputs.items():
            standardizer = standardizers.get(modality)
            if standardizer is None:
                sequences.values = sequences.values.float()
            else:
                corpora = self.utterances.corpus_numbers[rows]
                sequences.values = standardizer(sequences.values, corpora, sequences.lengths)
        return batch

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
        """All rows once in batches of `size` units, as `batch` makes them.

        Shuffled by `generator` if there is one. "balanced" draws as many utterances with
        replacement, each of the classes that occur as likely.
        """
        groups = self.groups(rows, unit)
        order: Sequence[int] = range(len(groups))
        if sampler == "balanced":
            order = _draw_balanced(self.utterances.labels[rows], len(groups), generator)
        elif generator:
            order = torch.randperm(len(groups), generator=generator).tolist()

        standardizers_here = {}
        for modality, standardizer in standardizers.items():
            standardizers_here[modality] = standardizer.on(self.device)

        for dialogues, inputs in self._with_inputs(_cut(groups, order, size), unit, size):
            yield self.batch(dialogues, standardizers_here, truth, inputs, hide)

    def _with_inputs(
        self, batches: Iterator[Dialogues], unit: str, size: int
    ) -> Iterator[BatchInputs]:
        """Each batch with the inputs that hold it: all, or what is read ahead for it."""
        inputs = self.inputs
        if any(stored.streamed for stored in inputs.values()):
            dialogues = self.utterances.dialogues if unit == "dialogue" else None
            return read_ahead(inputs, batches, size, len(self.utterances), dialogues)
        return ((batch, inputs) for batch in batches)


def _draw_balanced(labels: np.ndarray, count: int, generator: torch.Generator | None) -> list[int]:
    """So many places in the labels [n], drawn with replacement, each class as likely."""
    _, class_of, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    chances = torch.from_numpy(1 / sizes[class_of])
    drawn = torch.multinomial(chances, count, replacement=True, generator=generator)
    return drawn.tolist()


def _cut(groups: list[np.ndarray], order: Sequence[int], size: int) -> Iterator[Dialogues]:
    """The groups in that order, `size` to a batch."""
    for start in range(0, len(groups), size):
        yield [groups[number] for number in order[start : start + size]]
