"""What the modality interaction transformer of a trained run attends to, taken from the model as it
runs: a section.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ser.cache.feature import Feature
from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.errors import SerError
from ser.train.data.dataset import Dataset
from ser.train.data.labelling import apply_policy
from ser.train.data.labels import UNLABELLED
from ser.train.data.select import select_features
from ser.train.data.sources import modality_source
from ser.train.models.layers import DecoderLayer
from ser.train.models.msmser import ModalityInteraction
from ser.train.run import load_model
from ser.train.run_folder import Run

from .cells import Cell, Cells, Origin
from .tables import Row, Table, columns, described, evenly

SPECIAL = "special tokens"  # [CLS], [SEP] and their like
SAMPLED = 40  # utterances behind the averages of attention
STEPS, ROWS = 60, 12  # spans of time in a heat map, and in its table


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


@torch.inference_mode()
def attend(run: Run, store: Store, manifest: Manifest, utterances: Sequence[str]) -> list[Attended]:
    """The attention of a trained run in each utterance, both modalities shown; its model computes
    as it always does.

    Raises `SerError` if the run or a feature cannot be read.
    """
    fitted, _ = load_model(run)
    interaction = getattr(fitted.model, "interaction", None)
    if not isinstance(interaction, ModalityInteraction):
        raise SerError(f"{run.path}: its model has no modality interaction transformer")
    names = [
        f"{part.read_name}@{part.fingerprint}"
        for feature in run.config.features.values()
        for part in feature.parts
    ]
    selected, _ = select_features(store, "+".join(names), manifest.corpus)
    rows = np.array([manifest.ids.index(utterance) for utterance in utterances])
    sources = {
        modality: modality_source(selection, manifest, rows)
        for modality, selection in selected.items()
    }
    data = Dataset(apply_policy(UNLABELLED, manifest), run.config.dims, dict, {})
    audio, text = (selected[modality].parts[0] for modality in ("audio", "text"))
    tokens = text.feature.load(manifest, rows.tolist())
    words_of_tokens = tokens.extras.get("word")
    layer: DecoderLayer = interaction.decoder[-1]  # type: ignore[assignment]
    cross, pool, taken = layer.multihead_attn, interaction.pool, dict[str, Any]()
    cross.register_forward_pre_hook(lambda _, inputs: taken.update(cross=inputs))
    pool.register_forward_pre_hook(lambda _, inputs: taken.update(pool=inputs))
    attended = []
    for number, utterance in enumerate(utterances):
        inputs = {modality: source.read(np.array([number])) for modality, source in sources.items()}
        batch = data.batch([rows[[number]]], fitted.scaling, read=inputs)
        logits = fitted.model(batch)["logits"]
        x, _, (memory, _) = taken["cross"]
        q = cross.project(x, slice(1))[:, 0].transpose(0, 1)  # [h, L, d / h]
        k = cross.project(memory, slice(1, 2))[:, 0].transpose(0, 1)  # [h, T + N, d / h]
        weights = (
            (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2).mean(0).numpy()
        )  # [L, T + N]
        frames = len(batch.inputs["audio"].values)
        words = weights[:, frames:]
        if (
            words_of_tokens is None
        ):  # of a store without a map of the words, tokens are named by number
            texts: list[str | None] = [f"token {token}" for token in range(words.shape[1])]
        else:
            own = words_of_tokens[slice(*tokens.offsets[number:][:2])]
            transcript = manifest.column("text")[rows[number]] or ""
            words, texts = _by_word(words, own, transcript, text.feature.spec.config)
        probabilities = logits[0, : len(run.config.labels.classes)].softmax(0).numpy()
        pooling = pool.score(taken["pool"][0])[:, 0].softmax(0).numpy()
        hop = audio.hop or audio.feature.spec.hop
        attended.append(
            Attended(utterance, probabilities, weights[:, :frames], words, pooling, hop, texts)
        )
    return attended


def _by_word(
    weights: np.ndarray, word: Any, text: str, config: Any
) -> tuple[np.ndarray, list[str | None]]:
    """The columns of tokens summed into those of words, and the words of the transcript.

    The store's map counts what stands between spaces, without tags such as [LAUGHTER] where they
    were removed.
    """
    words: list[Any] = (
        re.sub(r"\[[A-Za-z_]+\]", " ", text) if config.get("tags") == "remove" else text
    ).split()
    if (word < 0).any() or not words:
        word, words = np.where((word < 0) | (word >= len(words)), len(words), word), [*words, None]
    return np.stack(
        [weights[:, word == column].sum(1) for column in range(len(words))], axis=1
    ), words


class Inside(NamedTuple):
    """What the query tokens of a cell attend to, on average and in single utterances; or what is at
    `fault`.
    """

    cell: Cell | None
    fault: str = ""
    tables: Sequence[Table] = ()  # those of the cards come last
    cards: Sequence[dict[str, Any]] = ()
    energy: bool = False  # whether it is drawn


def attended(cells: Cells) -> Inside:
    """What the query tokens attend to, for the cell with the highest UA that has any; nothing if
    there is none.
    """
    cell = next((cell for cell in cells if cell.config.fusion.partition(":")[0] == "mit"), None)
    store, manifest, lack = cell.origin if cell else Origin()
    if cell is None or store is None or manifest is None:
        return Inside(cell, lack)
    p = cell.judged
    predictions = p[p.run == 0].join(cell.utterances.text, on="id")
    sampled = predictions.id.iloc[evenly(len(predictions), SAMPLED)]
    reasons = _chosen(cell, predictions)
    try:
        attentions = attend(cell.runs[0], store, manifest, [*sampled, *reasons])
        logmels = [
            one
            for one in store.features()
            if (one.spec.feature, one.spec.level) == ("logmel", "frame")
        ]
        logmel = next((feature for feature in logmels if feature.rows(manifest)), None)
    except SerError as fault:
        return Inside(cell, str(fault))
    cards: list[dict[str, Any]] = []
    for number, (one, why) in enumerate(
        zip(attentions[len(sampled) :], reasons.values(), strict=True), 1
    ):
        weighed = zip(one.texts, (one.tokens @ one.words).tolist(), strict=True)
        words = [(text, weight) for text, weight in weighed if text is not None]
        plot = _maps(f"attention-{number}", one, logmel, manifest)
        to_audio = float(
            one.frames.sum(1) @ one.tokens
        )  # the share of the audio in what reaches the classifier
        cards.append(
            {"attended": one, "why": why, "words": words, "to_audio": to_audio, "plot": plot}
        )
    tables = [_by_token(attentions[: len(sampled)]), *(card["plot"] for card in cards)]
    return Inside(cell, "", tables, cards, logmel is not None)


def _chosen(cell: Cell, predictions: Any) -> dict[str, str]:
    """Utterances to show, with the reason: the surest right one of each class, then the two surest
    wrong ones.
    """
    short = predictions[predictions.text.fillna("").str.split().str.len().between(3, 14)]
    pool = short if len(short) >= 8 else predictions
    right = (
        pool[pool.right]
        .sort_values("given", ascending=False, kind="stable")
        .drop_duplicates("truth")
    )
    right = right.set_index("truth").id.reindex(cell.classes).dropna()
    wrong = pool[~pool.right].sort_values("confidence", ascending=False, kind="stable")[:2]
    reasons = {utterance: f"{truth}, recognised" for truth, utterance in right.items()}
    return reasons | {
        one.id: f"{one.truth}, taken for {one.predicted}" for one in wrong.itertuples()
    }


def _by_token(attentions: Sequence[Attended]) -> Table:
    """The audio's share of each query token's attention."""
    audio = 100 * np.array([one.frames.sum(1) for one in attentions])  # [utterances, L]
    pooling = 100 * np.mean([one.tokens for one in attentions], axis=0)
    shares = zip(audio.mean(0), *np.quantile(audio, [0.1, 0.9], axis=0), strict=True)
    rows: list[Row] = [
        {"query token": number, "to audio %": share, "its weight in the pooling %": weight}
        for number, (share, weight) in enumerate(zip(shares, pooling, strict=True), 1)
    ]
    points = [("audio", *point) for point in columns(rows, "query token", "to audio %")]
    return described("tokens", rows, points=points, n=len(attentions))


def _maps(name: str, one: Attended, logmel: Feature | None, manifest: Manifest) -> Table:
    """The attention of each query token over the seconds and the words, and above it the energy, if
    that is known.
    """
    energy = None  # the mean over the bands of each frame [T], and the seconds between frames
    if logmel is not None and one.hop:  # without a hop the attention has no clock
        with suppress(SerError):
            packed = logmel.load(manifest, [manifest.ids.index(one.utterance)])
            energy = packed.values.astype(np.float64).mean(1), logmel.spec.hop or 0.01
    frames = one.frames.shape[1]
    unit, end = ("seconds", frames * one.hop) if one.hop else ("frames", float(frames))
    binned, spans = _binned(one.frames, STEPS), _binned(one.frames, ROWS)
    step = end / spans.shape[1]
    names = [f"{n * step:.2f}–{(n + 1) * step:.2f} {unit}" for n in range(spans.shape[1])]
    rows = []
    for modality, texts, weights in (("audio", names, spans), ("text", one.texts, one.words)):
        for text, column in zip(texts, weights.T, strict=True):
            row = {
                "modality": modality,
                "what": text or SPECIAL,
                "attention %": 100 * float(one.tokens @ column),
            }
            rows.append(row | {"most by query token": int(column.argmax()) + 1})
    shown = binned, one.words, one.texts, one.tokens @ binned, end, unit, energy
    return described("attention", rows, points=shown, name=name, utterance=one.utterance)


def _binned(frames: np.ndarray, steps: int) -> np.ndarray:
    """Attention summed into at most `steps` spans of equal length [L, steps]."""
    cuts = np.linspace(0, frames.shape[1], min(steps, frames.shape[1]) + 1).round().astype(int)
    return np.add.reduceat(frames, cuts[:-1], axis=1)
