"""A real store with small made-up features, for tests of training: no extractor, no audio, no
mocks.

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
NAMES = {"ang": "Anger", "hap": "Happiness", "exc": "Excited", "neu": "Neutral", "sad": "Sadness"}
NAMES |= {"fru": "Frustration", "xxx": "Other"}
# Valence, arousal and dominance; that of turn 7 of each second dialogue is not rated.
RATINGS = {
    "ang": (1.5, 4.5, 4.0),
    "hap": (4.5, 3.5, 3.5),
    "exc": (4.0, 4.5, 3.5),
    "neu": (3.0, 2.5, 3.0),
}
RATINGS |= {"sad": (2.0, 1.5, 2.0), "fru": (2.0, 3.5, 3.5), "xxx": (2.5, 3.0, 2.5)}
# feature: modality, level, dim, dtype, mean number of rows
FEATURES = {
    "is13": ("audio", "utterance", 24, "float32", 1),
    "hubert": ("audio", "frame", 12, "float16", 9),
    "logmel": ("audio", "frame", 16, "float16", 40),
    "bert": ("text", "token", 16, "float16", 5),
    "mpnet": ("text", "token", 12, "float16", 5),
}


def base_rows(dialogues: Sequence[str], turns: int) -> Iterator[dict[str, Any]]:
    """What any manifest of five sessions says of each turn: who speaks where, and a digest that is
    made up.
    """
    for session, dialogue, turn in product("12345", dialogues, range(turns)):
        name, gender = f"Ses0{session}F_{dialogue}", "FM"[turn % 2]
        utterance = f"{name}_{gender}{turn // 2:03d}"
        yield {
            "id": utterance,
            "audio": f"{utterance}.wav",
            "audio_sha256": hashlib.sha256(utterance.encode()).hexdigest(),
            "session": session,
            "dialogue": name,
            "turn": turn,
            "speaker": f"{session}{gender}",
            "gender": gender,
        }


def make_manifest(turns: int = 12, corpus: str = "tiny") -> Manifest:
    rows = []
    for row in base_rows(("impro01", "impro02"), turns):
        second = row["dialogue"].endswith("impro02")
        label = LABELS[(row["turn"] + int(row["session"]) * 3 + second) % len(LABELS)]
        rated = dict(zip(("valence", "arousal", "dominance"), RATINGS[label], strict=True))
        if row["turn"] == 7 and second:
            rated["dominance"] = None
        votes = [[NAMES[label]], [NAMES[label]], ["Neutral", "Anger"]]
        rows.append(
            {
                **row,
                "text": f"words of {row['id']}",
                "duration": 2.0,
                "label": label,
                "votes": votes,
                **rated,
            }
        )
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
    """Publish rows as that feature: those `of` some utterances (all by default), and some
    quarantined as `empty`.
    """
    if isinstance(feature, str):
        feature = Spec(feature, *FEATURES[feature][:4], "made-up", 1, **spec)
    ids, inputs, of = (
        manifest.ids,
        manifest.inputs(feature.modality),
        range(len(manifest)) if of is None else of,
    )
    quarantined = [Quarantine(ids[i], inputs[i], f"{ids[i]}.wav", "empty file") for i in empty]
    kept = [[all_[i] for i in of] for all_ in (ids, inputs, rows)]
    added = store.add(feature)
    publish_part(added, PartRows(manifest.corpus, *kept, extras or {}, quarantined), backend)
    return added


def make_store(path: Path, turns: int = 12) -> Store:
    manifest = make_manifest(turns)
    store = new_store(path, manifest)
    for feature in FEATURES:
        more = {
            "checkpoint": {"random": feature != "is13"},
            "hop": 0.02 if feature == "hubert" else None,
        }
        add_feature(store, manifest, feature, make_rows(manifest, feature), **more)
    return store
