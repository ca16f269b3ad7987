"""A small store for tests of the report: texts with words, frames with seconds, and ids and texts
that mean harm.

The middle seconds of the audio and one word of the text carry the emotion, so that there is
something to see.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.spec import Spec
from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.tests.tiny_store import NAMES, add_feature, base_rows, new_store

LABELS = ("ang", "hap", "neu", "sad", "neu", "exc")
POINT = {"ang": 0, "hap": 1, "exc": 1, "neu": 2, "sad": 3}
WORDS = {"ang": "hate", "hap": "lovely", "exc": "amazing", "neu": "office", "sad": "miss"}
PLAIN = (
    "well",
    "I",
    "think",
    "you",
    "said",
    "that",
    "it",
    "was",
    "about",
    "them",
    "and",
    "the",
    "other",
    "thing",
    "we",
    "did",
    "on",
    "Monday",
)
EVIL = (
    '<script>document.title="owned"</script> I said so',
    '=HYPERLINK("http://example.com","click") and more',
    "</style></svg><img src=http://example.com/x.png onerror=alert(1)> three words",
    "a | pipe & an ampersand_with_lines 100 % #1 $x$ \\ {braces}",
)
HOP = 0.02


def spoken_manifest(turns: int = 12) -> Manifest:
    """Five sessions of two dialogues, improvised and scripted."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for row in base_rows(("impro01", "script01_1"), turns):
        session, turn = int(row["session"]), row["turn"]
        row["speaker"] = row["speaker"].replace("1F", "²")  # a digit, and no number
        label = LABELS[(turn + session) % len(LABELS)]
        words = rng.choice(PLAIN, int(rng.integers(3, 10))).tolist()
        words[len(words) // 2] = WORDS[label]
        row["text"] = " ".join(words) if turn % 2 else EVIL[(session + turn // 2) % len(EVIL)]
        sure = int(rng.integers(1, 4))
        votes = [[NAMES[label]]] * sure + [["Frustration"], ["Neutral"]][: 3 - sure]
        rows.append(
            {
                **row,
                "label": label,
                "votes": votes,
                "duration": round(float(rng.uniform(0.7, 5.0)), 2),
            }
        )
    return Manifest.from_rows("spoken", rows, synthetic=True)


def spoken_store(path: Path) -> Store:
    """HuBERT frames, mpnet tokens with their words, log-mel frames, is13 and bert vectors."""
    manifest = spoken_manifest()
    store = new_store(path, manifest)
    rng = np.random.default_rng(1)
    points = rng.normal(size=(4, 16)) * 2.5
    columns = [manifest.column(name) for name in ("label", "text", "duration")]
    frames, mels, tokens, words, vectors = [], [], [], [], []
    for number, (label, text, seconds) in enumerate(zip(*columns, strict=True)):
        point = points[POINT[label]]
        audible, legible = number % 3 != 0, number % 3 != 1
        spoken = rng.normal(size=(max(3, round(seconds / HOP)), 16))
        third = len(spoken) // 3
        spoken[third : 2 * third] += point * audible
        frames.append(spoken.astype(np.float16))
        loud = np.hanning(round(seconds / 0.01) + 1)[:, None] * 8 + rng.normal(
            size=(round(seconds / 0.01) + 1, 20)
        )
        mels.append(loud.astype(np.float16))
        word = np.array(
            [-1, *(w for w in range(len(text.split())) for _ in range(2)), -1], dtype=np.int32
        )
        read = rng.normal(size=(len(word), 16))
        read[word == len(text.split()) // 2] += point * legible
        tokens.append(read.astype(np.float16))
        words.append(word)
        vectors.append((rng.normal(size=16) + point * audible).astype(np.float32))
    by: Any = ("made-up", 1)
    random: Any = {"checkpoint": {"random": True}}
    hubert = Spec(
        "hubert",
        "audio",
        "frame",
        16,
        "float16",
        *by,
        hop=HOP,
        provenance={"model": "made/hubert"},
        **random,
    )
    mpnet, bert = (
        Spec(name, "text", "token", 16, "float16", *by, **random) for name in ("mpnet", "bert")
    )
    is13 = Spec("is13", "audio", "utterance", 16, "float32", *by)
    logmel = Spec("logmel", "audio", "frame", 20, "float16", *by, hop=0.01)
    for spec, rows in zip(
        (hubert, logmel, mpnet, is13, bert), (frames, mels, tokens, vectors, tokens), strict=True
    ):
        add_feature(
            store, manifest, spec, rows, extras={"word": words} if spec.modality == "text" else {}
        )
    return store
