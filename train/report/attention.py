"""What the modality interaction transformer of a trained run attends to, taken from the model as it runs."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser.cache.spec import Spec
from ser.cache.store import Packed
from ser.errors import SerError
from ser.train.models.layers import Attention
from ser.train.models.msmser import ModalityInteraction
from ser.train.models.ragged import Batch, RaggedLayout, SelfAttentionPooling, Sequences
from ser.train.run import load_model
from ser.train.run_folder import Run

from .utterances import Origin

SPECIAL = "special tokens"  # [CLS], [SEP] and their like


@dataclass(frozen=True)
class Attended:
    """One utterance: how strongly each of L query tokens attends to each audio frame and each word.

    A query token's weights sum to 1 over `frames` and `words` together (mean over the heads, last layer). `tokens`
    weighs the query tokens as the model's pooling does: what reaches the classifier.
    """

    utterance: str
    probabilities: np.ndarray  # [K]
    frames: np.ndarray  # [L, T]
    words: np.ndarray  # [L, N]
    tokens: np.ndarray  # [L], which sum to 1
    hop: float | None  # seconds between frames
    texts: Sequence[str]  # [N]
    even: float  # the audio's share if a query token attended to all frames and tokens alike

    @property
    def audio(self) -> np.ndarray:
        """The share of each query token's attention that goes to the audio [L]."""
        return self.frames.sum(1)


class Attending:
    """A trained run with what its model is given for some utterances."""

    def __init__(self, run: Run, origin: Origin, utterances: Sequence[str]) -> None:
        """Load the model and the features. Raises `SerError` if the run, its store or a feature cannot be read."""
        if origin.store is None or origin.manifest is None:
            raise SerError(origin.lack)
        self.origin = origin
        self.fitted, _, _ = load_model(run)
        found = [module for module in self.fitted.model.modules() if isinstance(module, ModalityInteraction)]
        if not found:
            raise SerError(f"{run.path}: its model has no modality interaction transformer")
        self.interaction = found[0]
        ids = list(dict.fromkeys(utterances))
        self.place = {id_: place for place, id_ in enumerate(ids)}
        self.specs: dict[str, Spec] = {}
        self.packed: dict[str, Packed] = {}
        for modality, described in run.config["features"].items():
            feature = origin.store.feature(f"{described['feature']}@{described['fingerprint']}")
            self.specs[modality] = feature.spec
            self.packed[modality] = feature.load(origin.manifest, [origin.row_of[id_] for id_ in ids])

    @torch.inference_mode()
    def __call__(self, utterance: str) -> Attended:
        """The attention of one utterance, both modalities shown."""
        inputs, extras = {}, {}
        for modality, packed in self.packed.items():
            start, stop = packed.offsets[self.place[utterance] :][:2]
            values = torch.from_numpy(np.array(packed.values[start:stop]))
            scale = self.fitted.scaling.get(modality, Tensor.float)
            inputs[modality] = Sequences(scale(values), torch.tensor([len(values)]))
            extras[modality] = {name: array[start:stop] for name, array in packed.extras.items()}
        one = torch.zeros(1, dtype=torch.long)
        with _weights_of(self.interaction) as seen:
            logits = self.fitted.model(Batch(inputs, one, one, one + 1))["logits"]
        weights = seen["attention"].mean(0).numpy()  # [h, L, T + N] → [L, T + N]
        frames = len(inputs["audio"].values)
        text = self.origin.of(utterance, "text") or ""
        words, names = _by_word(weights[:, frames:], extras["text"].get("word"), text, self.specs["text"].config)
        return Attended(
            utterance=utterance,
            probabilities=logits[0].softmax(0).numpy(),
            frames=weights[:, :frames],
            words=words,
            tokens=seen["pooling"].numpy(),
            hop=self.specs["audio"].hop,
            texts=names,
            even=frames / weights.shape[1],
        )


@contextmanager
def _weights_of(interaction: ModalityInteraction) -> Iterator[dict[str, Tensor]]:
    """The weights of the last layer's attention to both modalities `[h, L, r]` and of the pooling `[L]`, for one
    utterance at a time. The model's own code and numbers stay as they are.
    """
    seen: dict[str, Tensor] = {}
    attention: Attention = interaction.decoder[-1].multihead_attn  # type: ignore[assignment]
    plain = attention.cross

    def cross(x: Tensor, plan: RaggedLayout, memory: Tensor, keys: RaggedLayout) -> Tensor:
        q = attention.project(x, slice(1))[:, 0].transpose(0, 1)  # [h, L, d / h]
        k = attention.project(memory, slice(1, 2))[:, 0].transpose(0, 1)  # [h, r, d / h]
        seen["attention"] = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)
        return plain(x, plan, memory, keys)

    def pooled(pool: SelfAttentionPooling, taken: tuple[Tensor, RaggedLayout], _: Tensor) -> None:
        seen["pooling"] = pool.score(taken[0])[:, 0].softmax(0)

    attention.cross = cross  # type: ignore[method-assign]
    handle = interaction.pool.register_forward_hook(pooled)
    try:
        yield seen
    finally:
        handle.remove()
        del attention.cross


def _by_word(weights: np.ndarray, word: Any, text: str, config: Any) -> tuple[np.ndarray, list[str]]:
    """Token columns summed into words, named by the transcript; tokens by number where the store has no map.

    The store's map counts what stands between spaces, without tags such as [LAUGHTER] where they were removed.
    """
    if word is None:
        return weights, [f"token {number}" for number in range(weights.shape[1])]
    names = (re.sub(r"\[[A-Za-z_]+\]", " ", text) if config.get("tags") == "remove" else text).split()
    columns = [word == column for column in range(len(names))]
    special = (word < 0) | (word >= len(names))
    if (word < 0).any() or not names:
        columns, names = [*columns, special], [*names, SPECIAL]
    return np.stack([weights[:, column].sum(1) for column in columns], axis=1), names
