"""A batch of utterances, how it travels to a GPU, and how a model reads its rows.

Axis letters are those of `layers`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ser.errors import WrongUse

from .layers.device import send, send_together
from .layers.layout import RaggedLayout, Rows

# The outputs that are wanted; None is all.
Heads = frozenset[str] | None

# The truth of speech that nothing is known of.
UNKNOWN = torch.empty(0)


@dataclass
class Sequences:
    """One modality of a batch.

    At utterance level all lengths are one. An utterance that the model is to do without has none.
    """

    values: Tensor
    """The rows, `[r, dim]`."""
    lengths: Tensor
    """int64 `[n]`, on the CPU: the rows of each utterance."""
    rows: Tensor | None = None
    """int64 `[r]`, on the CPU: the rows to be taken of more `values`, on a GPU."""
    layout: RaggedLayout | None = None
    """Where the rows lie, if that is known already."""


@dataclass(frozen=True)
class Mix:
    """How the utterances of a batch are mixed: λ of each, and 1 − λ of its partner."""

    share: float
    """λ."""
    partners: Tensor
    """int64 `[n]`: the number of each one's partner in the batch."""


@dataclass
class Batch:
    """Utterances to train on or to classify."""

    inputs: dict[str, Sequences]
    """By modality, "audio" or "text"."""
    dialogues: Tensor
    """int64 `[m]`, on the CPU: utterances of each dialogue, in turn order; sums to n."""
    speakers: Tensor | None = None
    """int64 `[n]`: numbers of the speakers; None where nobody tells them apart."""
    heads: Heads = None
    """The outputs that are wanted, so that a model can leave out the rest."""
    truth: Tensor = UNKNOWN
    """What the loss compares with: classes, int64 `[n]`, or soft labels, ratings, … `[n, …]`."""
    utterances: Tensor = UNKNOWN
    """int64 `[n]`: the row of each in the dataset."""
    mix: Mix | None = None
    """How a model with a `PooledVector` mixes the utterances, if it is to."""
    progress: float = 0.0
    """In training, the share of the stage's updates that came before, from 0 to 1."""

    def __len__(self) -> int:
        first_modality = next(iter(self.inputs.values()))
        return len(first_modality.lengths)

    @property
    def device(self) -> torch.device:
        """Where the batch is computed."""
        first_modality = next(iter(self.inputs.values()))
        return first_modality.values.device

    def wants(self, *heads: str) -> bool:
        """Whether any of these outputs is wanted."""
        return self.heads is None or not self.heads.isdisjoint(heads)


def on_device(batch: Batch, device: torch.device | str) -> Batch:
    """The batch on `device`.

    To a GPU goes one copy, which nobody waits for, and any values that are not there yet. How many
    rows and turns there are stays known on the CPU too, so that nobody has to wait for these
    numbers.
    """
    device = torch.device(device)
    if device == batch.truth.device:
        return batch

    # The truth is last: all others are int64, so that each is where its dtype can be read.
    small: dict[str, Tensor] = {}
    for modality, sequences in batch.inputs.items():
        small[f"{modality} lengths"] = sequences.lengths
        if sequences.rows is not None:
            small[f"{modality} rows"] = sequences.rows
    small["truth"] = batch.truth
    sent = send_together(small, device)

    inputs = {}
    for modality, sequences in batch.inputs.items():
        if sequences.rows is None:
            values = send(sequences.values, device)
        else:
            values = sequences.values[sent[f"{modality} rows"]]
        layout = RaggedLayout(sequences.lengths, device, sent[f"{modality} lengths"])
        inputs[modality] = Sequences(values, sequences.lengths, layout=layout)

    return replace(batch, inputs=inputs, truth=sent["truth"])


def visible_rows(batch: Batch, modality: str, dim: int) -> Rows:
    """The rows `[r, dim]` of one modality, and their layout.

    Raises `WrongUse` if the features have another dimension than the model was built for.
    """
    sequences = batch.inputs[modality]
    values = sequences.values
    if values.shape[1] != dim:
        raise WrongUse(
            f"this model was built for {modality} features of {dim} values, "
            f"and got {values.shape[1]}"
        )
    return values, sequences.layout or RaggedLayout(sequences.lengths, values.device)


def vectors(batch: Batch, modality: str, dim: int) -> Tensor:
    """One modality's vectors `[n, dim]`.

    An utterance without gets zeros, the mean of standardised features. Raises `WrongUse` if the
    features have another dimension, or more than one row per utterance.
    """
    values, layout = visible_rows(batch, modality, dim)
    if len(values) == len(batch):
        return values
    if layout.longest > 1:
        raise WrongUse(
            f"this model takes one {modality} vector per utterance, "
            "and got frames or tokens; pool them"
        )
    return layout.total(values)
