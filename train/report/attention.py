"""What the modality interaction transformer of a trained run attends to.

The weights are taken from the model as it runs.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.errors import SerError
from ser.train.data.dataset import Dataset
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import UNLABELLED
from ser.train.data.select import select_features
from ser.train.data.sources import modality_source
from ser.train.model_file import load_model
from ser.train.models.layers.transformer import DecoderLayer
from ser.train.models.msmser import ModalityInteraction
from ser.train.run_folder import Run


@dataclass(frozen=True)
class Attended:
    """One utterance: how strongly each of L query tokens attends to each audio frame and each word.

    A query token's weights sum to 1 over `frames` and `words` together (mean over the heads, last
    layer). `tokens` weighs the query tokens as the model's pooling does: what reaches the
    classifier.
    """

    utterance: str
    probabilities: np.ndarray  # [K]
    frames: np.ndarray  # [L, T]
    words: np.ndarray  # [L, N]
    tokens: np.ndarray  # [L], which sum to 1
    hop: float | None  # seconds between frames
    texts: Sequence[str | None]  # [N]; None for [CLS], [SEP] and their like

    @property
    def audio_share(self) -> float:
        """The share of the audio, from 0 to 1, in what reaches the classifier."""
        return float(self.frames.sum(1) @ self.tokens)


@torch.inference_mode()
def attend(run: Run, store: Store, manifest: Manifest, utterances: Sequence[str]) -> list[Attended]:
    """The attention of a trained run in each utterance, both modalities shown.

    Its model computes as it always does.
    Raises `SerError` if the run or a feature cannot be read.
    """
    fitted, _ = load_model(run)
    interaction = getattr(fitted.model, "interaction", None)
    if not isinstance(interaction, ModalityInteraction):
        raise SerError(f"{run.path}: its model has no modality interaction transformer")

    names = []
    for feature in run.config.features.values():
        for part in feature.parts:
            names.append(f"{part.read_name}@{part.fingerprint}")
    selected, _ = select_features(store, "+".join(names), manifest.corpus)

    rows = np.array([manifest.ids.index(utterance) for utterance in utterances])
    sources = {
        modality: modality_source(selection, manifest, rows)
        for modality, selection in selected.items()
    }
    data = Dataset(apply_policy(UNLABELLED, manifest), run.config.dims, dict)

    audio = selected["audio"].parts[0]
    text = selected["text"].parts[0]
    hop = audio.hop or audio.feature.spec.hop
    packed_text = text.feature.load(manifest, rows.tolist())
    words_of_tokens = packed_text.extras.get("word")

    # What the layers are given is taken as the model computes.
    layer: DecoderLayer = interaction.decoder[-1]  # type: ignore[assignment]
    taken: dict[str, Any] = {}
    layer.multihead_attn.register_forward_pre_hook(lambda _, inputs: taken.update(cross=inputs))
    interaction.pool.register_forward_pre_hook(lambda _, inputs: taken.update(pool=inputs))

    attended = []
    for number, utterance in enumerate(utterances):
        inputs = {modality: source.read(np.array([number])) for modality, source in sources.items()}
        batch = data.batch([rows[[number]]], fitted.scaling, read=inputs)
        logits = fitted.model(batch)["logits"]

        weights = _cross_attention(layer.multihead_attn, taken["cross"])
        frames = len(batch.inputs["audio"].values)
        words = weights[:, frames:]
        if words_of_tokens is None:
            # Of a store without a map of the words, tokens are named by number.
            texts: list[str | None] = [f"token {token}" for token in range(words.shape[1])]
        else:
            first, end = packed_text.offsets[number : number + 2]
            transcript = manifest.column("text")[rows[number]] or ""
            words, texts = _by_word(
                words, words_of_tokens[first:end], transcript, text.feature.spec.config
            )

        classes = len(run.config.labels.classes)
        pooling = interaction.pool.score(taken["pool"][0])[:, 0].softmax(0)
        attended.append(
            Attended(
                utterance=utterance,
                probabilities=logits[0, :classes].softmax(0).numpy(),
                frames=weights[:, :frames],
                words=words,
                tokens=pooling.numpy(),
                hop=hop,
                texts=texts,
            )
        )
    return attended


def _cross_attention(layer: Any, inputs: tuple[Any, ...]) -> np.ndarray:
    """The weights `[L, T + N]` of the query tokens in one utterance, the mean over the h heads."""
    x, _, (memory, _) = inputs
    queries: Tensor = layer.project(x, slice(1))[:, 0].transpose(0, 1)  # [h, L, d / h]
    keys: Tensor = layer.project(memory, slice(1, 2))[:, 0].transpose(0, 1)  # [h, T + N, d / h]

    scores = queries @ keys.transpose(1, 2) / queries.shape[2] ** 0.5
    return scores.softmax(2).mean(0).numpy()


def _by_word(
    weights: np.ndarray, word_of_token: np.ndarray, text: str, config: Mapping[str, Any]
) -> tuple[np.ndarray, list[str | None]]:
    """The columns of tokens `[L, tokens]` summed into those of words `[L, N]`, and the words.

    The store's map counts what stands between spaces, without tags such as [LAUGHTER] where they
    were removed. Special tokens, and words that the transcript lacks, share one column without a
    name.
    """
    if config.get("tags") == "remove":
        text = re.sub(r"\[[A-Za-z_]+\]", " ", text)
    words: list[str | None] = [*text.split()]

    if (word_of_token < 0).any() or not words:
        unnamed = (word_of_token < 0) | (word_of_token >= len(words))
        word_of_token = np.where(unnamed, len(words), word_of_token)
        words.append(None)

    columns = [weights[:, word_of_token == column].sum(1) for column in range(len(words))]
    return np.stack(columns, axis=1), words


def audio_by_token(
    attended: Sequence[Attended],
) -> list[tuple[tuple[float, float, float], float]]:
    """Of each query token, the audio's share of its attention, and its weight in the pooling.

    Both in percent, means over the utterances; the share with the ends of the middle 80 % of them.
    """
    shares = 100 * np.array([utterance.frames.sum(1) for utterance in attended])  # [utterances, L]
    weights = 100 * np.mean([utterance.tokens for utterance in attended], axis=0)  # [L]
    ends = np.quantile(shares, [0.1, 0.9], axis=0)  # [2, L]

    by_token = []
    for mean, (low, high), weight in zip(shares.mean(0), ends.T, weights, strict=True):
        by_token.append(((mean, low, high), weight))
    return by_token


def summed_spans(frames: np.ndarray, limit: int) -> np.ndarray:
    """Attention `[L, T]` summed into at most `limit` spans of equal length."""
    steps = min(limit, frames.shape[1])
    cuts = np.linspace(0, frames.shape[1], steps + 1).round().astype(int)
    return np.add.reduceat(frames, cuts[:-1], axis=1)
