"""Small models and batches of each fusion, with which its fast layers are held against plain ones."""

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ser.train.models import FUSIONS, Fusion, with_layer_sums
from ser.train.models.batch import Batch, Sequences

DIMS = {"audio": 9, "text": 7}
LAYERS = 3
# Each fusion as it is, and one of each kind of settings on a learned sum of layers of the audio,
# which it does not see.
CASES: dict[str, Fusion] = dict(FUSIONS)
for _name, _fusion in {
    one.settings: (name, one) for name, one in FUSIONS.items() if "audio" in one.inputs
}.values():
    CASES[f"{_name} on layers"] = with_layer_sums(_fusion, {"audio": [(LAYERS, DIMS["audio"])]})
# Of Perspective's twelve, each position and each method: all of them share what is around their
# fused rows.
ALIKE = {"ef-concat", "ef-at", "mf-add", "mf-at", "lf-add", "lf-concat"}
DIFFERENT = [name for name in FUSIONS if name not in ALIKE]
# Small sizes, by the names that the fusions' settings share.
TINY: dict[str, Any] = {
    "dropout": 0.0,
    "d_model": 8,
    "heads": 2,
    "queries": 3,
    "feed_forward": 2,
    "encoder_depth": 2,
}
TINY |= {"cross_depth": 2, "dropout_classifier": 0.0, "turns": 4, "pool": 2}
TINY |= {
    "decoder_depth": 2,
    "gru_hidden": 4,
    "lstm_hidden": 4,
    "dense": 4,
    "frames": 40,
    "channels": 2,
    "hidden": 5,
}
FRAMES, TOKENS = [5, 1, 9, 4], [3, 2, 1, 6]
LONG = [5, 50, 1, 20]  # more frames than attention.MAX_PADDED: attention goes utterance by utterance


def build(name: str, dims: dict[str, int] = DIMS, classes: int = 4, **settings: Any) -> nn.Module:
    """The fusion at small sizes, without dropout."""
    fusion = CASES[name]
    known = {field.name for field in dataclasses.fields(fusion.settings)}
    chosen = fusion.settings(
        **{key: value for key, value in (TINY | settings).items() if key in known}
    )
    return fusion.build(chosen, {m: dims[m] for m in fusion.inputs}, classes).to(
        torch.get_default_dtype()
    )


def widths(name: str) -> dict[str, int]:
    """Columns of the rows that a case takes, by modality."""
    return DIMS if name in FUSIONS else {**DIMS, "audio": LAYERS * DIMS["audio"]}


def make_batch(name: str, frames: list[int] = FRAMES, dims: dict[str, int] | None = None) -> Batch:
    """Four random utterances of what the fusion takes: frames and tokens, or vectors in dialogues
    of 3 and 1 (or 4).
    """
    fusion, dims = CASES[name], dims or widths(name)
    vectors = fusion.level == "vector"
    lengths = {"audio": [1] * 4, "text": [1] * 4} if vectors else {"audio": frames, "text": TOKENS}
    inputs = {
        m: Sequences(torch.randn(sum(lengths[m]), dims[m]), torch.tensor(lengths[m]))
        for m in fusion.inputs
    }
    dialogues = torch.tensor(
        {"utterance": [1] * 4, "dialogue": [4] if "icon" in name else [3, 1]}[fusion.unit]
    )
    speakers = torch.tensor([0, 0, 1, 0])  # so that everybody's turns have a past of two
    return Batch(
        inputs, dialogues, speakers, truth=torch.randint(4, (4,)), utterances=torch.arange(4)
    )


def parts(batch: Batch, sizes: list[int]) -> list[Batch]:
    """The batch cut into batches of so many utterances."""
    cut, number = [], torch.arange(len(batch))
    for rows in number.split(sizes):
        inputs = {}
        for m, x in batch.inputs.items():
            taken = torch.isin(number.repeat_interleave(x.lengths), rows)
            inputs[m] = Sequences(x.values[taken], x.lengths[rows])
        taken = {name: getattr(batch, name)[rows] for name in ("speakers", "truth", "utterances")}
        cut.append(Batch(inputs, torch.tensor([len(rows)]), **taken))
    return cut


def without(batch: Batch, hidden: dict[str, Tensor]) -> Batch:
    """The batch whose utterances have no rows of what is hidden, bool `[n]` by modality."""
    inputs = dict(batch.inputs)
    for m, which in hidden.items():
        x = inputs[m]
        inputs[m] = Sequences(x.values[~which.repeat_interleave(x.lengths)], x.lengths * ~which)
    return dataclasses.replace(batch, inputs=inputs)
