"""A real store with small made-up features, for tests of training.

There is no extractor, no audio, no mock.

Five sessions of two speakers; emotion k lies at a point of its own in the audio of even turns and
in the text of odd ones, so that each modality knows half and both together know all.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ser.cache.feature import Feature
from ser.cache.part import Quarantine
from ser.cache.publish import publish_part
from ser.cache.rows import PartRows
from ser.cache.spec import Spec
from ser.cache.store import Store
from ser.corpus.manifest import Manifest
from ser.tests.store_samples import new_store

LABELS = ("ang", "hap", "neu", "sad", "exc", "fru", "xxx", "neu")

# What the raters write.
NAMES = {
    "ang": "Anger",
    "hap": "Happiness",
    "exc": "Excited",
    "neu": "Neutral",
    "sad": "Sadness",
    "fru": "Frustration",
    "xxx": "Other",
}

# Valence, arousal and dominance; that of turn 7 of each second dialogue is not rated.
RATINGS = {
    "ang": (1.5, 4.5, 4.0),
    "hap": (4.5, 3.5, 3.5),
    "exc": (4.0, 4.5, 3.5),
    "neu": (3.0, 2.5, 3.0),
    "sad": (2.0, 1.5, 2.0),
    "fru": (2.0, 3.5, 3.5),
    "xxx": (2.5, 3.0, 2.5),
}

# feature: modality, level, dim, dtype, mean number of rows
FEATURES = {
    "is13": ("audio", "utterance", 24, "float32", 1),
    "hubert": ("audio", "frame", 12, "float16", 9),
    "logmel": ("audio", "frame", 16, "float16", 40),
    "bert": ("text", "token", 16, "float16", 5),
    "mpnet": ("text", "token", 12, "float16", 5),
}


def base_rows(dialogues: Sequence[str], turns: int) -> Iterator[dict[str, Any]]:
    """What any manifest of five sessions says of each turn.

    Who speaks where, and a digest that is made up.
    """
    for session, dialogue, turn in product("12345", dialogues, range(turns)):
        dialogue_id = f"Ses0{session}F_{dialogue}"
        gender = "FM"[turn % 2]
        utterance = f"{dialogue_id}_{gender}{turn // 2:03d}"
        yield {
            "id": utterance,
            "audio": f"{utterance}.wav",
            "audio_sha256": hashlib.sha256(utterance.encode()).hexdigest(),
            "session": session,
            "dialogue": dialogue_id,
            "turn": turn,
            "speaker": f"{session}{gender}",
            "gender": gender,
        }


def make_manifest(turns: int = 12, corpus: str = "tiny") -> Manifest:
    rows = []
    for row in base_rows(("impro01", "impro02"), turns):
        is_second = row["dialogue"].endswith("impro02")
        label = LABELS[(row["turn"] + int(row["session"]) * 3 + is_second) % len(LABELS)]

        valence, arousal, dominance = RATINGS[label]
        is_rated = row["turn"] != 7 or not is_second

        row["text"] = f"words of {row['id']}"
        row["duration"] = 2.0
        row["label"] = label
        row["votes"] = [[NAMES[label]], [NAMES[label]], ["Neutral", "Anger"]]
        row["valence"] = valence
        row["arousal"] = arousal
        row["dominance"] = dominance if is_rated else None
        rows.append(row)

    return Manifest.from_rows(corpus, rows, synthetic=True)


def make_rows(manifest: Manifest, feature: str, seed: int = 0) -> list[np.ndarray]:
    """Values [n_i, dim] of each utterance of the manifest."""
    modality, _, dim, dtype, mean_rows = FEATURES[feature]
    rng = np.random.default_rng([seed, *feature.encode()])
    points = rng.normal(size=(len(set(LABELS)), dim)) * 2
    order = sorted(set(LABELS) - {"exc"})

    rows = []
    for label, turn in zip(manifest.column("label"), manifest.column("turn"), strict=True):
        n = 1 if mean_rows == 1 else int(rng.integers(mean_rows // 2 + 1, 2 * mean_rows))
        values = rng.normal(size=(n, dim))
        if (turn % 4 < 2) == (modality == "audio"):
            values += points[order.index("hap" if label == "exc" else label)]
        rows.append(values.astype(dtype))
    return rows


def add_feature(
    store: Store,
    manifest: Manifest,
    feature: str | Spec,
    rows: Sequence[np.ndarray] | dict[int, np.ndarray],
    of: Sequence[int] | None = None,
    empty: Sequence[int] = (),
    extras: dict[str, list[np.ndarray]] | None = None,
    backend: str = "zarr",
    **spec: Any,
) -> Feature:
    """Publish rows as that feature.

    Those `of` some utterances (all by default), and some quarantined as `empty`.
    """
    if isinstance(feature, str):
        feature = Spec(feature, *FEATURES[feature][:4], "made-up", 1, **spec)

    ids = manifest.ids
    inputs = manifest.inputs(feature.modality)
    numbers = range(len(manifest)) if of is None else of

    part = PartRows(manifest.corpus)
    part.ids = [ids[number] for number in numbers]
    part.inputs = [inputs[number] for number in numbers]
    part.arrays = [rows[number] for number in numbers]
    part.extras = extras or {}
    for number in empty:
        file = f"{ids[number]}.wav"
        part.quarantined.append(Quarantine(ids[number], inputs[number], file, "empty file"))

    added = store.add(feature)
    publish_part(added, part, backend)
    return added


def make_store(path: Path, turns: int = 12) -> Store:
    manifest = make_manifest(turns)
    store = new_store(path, manifest)

    for feature in FEATURES:
        rows = make_rows(manifest, feature)
        hop = 0.02 if feature == "hubert" else None
        checkpoint = {"random": feature != "is13"}
        add_feature(store, manifest, feature, rows, checkpoint=checkpoint, hop=hop)
    return store
