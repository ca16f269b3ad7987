"""What the modality interaction transformer of a trained run attends to, taken from the model as it runs."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser.cache.manifest import Manifest
from ser.cache.store import Store
from ser.errors import SerError
from ser.train.data.dataset import Dataset
from ser.train.data.features import read_name, select_features
from ser.train.data.labels import UNLABELLED, apply_policy
from ser.train.models.layers import Attention, DecoderLayer
from ser.train.models.msmser import ModalityInteraction
from ser.train.models.ragged import RaggedLayout, SelfAttentionPooling
from ser.train.run import load_model
from ser.train.run_folder import Run


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
    texts: Sequence[str | None]  # [N]; None for [CLS], [SEP] and their like


@torch.inference_mode()
def attend(run: Run, store: Store, manifest: Manifest, utterances: Sequence[str]) -> list[Attended]:
    """The attention of a trained run in each utterance, both modalities shown.

    Raises `SerError` if the run or a feature cannot be read.
    """
    fitted, _ = load_model(run)
    interaction = next((part for part in fitted.model.modules() if isinstance(part, ModalityInteraction)), None)
    if interaction is None:
        raise SerError(f"{run.path}: its model has no modality interaction transformer")
    rows = [manifest.ids.index(utterance) for utterance in utterances]
    features = [one for of in run.config["features"].values() for one in of.get("joined", [of])]
    named = [f"{read_name(one)}@{one['fingerprint']}" for one in features]
    selected, _ = select_features(store, "+".join(named), manifest.corpus)
    sources = {modality: one.source(manifest, np.array(rows)) for modality, one in selected.items()}
    data = Dataset(apply_policy(UNLABELLED, manifest), run.config["dims"], dict, {})
    audio, text = (selected[modality].parts[0] for modality in ("audio", "text"))
    packed = text.feature.load(manifest, rows)
    found = []
    with weights_of(interaction) as seen:
        for number, (utterance, row) in enumerate(zip(utterances, rows, strict=True)):
            read = {modality: one.read(np.array([number])) for modality, one in sources.items()}
            batch = data.batch([np.array([row])], fitted.scaling, read=read)
            logits = fitted.model(batch)["logits"]
            weights = seen["attention"].mean(0).numpy()  # [h, L, T + N] → [L, T + N]
            frames, said = len(batch.inputs["audio"].values), manifest.column("text")[row] or ""
            word = packed.extras.get("word")
            word = None if word is None else word[slice(*packed.offsets[number:][:2])]
            words, names = _by_word(weights[:, frames:], word, said, text.feature.spec.config)
            tokens, k = seen["pooling"].numpy(), len(run.config["labels"]["classes"])
            probabilities = logits[0, :k].softmax(0).numpy()
            hop = audio.hop or audio.feature.spec.hop
            found.append(Attended(utterance, probabilities, weights[:, :frames], words, tokens, hop, names))
    return found


@contextmanager
def weights_of(interaction: ModalityInteraction) -> Iterator[dict[str, Tensor]]:
    """The weights of the last layer's attention to both modalities `[h, L, r]` and of the pooling `[L]`, for one
    utterance at a time. The model's own code and numbers stay as they are.
    """
    seen: dict[str, Tensor] = {}

    def attended(attention: Attention, taken: tuple[Any, ...], _: Tensor) -> None:
        x, _, (memory, _) = taken
        q = attention.project(x, slice(1))[:, 0].transpose(0, 1)  # [h, L, d / h]
        k = attention.project(memory, slice(1, 2))[:, 0].transpose(0, 1)  # [h, r, d / h]
        seen["attention"] = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)

    def pooled(pool: SelfAttentionPooling, taken: tuple[Tensor, RaggedLayout], _: Tensor) -> None:
        seen["pooling"] = pool.score(taken[0])[:, 0].softmax(0)

    last: DecoderLayer = interaction.decoder[-1]  # type: ignore[assignment]
    with last.multihead_attn.register_forward_hook(attended), interaction.pool.register_forward_hook(pooled):
        yield seen


def _by_word(weights: np.ndarray, word: Any, text: str, config: Any) -> tuple[np.ndarray, list[str | None]]:
    """Token columns summed into words, named by the transcript; tokens by number where the store has no map.

    The store's map counts what stands between spaces, without tags such as [LAUGHTER] where they were removed.
    """
    if word is None:
        return weights, [f"token {number}" for number in range(weights.shape[1])]
    names: list[Any] = (re.sub(r"\[[A-Za-z_]+\]", " ", text) if config.get("tags") == "remove" else text).split()
    columns = [word == column for column in range(len(names))]
    special = (word < 0) | (word >= len(names))
    if (word < 0).any() or not names:
        columns, names = [*columns, special], [*names, None]
    return np.stack([weights[:, column].sum(1) for column in columns], axis=1), names
