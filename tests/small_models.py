"""Small models and batches of each fusion, without dropout."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ser.train.models import FUSIONS, Fusion, with_layer_sums
from ser.train.models.batch import Batch, Sequences

DIMS = {"audio": 9, "text": 7}
LAYERS = 3

# Those of the training loop: a solver fits the others at once, see test_models_solved.
TRAINED = {name: fusion for name, fusion in FUSIONS.items() if not fusion.solved}


def _cases() -> dict[str, Fusion]:
    """Each fusion as it is, and one of each kind of settings on a learned sum of layers.

    The layers are of the audio, which the fusion itself does not see.
    """
    cases = dict(TRAINED)

    of_settings = {}
    for fusion in TRAINED.values():
        if "audio" in fusion.inputs:
            of_settings[fusion.settings] = fusion

    for fusion in of_settings.values():
        on_layers = with_layer_sums(fusion, {"audio": [(LAYERS, DIMS["audio"])]})
        cases[f"{fusion.name} on layers"] = on_layers
    return cases


CASES = _cases()

# Of Perspective's twelve, each position and each method: all of them share what is around their
# fused rows.
ALIKE = {"ef-concat", "ef-at", "mf-add", "mf-at", "lf-add", "lf-concat"}
DIFFERENT = [name for name in TRAINED if name not in ALIKE]


def one_of_each_kind(names: Sequence[str]) -> list[Any]:
    """The names as parameters, of which `make test` runs one of each kind of settings and rows.

    For what costs much, and asks of a model no more than its outputs.
    """
    seen = set()
    parameters = []
    for name in names:
        fusion = TRAINED[name]
        kind = (fusion.settings, fusion.level, fusion.unit)
        marks = pytest.mark.slow if kind in seen else ()
        seen.add(kind)
        parameters.append(pytest.param(name, marks=marks))
    return parameters


# Small sizes, by the names that the fusions' settings share.
TINY: dict[str, Any] = {
    "dropout": 0.0,
    "dropout_classifier": 0.0,
    "d_model": 8,
    "heads": 2,
    "queries": 3,
    "feed_forward": 2,
    "encoder_depth": 2,
    "decoder_depth": 2,
    "cross_depth": 2,
    "turns": 4,
    "pool": 2,
    "gru_hidden": 4,
    "lstm_hidden": 4,
    "dense": 4,
    "frames": 40,
    "channels": 2,
    "hidden": 5,
    "encoder_width": 6,
    "encoder_dropout": 0.0,
    "node_hidden": 4,
    "window": 1,
    "bases": 3,
    "speaker_width": 3,
}

# Rows of the four utterances of a batch.
FRAMES = [5, 1, 9, 4]
TOKENS = [3, 2, 1, 6]
# More than attention.MAX_PADDED, so that attention goes utterance by utterance.
LONG = [5, 50, 1, 20]


def settings_of(name: str, **settings: Any) -> Any:
    """The fusion's settings at small sizes."""
    kind = CASES[name].settings
    known = {field.name for field in dataclasses.fields(kind)}
    sizes = {key: value for key, value in {**TINY, **settings}.items() if key in known}
    return kind(**sizes)


def build(name: str, dims: dict[str, int] = DIMS, classes: int = 4, **settings: Any) -> nn.Module:
    """The fusion at small sizes, without dropout."""
    fusion = CASES[name]
    model = fusion.build(
        settings_of(name, **settings),
        {modality: dims[modality] for modality in fusion.inputs},
        classes,
    )
    return model.to(torch.get_default_dtype())


def widths(name: str) -> dict[str, int]:
    """Columns of the rows that a case takes, by modality."""
    if name in FUSIONS:
        return DIMS
    return {**DIMS, "audio": LAYERS * DIMS["audio"]}


def make_batch(name: str, frames: list[int] = FRAMES, dims: dict[str, int] | None = None) -> Batch:
    """Four random utterances of what the fusion takes.

    Frames and tokens, or vectors in dialogues of 3 and 1 (of 4 for ICON).
    """
    fusion = CASES[name]
    dims = dims or widths(name)
    lengths = {"audio": frames, "text": TOKENS}
    if fusion.level == "vector":
        lengths = {"audio": [1] * 4, "text": [1] * 4}

    inputs = {}
    for modality in fusion.inputs:
        rows = torch.randn(sum(lengths[modality]), dims[modality])
        inputs[modality] = Sequences(rows, torch.tensor(lengths[modality]))

    if fusion.unit == "utterance":
        dialogues = [1, 1, 1, 1]
    elif "icon" in name:
        dialogues = [4]
    else:
        dialogues = [3, 1]

    return Batch(
        inputs,
        dialogues=torch.tensor(dialogues),
        # So that everybody's turns have a past of two.
        speakers=torch.tensor([0, 0, 1, 0]),
        truth=torch.randint(4, (4,)),
        utterances=torch.arange(4),
    )


def parts(batch: Batch, sizes: list[int]) -> list[Batch]:
    """The batch cut into batches of so many utterances."""
    numbers = torch.arange(len(batch))
    cut = []
    for utterances in numbers.split(sizes):
        inputs = {}
        for modality, sequences in batch.inputs.items():
            owner = numbers.repeat_interleave(sequences.lengths)
            rows = sequences.values[torch.isin(owner, utterances)]
            inputs[modality] = Sequences(rows, sequences.lengths[utterances])
        cut.append(
            Batch(
                inputs,
                dialogues=torch.tensor([len(utterances)]),
                speakers=batch.speakers[utterances],
                truth=batch.truth[utterances],
                utterances=batch.utterances[utterances],
            )
        )
    return cut


def without(batch: Batch, hidden: dict[str, Tensor]) -> Batch:
    """The batch whose utterances have no rows of what is hidden, bool `[n]` by modality."""
    inputs = dict(batch.inputs)
    for modality, is_hidden in hidden.items():
        sequences = inputs[modality]
        rows = sequences.values[~is_hidden.repeat_interleave(sequences.lengths)]
        inputs[modality] = Sequences(rows, sequences.lengths * ~is_hidden)
    return dataclasses.replace(batch, inputs=inputs)
