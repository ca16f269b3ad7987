"""A small store for tests of the report.

It has texts with words, frames with seconds, and ids and texts that mean harm. The middle seconds
of the audio and one word of the text carry the emotion, so that there is something to see.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.spec import Spec
from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.tests.store_samples import new_store
from ser.tests.tiny_store import NAMES, add_feature, base_rows

LABELS = ("ang", "hap", "neu", "sad", "neu", "exc")

# Which point an emotion lies at, and which word tells it.
POINT = {"ang": 0, "hap": 1, "exc": 1, "neu": 2, "sad": 3}
WORDS = {"ang": "hate", "hap": "lovely", "exc": "amazing", "neu": "office", "sad": "miss"}
PLAIN = ("well", "I", "think", "you", "said", "that", "it", "was", "about", "them")
PLAIN += ("and", "the", "other", "thing", "we", "did", "on", "Monday")
EVIL = (
    '<script>document.title="owned"</script> I said so',
    '=HYPERLINK("http://example.com","click") and more',
    "</style></svg><img src=http://example.com/x.png onerror=alert(1)> three words",
    "a | pipe & an ampersand_with_lines 100 % #1 $x$ \\ {braces}",
)

# Seconds between frames of HuBERT, and of the log-mel spectrogram.
HOP = 0.02
MEL_HOP = 0.01
# Of all features but the log-mel bands.
DIM = 16
BANDS = 20


def spoken_manifest(turns: int = 12) -> Manifest:
    """Five sessions of two dialogues, improvised and scripted."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for row in base_rows(("impro01", "script01_1"), turns):
        session = int(row["session"])
        turn = row["turn"]
        label = LABELS[(turn + session) % len(LABELS)]
        # A digit, and no number.
        row["speaker"] = row["speaker"].replace("1F", "²")

        words = rng.choice(PLAIN, int(rng.integers(3, 10))).tolist()
        words[len(words) // 2] = WORDS[label]
        is_evil = turn % 2 == 0
        row["text"] = EVIL[(session + turn // 2) % len(EVIL)] if is_evil else " ".join(words)

        # Of three votes, those for the label.
        agreeing = int(rng.integers(1, 4))
        others = [["Frustration"], ["Neutral"]]
        row["label"] = label
        row["votes"] = [[NAMES[label]]] * agreeing + others[: 3 - agreeing]
        row["duration"] = round(float(rng.uniform(0.7, 5.0)), 2)
        rows.append(row)

    return Manifest.from_rows("spoken", rows, synthetic=True)


@dataclass(frozen=True)
class SpokenRows:
    """The rows of one utterance."""

    # HuBERT's [n, DIM], log-mel's [n, BANDS].
    frames: np.ndarray
    mel: np.ndarray
    # [tokens, DIM], and the number of each token's word [tokens], -1 at both ends.
    tokens: np.ndarray
    words: np.ndarray
    # Of the utterance [DIM].
    vector: np.ndarray


def spoken_rows(
    rng: np.random.Generator, seconds: float, text: str, audio: np.ndarray, word: np.ndarray
) -> SpokenRows:
    """Noise, with `audio` [DIM] in its middle third and `word` [DIM] in its middle word."""
    frames = rng.normal(size=(max(3, round(seconds / HOP)), DIM))
    third = len(frames) // 3
    frames[third : 2 * third] += audio

    mel_frames = round(seconds / MEL_HOP) + 1
    loudness = np.hanning(mel_frames)[:, None] * 8
    mel = loudness + rng.normal(size=(mel_frames, BANDS))

    # Two tokens a word.
    count = len(text.split())
    words = np.concatenate([[-1], np.repeat(np.arange(count), 2), [-1]]).astype(np.int32)
    tokens = rng.normal(size=(len(words), DIM))
    tokens[words == count // 2] += word

    vector = rng.normal(size=DIM) + audio
    return SpokenRows(
        frames.astype(np.float16),
        mel.astype(np.float16),
        tokens.astype(np.float16),
        words,
        vector.astype(np.float32),
    )


def spoken_store(path: Path) -> Store:
    """HuBERT frames, mpnet tokens with their words, log-mel frames, is13 and bert vectors."""
    manifest = spoken_manifest()
    store = new_store(path, manifest)
    rng = np.random.default_rng(1)
    points = rng.normal(size=(4, DIM)) * 2.5

    utterances: list[SpokenRows] = []
    columns = [manifest.column(name) for name in ("label", "text", "duration")]
    for number, (label, text, seconds) in enumerate(zip(*columns, strict=True)):
        point = points[POINT[label]]
        is_audible = number % 3 != 0
        is_legible = number % 3 != 1
        rows = spoken_rows(rng, seconds, text, point * is_audible, point * is_legible)
        utterances.append(rows)

    extractor = ("made-up", 1)
    random = {"random": True}
    hubert = Spec(
        "hubert",
        "audio",
        "frame",
        DIM,
        "float16",
        *extractor,
        hop=HOP,
        checkpoint=random,
        provenance={"model": "made/hubert"},
    )
    logmel = Spec("logmel", "audio", "frame", BANDS, "float16", *extractor, hop=MEL_HOP)
    mpnet = Spec("mpnet", "text", "token", DIM, "float16", *extractor, checkpoint=random)
    is13 = Spec("is13", "audio", "utterance", DIM, "float32", *extractor)
    bert = Spec("bert", "text", "token", DIM, "float16", *extractor, checkpoint=random)

    tokens = [rows.tokens for rows in utterances]
    words = {"word": [rows.words for rows in utterances]}
    add_feature(store, manifest, hubert, [rows.frames for rows in utterances])
    add_feature(store, manifest, logmel, [rows.mel for rows in utterances])
    add_feature(store, manifest, mpnet, tokens, extras=words)
    add_feature(store, manifest, is13, [rows.vector for rows in utterances])
    add_feature(store, manifest, bert, tokens, extras=words)
    return store
